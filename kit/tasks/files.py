"""Episodes in a .jsonl file, one a line.

    {"support": [{"image": "a.png", "prompt": "Output:", "answer": "dax"}, …],
     "query": {"image": "q.png", "prompt": "Output:"}, "answer": "dax", "choices": ["dax", "blicket"]}

Paths are relative to the file. Without choices the answer is generated.
"""
import json
import os

from data import Episode, Example
from kit.files import BadInput, BadItem, whole_file
from kit.sources.base import parse_json, read_lines
from kit.sources.decode import Inside
from kit.tasks.encoders import further_rows
from kit.tasks.prompts import file_media
from kit.tasks.results import control_rows, row_of


MOST_RENAMED = 100  # answers of one episode that a control finds new names for


def read_episodes(path, report, media=file_media):
    """The episodes of a .jsonl file, in order; None where a line cannot be used, which the report then names.

    media: path -> Media.
    """
    folder, episodes, before = os.path.dirname(os.path.abspath(path)), [], report.total
    for number, _, line in read_lines(path, report):
        try:
            episode = read_episode(line, folder, f'{path}:{number}', media)
            episodes += [None] * (report.total - before) + [episode]  # those left out since the last good one
            before = report.total
        except BadItem as e:
            report.add(e)
    return episodes + [None] * (report.total - before)


def read_episode(line, folder, where, media=file_media):
    """One line (bytes) -> Episode. Raises BadItem."""
    def example(entry, answer):
        image = entry.get('image')
        shown = None if image is None else media(os.path.join(folder, image))
        return Example(shown, entry['prompt'].rstrip(), answer)

    entry = parse_json(line, where)
    try:
        episode = Episode([example(e, e['answer']) for e in entry['support']],
                          example(entry['query'], entry['answer']), entry.get('choices'), where=where)
        texts = [t for e in [*episode.support, episode.query] for t in (e.prompt, e.answer)]
        if not all(isinstance(t, str) for t in texts + (episode.choices or [])):
            raise TypeError('prompts, answers and choices must be text')
        if not isinstance(episode.choices, list | None):
            raise TypeError('choices must be a list')
    except KeyError as e:
        raise BadItem('not an episode', where, f'lacks {e}') from e
    except (ValueError, TypeError, AttributeError) as e:
        raise BadItem('not an episode', where, str(e)) from e
    if not episode.query.prompt.strip():
        raise BadItem('no prompt', where)
    if episode.choices is not None and episode.query.answer not in episode.choices:
        raise BadItem('choices lack the answer', where)
    if episode.choices is not None and not all(c.strip() for c in episode.choices):
        raise BadItem('empty choice', where)
    return episode


def episode_line(episode, folder):
    """Episode of pictures on disk -> the line that `read_episode` reads, for a file in `folder`.

    Raises BadInput where it shows a picture that is no file by itself: inside a .tar, or a variant of
    another, for want of pictures.
    """
    def entry(example):
        path, _, variant, _, turn = example.media.load.args
        if isinstance(path, Inside):
            raise BadInput(f'{path.path}: a file of episodes names pictures by their paths, '
                           'and these are inside; unpack it')
        if variant or turn:
            how = 'turned' if turn else 'twice, in variants, as its class has too few pictures'
            raise BadInput(f'{episode.where}: shows {path} {how}, '
                           'and a file of episodes can only name pictures as they are')
        return {'image': os.path.relpath(path, folder), 'prompt': example.prompt}
    support = [entry(e) | {'answer': e.answer} for e in episode.support]
    return {'support': support, 'query': entry(episode.query), 'answer': episode.query.answer,
            'choices': episode.choices}


def write_lines(path, lines):
    """JSON objects, one a line."""
    with whole_file(path, 'w', encoding='utf-8') as f:
        for line in lines:
            f.write(json.dumps(line) + '\n')


def usable(episodes, check, report):
    """The episodes that can be asked; the others become None and are reported. check(episode) raises BadItem
    where a picture cannot be read, and BadInput where the prompt is too long."""
    out = []
    for episode in episodes:
        try:
            if episode is not None:
                check(episode)
            out.append(episode)
        except BadItem as e:
            report.add(BadItem(e.kind, f'{episode.where}: {e.where}', e.message))
            out.append(None)
        except BadInput as e:
            report.add(BadItem('too long', f'{episode.where}: {str(e).removeprefix(episode.where + ": ")}'))
            out.append(None)
    return out


def none_usable(where, report):
    return BadInput(f'{where}: no episode can be used: ' + '; '.join(report.lines() or ['there is none']))


def usable_or_fail(asker, episodes, report, where):
    """The episodes that can be asked, None in the places of the others. Raises BadInput where none can."""
    kept = usable(episodes, asker.check, report)
    if all(e is None for e in kept):
        raise none_usable(where, report)
    return kept


def run_episodes(config, asker, contrastive, report):
    """--episodes=FILE: accuracy with its interval, and one prediction a line -> rows."""
    episodes = read_episodes(config.episodes, report, asker.media)
    episodes = usable_or_fail(asker, episodes, report, config.episodes)
    good = [e for e in episodes if e is not None]
    ways = {len(e.choices) if e.choices is not None else None for e in good}
    ways = ways.pop() if len(ways) == 1 else None
    if config.controls:
        return control_rows(asker, 'naming', teaching(good, config.episodes), ways, None)
    answers = asker.answer(good, 'episodes')
    if config.predictions:
        found = iter(answers)
        nothing = {'prediction': None, 'answer': None, 'correct': False, 'logprob': None}
        lines = [nothing if e is None else next(found) for e in episodes]
        write_lines(config.predictions, [{key: line[key] for key in nothing} for line in lines])
    return [row_of('accuracy', 'naming', good, answers, ways),
            *further_rows(asker, good, ways, None, config.written)]


def teaching(episodes, where):
    """The episodes that controls can spoil: with choices, and support that shows the answer. Raises BadInput
    where there is none."""
    kept = []
    for e in episodes:
        shown = [s.answer for s in e.support]
        if e.choices is not None and e.query.answer in shown and len({*shown, *e.choices}) <= MOST_RENAMED:
            kept.append(e)
    if not kept:
        raise BadInput(f'{where}: controls need episodes with choices, at most {MOST_RENAMED} of them, '
                       'whose support shows the answer')
    return kept
