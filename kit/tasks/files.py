"""Episodes in a .jsonl file, one a line.

    {"support": [{"image": "a.png", "prompt": "Output:", "answer": "dax"}, …],
     "query": {"image": "q.png", "prompt": "Output:"}, "answer": "dax", "choices": ["dax", "blicket"]}

Paths are relative to the file. Without choices the answer is generated. Where a metric wants more than one
answer: "people", all that people said (CIDEr, VQA accuracy), and "relevance", how right each of the choices
is (NDCG); "answer" may then be left out.
"""
import json
import math
import os

import numpy as np

from data import Example
from kit.episode import Episode
from kit.files import BadInput, BadItem, whole_file
from kit.sources.base import parse_json, read_lines, usual_answer
from kit.sources.decode import Inside
from kit.sources.finding import Finder
from kit.tasks.encoders import further_rows
from kit.tasks.metrics import METRICS
from kit.tasks.options import listed
from kit.tasks.prompts import file_media
from kit.tasks.results import control_rows, row_of, warn_few


MOST_RENAMED = 100  # answers of one episode that a control finds new names for


def read_episodes(path, report, media=file_media):
    """The episodes of a .jsonl file, in order; None where a line cannot be used, which the report then names.

    media: path -> Media.
    """
    find, episodes, before = Finder(os.path.dirname(os.path.abspath(path))), [], report.total
    for number, _, line in read_lines(path, report):
        try:
            episode = read_episode(line, find, f'{path}:{number}', media)
            episodes += [None] * (report.total - before) + [episode]  # those left out since the last good one
            before = report.total
        except BadItem as e:
            report.add(e)
    return episodes + [None] * (report.total - before)


def read_episode(line, find, where, media=file_media):
    """One line (bytes) -> Episode. find: a Finder of the file's folder. Raises BadItem."""
    def example(entry, answer):
        image = entry.get('image')
        shown = None if image is None else media(find.anywhere(image))
        return Example(shown, entry['prompt'].rstrip(), answer)

    entry = parse_json(line, where)
    try:
        choices, people, relevance = (entry.get(key) for key in ('choices', 'people', 'relevance'))
        check_lists(choices, people, relevance)
        answer = entry['answer'] if 'answer' in entry else implied(choices, people, relevance)
        support, query = [example(e, e['answer']) for e in entry['support']], example(entry['query'], answer)
        episode = Episode(support, query, choices, people=people, relevance=relevance, where=where)
        if not all(isinstance(t, str) for e in [*support, query] for t in (e.prompt, e.answer)):
            raise TypeError('prompts and answers must be text')
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


def check_lists(choices, people, relevance):
    """Raises TypeError where one of them, if there, is not the list that it must be."""
    for name, texts in (('choices', choices), ('people', people)):
        right = isinstance(texts, list) and texts and all(isinstance(t, str) for t in texts)
        if texts is not None and not right:
            raise TypeError(f'{name} must be a list of texts')
    if relevance is not None:
        if not isinstance(relevance, list) or len(relevance) != len(choices or []):
            raise TypeError('relevance must be a list of numbers, one for each of the choices')
        if not all(type(r) in (int, float) and 0 <= r < math.inf for r in relevance):
            raise TypeError('relevance must be numbers, none below 0')


def implied(choices, people, relevance):
    """The answer that is not said: the most relevant choice, or what most people said. Raises KeyError."""
    if relevance is not None:
        return choices[int(np.argmax(relevance))]
    if people is None:
        raise KeyError('answer')
    return usual_answer(people)


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
    """--episodes=FILE: the wanted metrics with their intervals, and one prediction a line -> rows."""
    episodes = read_episodes(config.episodes, report, asker.media)
    episodes = usable_or_fail(asker, episodes, report, config.episodes)
    good = [e for e in episodes if e is not None]
    ways = {len(e.choices) if e.choices is not None else None for e in good}
    ways = ways.pop() if len(ways) == 1 else None
    if config.controls:
        return control_rows(asker, 'naming', teaching(good, config.episodes), ways, None)
    wanted = listed(config, 'metric', METRICS) if config.metric else ['accuracy']
    check_needs(wanted, good)
    answers = asker.answer(good, 'episodes')
    if config.predictions:
        found = iter(answers)
        nothing = {'prediction': None, 'answer': None, 'correct': False, 'logprob': None}
        lines = [nothing if e is None else next(found) for e in episodes]
        write_lines(config.predictions, [{key: line[key] for key in nothing} for line in lines])
    rows = []
    for metric in wanted:
        warn_few(metric, good)
        try:
            rows.append(row_of(metric, 'naming', good, answers, ways))
        except ValueError as e:
            raise BadInput(f'{config.episodes}: no {metric} of these episodes: {e}') from e
    return rows + further_rows(asker, good, ways, None, config.written)


def check_needs(wanted, episodes):
    """Raises BadInput where an episode lacks what a metric needs."""
    for metric in wanted:
        for field in METRICS[metric].needs:
            if lacking := next((e for e in episodes if getattr(e, field) is None), None):
                raise BadInput(f'{lacking.where}: lacks {field!r}, which --metric={metric} needs')


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
