"""Pictures of a folder, described: right to the letter, near it, or of the right kind at least.

    python evaluate.py --captions=my_pictures --split=val

Known things, which training has called by these words, stand apart from new ones: a new thing's caption can
hardly be right to the letter, but CIDEr and the category (a list's column `category`, or the folder that a
class folder lies in) say whether what is said is near.
"""
import os
from dataclasses import replace
from itertools import zip_longest

import numpy as np

from data import CAPTION_PROMPT, Example
from kit.episode import Episode, plain
from kit.files import BadInput
from kit.show import canvas
from kit.sources.base import split_of
from kit.tasks.files import usable_or_fail
from kit.tasks.options import numbers
from kit.tasks.results import row, row_of
from kit.tasks.tables import sheet

MOST_SHOWN = 12  # captions in the picture, of right ones and of wrong ones


def asked_and_shown(pairs, items, split):
    """-> (numbers of the items asked about, each picture once; numbers of the captions of the split train).
    split: what is asked about; '' for whatever is not `train`. Raises BadInput where nothing is."""
    captions = [k for k, item in enumerate(items) if not item.prompt]
    asked = {}
    for k in captions:
        if items[k].split == split if split else items[k].split != 'train':
            asked.setdefault((items[k].path, items[k].turn), k)
    if not asked:
        raise BadInput(f'{pairs.name}: no captions to ask about; there is {pairs.splits}')
    return list(asked.values()), [k for k in captions if items[k].split == 'train']


def caption_episode(pairs, k, support, people):
    """Item k -> an Episode. support: numbers of the items shown before it; people: all captions of item k."""
    query, *shown = (Example(pairs.media(j), CAPTION_PROMPT, pairs.items[j].text) for j in (k, *support))
    right = set(map(plain, people))
    return Episode(shown, query, check=lambda text: plain(text) in right, people=people,
                   where=pairs.items[k].where or pairs.items[k].path)


def category_row(name, items, answers, known, shots):
    """How often what is said is the caption of a known thing of the picture's category -> [row]; [] where
    nothing has a category. known: {plain caption: category} of known things"""
    right = [known.get(plain(a['prediction'])) == category for item, a in zip(items, answers)
             if (category := item.category or item.group)]
    return [row(name, sum(right) / len(right), len(right), shots=shots, metric='category')] if right else []


def run_captions(config, asker, contrastive, report):
    """--captions=DIR -> rows, and captions.png: right ones and wrong ones side by side"""
    pairs = asker.pairs(config.captions, report, images=config.images, class_depth=config.class_depth,
                        held_groups=config.held_groups, held_share=asker.held_share)
    items = list(pairs.items)  # once: those of shards are read from the disk each time
    asked, shown = asked_and_shown(pairs, items, split_of(config.split) or config.split)
    asked = np.random.default_rng(config.seed).permutation(asked).tolist()
    asked = asked[:config.n] if 'n' in config.given else asked
    known = {plain(items[k].text): items[k].category or items[k].group for k in shown}
    people = {}
    for item in items:
        if not item.prompt:  # an answer to a question is no caption
            people.setdefault((item.path, item.turn), []).append(item.text)
    rows, answered = [], []
    for shots in numbers(config, 'shots', (0,)):
        if shots > len(shown):
            raise BadInput(f'--shots={shots}: there are {len(shown)} examples in the split train')
        made = []
        for k in asked:
            support = np.random.default_rng([config.seed, k]).permutation(shown)[:shots].tolist()
            made.append(caption_episode(pairs, k, support, people[items[k].path, items[k].turn]))
        kept = usable_or_fail(asker, made, report, config.captions)
        both = [(items[k], e) for k, e in zip(asked, kept) if e is not None]
        for name, is_known in (('caption, known things', True), ('caption, new things', False)):
            part = [(item, e) for item, e in both if any(plain(t) in known for t in e.people) == is_known]
            if not part:
                continue
            pictured, episodes = zip(*part)
            answers = asker.answer(episodes, name)
            answered += zip(episodes, answers)
            rows += [row_of(metric, name, episodes, answers, shots=shots) for metric in ('accuracy', 'cider')]
            rows += category_row(name, pictured, answers, known, shots)
    canvas.save(right_and_wrong(answered), os.path.join(config.out_dir, 'captions.png'))
    return rows


def right_and_wrong(answered):
    """[(Episode, answer)] -> one picture, right captions to the left and wrong ones to the right"""
    right = [(e, a) for e, a in answered if a['correct']][:MOST_SHOWN]
    wrong = [(e, a) for e, a in answered if not a['correct']][:MOST_SHOWN]
    pairs = [x for two in zip_longest(right, wrong) for x in two if x is not None]
    shown = [('', replace(e, support=[]).document(), a) for e, a in pairs]
    return sheet(shown, 4, 'captions: right ones green; wrong ones red (what people say)')
