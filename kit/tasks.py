"""What is asked: episodes of every task, of the embedded world and of what people have on disk; and the controls, which
spoil a prompt on purpose to find out what an answer came from.

    shapes, folders, .jsonl, COCO, VQA  ──►  data.Episode: examples, a query, its answer  ──►  evaluate.Asker
"""
import json
import os
import re
from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
from PIL import Image

from data import CAPTION_PROMPT, Episode, Example, Media, question_prompt
from kit import shapes
from kit.configurator import BadInput, BadItem, open_file
from kit.decode import Inside, is_picture, read_frames
from kit.sources import check_caption, parse_json, read_lines

# One small twin for each kind among the paper's 16 benchmarks: how episodes are made, and the metrics (the first one leads).
TASKS = {
    'caption': (shapes.caption_episode, ('accuracy', 'cider')),           # COCO, Flickr30k
    'question': (shapes.question_episode, ('accuracy',)),                 # VQAv2, OKVQA, VizWiz
    'reading': (shapes.reading_episode, ('accuracy',)),                   # TextVQA
    'clip_caption': (shapes.clip_episode, ('accuracy', 'cider')),         # VATEX, YouCook2
    'clip_question': (shapes.clip_question_episode, ('accuracy',)),       # MSVD-QA, MSRVTT-QA, iVQA, NextQA
    'choice': (shapes.choice_episode, ('accuracy',)),                     # STAR
    'dialogue': (shapes.dialogue_episode, ('ndcg',)),                     # VisDial
    'statement': (shapes.statement_episode, ('roc_auc',)),                # HatefulMemes
    'action': (shapes.action_episode, ('mean_average_precision',)),       # RareAct: without examples only
    'naming': (shapes.naming_episode, ('accuracy',)),                     # Frozen's open-ended miniImageNet, and ours
}
LIMIT_OFFICIAL = 1 << 30  # bytes of a COCO or VQA file, which is read whole
IN_TURN = ('naming', 'statement')  # whose maker takes `turn`, so that chance is what it should be


def can_ask(pairs, ways, shots, within=False):
    """Are there enough things, and pictures, to ask this of them? pairs: None for the embedded world, which has enough."""
    if pairs is None:
        return True
    if not ways:
        return len({picture_of(item) for item in pairs.items}) > shots
    return max(map(len, things_of(pairs, within))) >= ways


def episodes_of(task, shots, n, ways=None, seed=0, pairs=None, text_examples=0, within=False):
    """n episodes of a task, the same ones for the same seed: of the embedded world, or made of `pairs` (kit.sources)
    that were held out of training.

    shots: examples in all; of naming, examples of each of `ways` names. With 0 shots and text_examples=2, the prompt is
    the paper's for zero shots: so many examples as text alone, their pictures and tags removed. (With one, the answers
    are drawn to it; with none, the form of an answer is unknown. Tasks with choices need none.)
    within: the things of an episode are of one group of class folders.
    """
    rng = np.random.default_rng([seed, shots, ways or 0, *task.encode()])
    name = f'{pairs.name if pairs is not None else task}, ' + (f'{ways}-way, ' if ways else '') + f'{shots}-shot, seed {seed}'
    if pairs is not None and task == 'caption':
        episodes = [folder_caption(rng, pairs, shots) for _ in range(n)]
    elif pairs is not None:
        groups = groups_of(pairs, ways, within)
        episodes = [folder_naming(rng, pairs, groups, ways, shots, i) for i in range(n)]
    else:
        make, _ = TASKS[task]
        sizes = (ways, shots) if task == 'naming' else (shots or text_examples,)
        episodes = [make(rng, 'held', *sizes, **({'turn': i} if task in IN_TURN else {})) for i in range(n)]
        episodes = episodes if shots else [zero_shot_prompt(e) for e in episodes]
    return [replace(e, where=f'{name}, episode {i + 1}') for i, e in enumerate(episodes)]


def zero_shot_prompt(episode):
    """Its examples as text alone: pictures and tags removed. None at all where there are choices."""
    return replace(episode, support=[replace(e, media=None) for e in episode.support] if episode.choices is None else [])


def frozen_episode(episode, rng, repeats=0, induction=True):
    """A naming episode after Frozen (Tsimpoukelli et al. 2021): the answer is written, not chosen. Each example is shown
    `repeats` more times, and the task is announced: "Answer with dax or blicket.". The prompt is ours, "Output: dax" (Frozen's: "This is a
    dax."), the search a beam, and neither case nor a full stop at the end counts."""
    support = [episode.support[k] for _ in range(repeats + 1) for k in rng.permutation(len(episode.support))]
    return replace(episode, support=support, choices=None, induction=f'Answer with {" or ".join(episode.choices)}.' if induction else '')


# ---------------------------------------------------------------------------------------------
# Folders


def picture_of(item):
    """What tells the pictures of items apart: several may be captions of one."""
    return item.path, item.turn


def things_of(pairs, within=False):
    """Pairs -> list of lists of things, each the indices of its items, one for each group of class folders; without `within` one of all.
    A picture that has several captions is what the first of them says."""
    groups, known = {}, set()
    for k, item in enumerate(pairs.items):
        if picture_of(item) not in known:
            known.add(picture_of(item))
            groups.setdefault(item.group if within else None, {}).setdefault(item.label, []).append(k)
    return [list(labels.values()) for labels in groups.values()]


def groups_of(pairs, ways, within=False):
    """What the things of an episode are drawn from: `things_of` where there are `ways` of them. Raises BadInput where that is nowhere."""
    groups = things_of(pairs, within)
    large = [things for things in groups if len(things) >= ways]
    if not large:
        raise BadInput(f'{pairs.name}: {ways}-way episodes need {ways} kinds of things, and there are {max(map(len, groups))}'
                       + (' in the largest group' if within else ''))
    return large


def folder_naming(rng, pairs, groups, ways, shots, i):
    """Made-up names for things of a folder. Where a thing has too few pictures, it is shown in variants of them."""
    labels = groups[i % len(groups)]
    kinds = [labels[k] for k in rng.choice(len(labels), ways, replace=False)]
    names = shapes.made_up_names(rng, ways, 'held')
    asked = i % ways

    def views(kind, n):  # n different pictures of a kind
        order = rng.permutation(kind)
        return [pairs.media(int(order[j % len(order)]), 0 if n <= len(order) else 1 + j // len(order)) for j in range(n)]

    shown = [views(kind, shots + (w == asked)) for w, kind in enumerate(kinds)]
    query = Example(shown[asked].pop(), CAPTION_PROMPT, names[asked])
    support = [Example(m, CAPTION_PROMPT, names[w]) for w, row in enumerate(shown) for m in row]
    return Episode([support[k] for k in rng.permutation(len(support))], query, choices=names)


def folder_trials(rng, pairs, ways, n):
    """Naming in the form that Omniglot's one-shot trials were published in: `ways` classes of one group, shown as one hand drew
    them, and each asked about as another hand drew it -> n episodes, `ways` of them a trial. Whose hand it is, is told by a
    picture's number in its class folder. Raises BadInput where classes have one picture only."""
    groups, episodes = groups_of(pairs, ways, within=True), []
    while len(episodes) < n:
        labels = groups[len(episodes) // ways % len(groups)]
        kinds = [labels[k] for k in rng.choice(len(labels), ways, replace=False)]
        hands = min(map(len, kinds))
        if hands < 2:
            raise BadInput(f'{pairs.name}: trials need classes of two pictures at least')
        one, other = (int(k) for k in rng.choice(hands, 2, replace=False))
        names = shapes.made_up_names(rng, ways, 'held')
        support = [Example(pairs.media(kind[one]), CAPTION_PROMPT, name) for kind, name in zip(kinds, names)]
        for k in rng.permutation(ways):
            query = Example(pairs.media(kinds[k][other]), CAPTION_PROMPT, names[k])
            episodes.append(Episode([support[j] for j in rng.permutation(ways)], query, choices=names, where=f'{pairs.name}, episode {len(episodes) + 1}'))
    return episodes[:n]


def episode_line(episode, folder):
    """Episode of pictures on disk -> the line that `read_episode` reads, for a file in `folder`. Raises BadInput where it shows a
    picture that is no file by itself: inside a .tar, or a variant of another, for want of pictures."""
    def entry(example):
        path, _, variant, _, turn = example.media.load.args
        if isinstance(path, Inside):
            raise BadInput(f'{path.path}: a file of episodes names pictures by their paths, and these are inside; unpack it')
        if variant or turn:
            raise BadInput(f'{episode.where}: shows {path} ' + ('turned' if turn else 'twice, in variants, as its class has too few pictures')
                           + ', and a file of episodes can only name pictures as they are')
        return {'image': os.path.relpath(path, folder), 'prompt': example.prompt}
    support = [entry(e) | {'answer': e.answer} for e in episode.support]
    return {'support': support, 'query': entry(episode.query), 'answer': episode.query.answer, 'choices': episode.choices}


def folder_caption(rng, pairs, shots):
    """The caption of a picture, word for word, after captions of others."""
    k, *rest = chosen = rng.choice(len(pairs), shots + 1, replace=False)
    if len({picture_of(pairs.items[j]) for j in chosen}) <= shots:  # several captions of one picture
        k, *rest = {picture_of(pairs.items[j]): j for j in rng.permutation(len(pairs))}.values()
        rest = rest[:shots]
    return Episode([Example(pairs.media(int(r)), CAPTION_PROMPT, pairs.items[r].text) for r in rest],
                   Example(pairs.media(int(k)), CAPTION_PROMPT, pairs.items[k].text))


# ---------------------------------------------------------------------------------------------
# Episodes in a file


def file_media(path, n_frame=8):
    """A picture, animation or folder of frames on disk, or in a shard (kit.decode.Inside), as Media."""
    return Media(os.path.abspath(str(path)), partial(read_frames, path, n_frame))


def read_episodes(path, report):
    """The episodes of a .jsonl file, in order; None where a line cannot be used, which the report then names.

    {"support": [{"image": "a.png", "prompt": "Output:", "answer": "dax"}, …], "query": {"image": "q.png", "prompt": "Output:"},
    "answer": "dax", "choices": ["dax", "blicket"]}; paths are relative to the file, and without choices the answer is generated.
    """
    folder, episodes, before = os.path.dirname(os.path.abspath(path)), [], report.total
    for number, _, line in read_lines(path, report):
        try:
            episode = read_episode(line, folder, f'{path}:{number}')
            episodes += [None] * (report.total - before) + [episode]  # those left out since the last good one
            before = report.total
        except BadItem as e:
            report.add(e)
    return episodes + [None] * (report.total - before)


def read_episode(line, folder, where):
    """One line (bytes) -> Episode. Raises BadItem."""
    def example(entry, answer):
        image = entry.get('image')
        return Example(None if image is None else file_media(os.path.join(folder, image)), entry['prompt'], answer)

    entry = parse_json(line, where)
    try:
        episode = Episode([example(e, e['answer']) for e in entry['support']], example(entry['query'], entry['answer']),
                          entry.get('choices'), where=where)
        texts = [t for e in [*episode.support, episode.query] for t in (e.prompt, e.answer)] + (episode.choices or [])
        if not all(isinstance(t, str) for t in texts) or not isinstance(episode.choices, list | None):
            raise TypeError('prompts, answers and choices must be text')
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


def usable(episodes, check, report):
    """The episodes that can be asked; the others become None and are reported. check(episode) raises BadItem where a picture
    cannot be read, and BadInput where the prompt is too long."""
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


# ---------------------------------------------------------------------------------------------
# Official files: COCO captions and VQA


def read_json(path, *keys):
    """The lists under these keys of a JSON file. Raises BadInput."""
    with open_file(path, LIMIT_OFFICIAL) as f:
        try:
            content = json.load(f)
        except (ValueError, RecursionError) as e:
            raise BadInput(f'{path}: not JSON ({e})') from e
    try:
        lists = [content[key] for key in keys]
    except (KeyError, TypeError) as e:
        raise BadInput(f'{path}: has no list {keys[0]!r}' if len(keys) == 1 else f'{path}: lacks one of {", ".join(keys)}') from e
    if not all(isinstance(part, list) for part in lists):
        raise BadInput(f'{path}: {" and ".join(keys)} must be lists')
    return lists


def picture_numbers(folder):
    """{image id: path}: the number that a picture's name ends in, as in COCO_val2014_000000000042.jpg. Raises BadInput."""
    if not os.path.isdir(folder):
        raise BadInput(f'--images={folder}: no such folder')
    found = {}
    for name in sorted(os.listdir(folder)):
        number = re.search(r'(\d+)\.\w+$', name)
        if number and is_picture(name):  # '._…42.jpg', which macOS leaves behind, is none
            found.setdefault(int(number[1]), os.path.join(folder, name))
    return found


def read_coco(annotations, images, report):
    """captions_*.json and its folder of pictures -> [(image id, Example, all its captions, where)]. Raises BadInput."""
    entries, said = read_json(annotations, 'images', 'annotations')
    captions, items = {}, []
    for number, a in enumerate(said, 1):
        where = f'{annotations}: annotation {number}'
        try:
            text = check_caption(a.get('caption'), where)
            captions.setdefault(a['image_id'], []).append(text)
        except BadItem as e:
            report.add(e)
        except (KeyError, TypeError, AttributeError) as e:
            report.add(BadItem('not a caption', where, str(e)))
    for number, entry in enumerate(entries, 1):
        where = f'{annotations}: image {number}'
        try:
            if entry['id'] not in captions:
                raise BadItem('no caption', where)
            path = os.path.join(images, os.path.basename(entry['file_name']))  # a stranger's file may name any place
            items.append((entry['id'], Example(file_media(path), CAPTION_PROMPT, captions[entry['id']][0]), captions[entry['id']], where))
        except BadItem as e:
            report.add(e)
        except (KeyError, TypeError) as e:
            report.add(BadItem('not an image', where, str(e)))
    return items


def read_vqa(questions, annotations, images, report):
    """v2_…_questions.json, v2_…_annotations.json and their pictures -> [(question id, Example, all answers, where)]: the example
    has the most frequent of the answers. Raises BadInput."""
    [asked], [answered] = read_json(questions, 'questions'), read_json(annotations, 'annotations')
    pictures, answers, items = picture_numbers(images), {}, []
    for number, a in enumerate(answered, 1):
        try:
            answers[a['question_id']] = [str(one['answer']) for one in a['answers']]
        except (KeyError, TypeError) as e:
            report.add(BadItem('not an annotation', f'{annotations}: annotation {number}', str(e)))
    for number, q in enumerate(asked, 1):
        where = f'{questions}: question {number}'
        try:
            people = answers.get(q['question_id'])
            if not people:
                raise BadItem('no answer', where)
            if q['image_id'] not in pictures:
                raise BadItem('missing', where, f'no picture of image {q["image_id"]}')
            usual = Counter(people).most_common(1)[0][0]
            items.append((q['question_id'], Example(file_media(pictures[q['image_id']]), question_prompt(str(q['question'])), usual), people, where))
        except BadItem as e:
            report.add(e)
        except (KeyError, TypeError) as e:
            report.add(BadItem('not a question', where, str(e)))
    return items


def official_episodes(items, shots, n, seed, pixels, text_examples=2):
    """[(id, Example, what people said, where)] -> [(id, Episode)], n of them (all if 0), in the file's order. Examples are drawn
    from the other pictures, of those that can be read (pixels: kit.features.Pixels); with 0 shots they are text alone."""
    rng, bad = np.random.default_rng(seed), set()

    def readable(media):
        try:
            return media.key not in bad and pixels(media) is not None
        except BadItem:  # who asks about it reports it
            bad.add(media.key)
            return False

    chosen = range(len(items)) if not n or n >= len(items) else sorted(rng.choice(len(items), n, replace=False).tolist())
    wanted, episodes = shots or text_examples, []
    for k in chosen:
        number, query, people, where = items[k]
        support = []
        for j in rng.choice(len(items), min(len(items), 8 * wanted + 16), replace=False):  # more than enough: some are left out
            other = items[j][1]
            if len(support) < wanted and other.media.key != query.media.key and (not shots or readable(other.media)):
                support.append(other)
        if len(support) < wanted and shots:
            raise BadInput(f'{shots} shots need as many other pictures that can be read; of {where} there are {len(support)}')
        episode = Episode(support, query, people=people, where=where)
        episodes.append((number, episode if shots else zero_shot_prompt(episode)))
    return episodes


# ---------------------------------------------------------------------------------------------
# Controls: what did the answer come from?


def blank_frame():
    return [Image.new('RGB', (shapes.SIZE, shapes.SIZE), (128, 128, 128))]


BLANK = Media('blank', blank_frame)


def blank_support(episode, rng=None):
    """Nothing to see in its support pictures. What is left is their text."""
    return replace(episode, support=[replace(e, media=e.media and BLANK) for e in episode.support])


def swap_support(episode, rng):
    """Its support pictures dealt out anew among the examples: which name belongs to what cannot be known any more."""
    order = rng.permutation(len(episode.support))
    return replace(episode, support=[replace(e, media=episode.support[k].media) for e, k in zip(episode.support, order)])


def shuffle_answers(episode, rng):
    """Its names dealt out anew among the kinds of things, the same for all examples of a kind. Who learns from the prompt
    follows: the right answer is now `taught(episode, shuffled)`."""
    names = list(dict.fromkeys(e.answer for e in episode.support))
    return renamed(episode, dict(zip(names, (names[k] for k in rng.permutation(len(names))))))


def rename_answers(episode, rng):
    """New names for all things, in the support, among the choices and for the truth: nothing has changed but the words."""
    old, new = list(dict.fromkeys([*episode.choices, *(e.answer for e in episode.support)])), []
    while len(new) < len(old):
        new += [name for name in shapes.made_up_names(rng, 1, 'held') if name not in old + new]
    names = dict(zip(old, new))
    episode = renamed(episode, names)
    return replace(episode, query=replace(episode.query, answer=names[episode.query.answer]), choices=[names[c] for c in episode.choices])


def blank_query(episode, rng=None):
    """Nothing to see in the picture that is asked about."""
    return replace(episode, query=replace(episode.query, media=episode.query.media and BLANK))


def text_only(episode, rng=None):
    """Its examples as text alone, pictures and tags removed."""
    return replace(episode, support=[replace(e, media=None) for e in episode.support])


CONTROLS = {f.__name__: f for f in (blank_support, swap_support, shuffle_answers, rename_answers, blank_query, text_only)}


def renamed(episode, names):
    """The same examples with other answers: {old: new}"""
    return replace(episode, support=[replace(e, answer=names[e.answer]) for e in episode.support])


def taught(before, after):
    """What the examples of `after` call the thing that the query of `before` asks for."""
    names = {old.answer: new.answer for old, new in zip(before.support, after.support)}
    return names[before.query.answer]
