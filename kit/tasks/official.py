"""Captions and questions as published: COCO, Karpathy's splits; VQAv2, OK-VQA, TextVQA, VizWiz.

    python evaluate.py --coco_annotations=captions_val2014.json --images=coco
    python evaluate.py --coco_annotations=dataset_coco.json --images=coco --shots=4
    python evaluate.py --vqa_questions=Q.json --vqa_annotations=A.json --train_questions=TQ.json --images=coco

The examples of a prompt come from the training split, as in the paper. Where that is not given, nothing is
shown but the query: only a file that is named as --train_captions or --train_questions gives examples, be it
the evaluated one.
"""
import json
import os
from dataclasses import dataclass

import numpy as np

from data import CAPTION_PROMPT, Example, question_prompt
from kit.episode import Episode
from kit.files import BadInput, BadItem, read_json, whole_file
from kit.sources.annotations import answers_of, read_questions
from kit.sources.base import check_caption, LIMIT_JSON, split_of, usual_answer
from kit.sources.decode import is_picture
from kit.sources.finding import Finder, given_path
from kit.tasks.episodes import zero_shot_prompt
from kit.tasks.files import usable_or_fail
from kit.tasks.metrics import CAPTIONS
from kit.tasks.options import numbers
from kit.tasks.prompts import file_media
from kit.tasks.results import row_of, warn_few


@dataclass
class Asked:
    """What a file asks about one picture. number: its id in the official results; example: the query with the
    usual answer, or None where there is no picture; people: all answers; where: file and number; split: ''
    for none."""
    number: object
    example: Example | None
    people: list
    where: str
    split: str = ''


class Pictures:
    """The pictures of a folder by name or id: a path, or None where there is none, which the report counts,
    once for each picture. Raises BadInput where there is no such folder."""

    def __init__(self, folder, report):
        folder = given_path(folder)
        if not os.path.isdir(folder):
            raise BadInput(f'--images={folder}: no such folder')
        self.find, self.report = Finder(folder), report

    def __call__(self, name):
        return self.or_none(self.find, name)

    def by_id(self, number, hint=''):
        return self.or_none(self.find.by_id, number, hint)

    def or_none(self, find, *names):
        try:
            return find(*names)
        except BadItem as e:
            self.report.add(e)
            return None


# ---------------------------------------------------------------------------------------------
# Captions


def read_captions(file, images, report, media=file_media):
    """captions_*.json of COCO, or dataset_*.json with Karpathy's splits -> [Asked]. images: the folder of
    pictures; media: path -> Media. What is wrong goes into the report. Raises BadInput."""
    content = read_json(file, LIMIT_JSON)
    entries = content.get('images') if isinstance(content, dict) else None
    said = content.get('annotations', []) if isinstance(content, dict) else None
    if not isinstance(entries, list) or not isinstance(said, list):
        raise BadInput(f'{file}: has no list "images", or its "annotations" are none')
    captions, find, items = {}, Pictures(images, report), []
    for number, entry in enumerate(said, 1):
        where = f'{file}: annotation {number}'
        try:
            captions.setdefault(entry['image_id'], []).append(check_caption(entry.get('caption'), where))
        except BadItem as e:
            report.add(e)
        except (KeyError, TypeError, AttributeError) as e:
            report.add(BadItem('not a caption', where, str(e)))
    for position, entry in enumerate(entries, 1):
        where = f'{file}: image {position}'
        try:
            items.append(captioned(entry, captions, find, where, media))
        except BadItem as e:
            report.add(e)
        except (KeyError, TypeError, AttributeError) as e:
            report.add(BadItem('not an image', where, str(e)))
    return items


def captioned(entry, captions, find, where, media):
    """One of "images" -> Asked. captions: {image id: [caption]} of COCO; Karpathy's stand in the entry
    itself."""
    if 'sentences' in entry:
        number = entry.get('cocoid', entry.get('imgid', entry['filename']))
        people = [check_caption(s['raw'], where) for s in entry['sentences']]
        path = find(os.path.join(entry.get('filepath', ''), entry['filename']))
    else:
        number, people = entry['id'], captions.get(entry['id'])
        path = find(entry['file_name']) if people else None
    if not people:
        raise BadItem('no caption', where)
    example = path and Example(media(path), CAPTION_PROMPT, people[0])
    split = entry.get('split', '')
    return Asked(number, example, people, where, split_of(split) or split)


# ---------------------------------------------------------------------------------------------
# Questions


def read_vqa(questions, annotations, images, report, media=file_media):
    """A published file of questions, and the one with its answers or '' -> [Asked]: the example has the most
    frequent of the answers, '' where there are none. images: the folder of pictures. Raises BadInput."""
    items = []
    for q in read_questions(questions, annotations, Pictures(images, report), report):
        usual = usual_answer(q.answers) or ''
        example = q.path and Example(media(q.path), question_prompt(q.question), usual)
        items.append(Asked(q.number, example, q.answers, q.where))
    return items


# ---------------------------------------------------------------------------------------------
# Episodes


def official_episodes(asked, pool, shots, seed, pixels, text_examples=2):
    """[Asked], all with a picture -> [Episode].

    pool: the [Asked] that examples are drawn from, those of other pictures that can be read (pixels:
    kit.features.Pixels); with 0 shots they are text alone. For any number of shots the same is asked, and a
    short prompt's examples are among those of a long one. Raises BadInput where the pool is too small.
    """
    bad = set()

    def readable(media):
        try:
            return media.key not in bad and pixels(media) is not None
        except BadItem:  # where it is asked about, it is reported
            bad.add(media.key)
            return False

    wanted, episodes = shots or (text_examples if pool else 0), []
    for i, item in enumerate(asked):
        rng, support = np.random.default_rng([seed, i]), []
        for j in drawn(rng, len(pool)):
            if len(support) == wanted:
                break
            other = pool[j].example
            if other.media.key != item.example.media.key and (not shots or readable(other.media)):
                support.append(other)
        if len(support) < wanted and shots:
            raise BadInput(f'{shots} shots need as many other pictures that can be read; for {item.where} '
                           f'there are {len(support)}')
        episode = Episode(support, item.example, people=item.people or None, where=item.where)
        episodes.append(episode if shots else zero_shot_prompt(episode))
    return episodes


def drawn(rng, n):
    """The numbers below n in random order, one after the other; most callers need a few of many."""
    seen = set()
    for _ in range(n // 2):
        k = int(rng.integers(n))
        if k not in seen:
            seen.add(k)
            yield k
    yield from (k for k in rng.permutation(n).tolist() if k not in seen)


# ---------------------------------------------------------------------------------------------
# What evaluate.py calls


def open_captions(config, media, report):
    """-> ([Asked], the [Asked] that examples come from, none where nobody said from where)"""
    items = read_captions(config.coco_annotations, config.images, report, media)
    pool = []
    if any(item.split for item in items):  # Karpathy's: the test split is asked, train gives examples
        wanted = split_of(config.split) or config.split or 'test'
        pool, items = ([i for i in items if i.split == split] for split in ('train', wanted))
        if not items:
            raise BadInput(f'{config.coco_annotations}: has no split {wanted!r}')
    if config.train_captions:
        pool = read_captions(config.train_captions, config.train_images or config.images, report, media)
        pool = [item for item in pool if item.split in ('train', '')]
    return items, pool


def open_questions(config, media, report):
    """-> ([Asked], the [Asked] that examples come from, none where nobody said from where)"""
    items = read_vqa(config.vqa_questions, config.vqa_annotations, config.images, report, media)
    if not config.train_questions:
        return items, []
    answers = config.train_annotations or answers_of(given_path(config.train_questions)) or ''
    images = config.train_images or config.images
    pool = read_vqa(config.train_questions, answers, images, report, media)
    if not any(item.people for item in pool):
        raise BadInput(f'{config.train_questions}: no question has an answer; '
                       '--train_annotations=FILE names them')
    return items, pool


def chosen(items, config):
    """What is asked: all, or --n of those that have a picture."""
    there = [k for k, item in enumerate(items) if item.example]
    if not there:
        raise BadInput(f'--images={config.images}: holds none of the pictures that are asked about')
    if 'n' not in config.given or config.n >= len(there):
        return items
    order = np.random.default_rng(config.seed).permutation(there)[:config.n]
    return [items[k] for k in sorted(order.tolist())]


def shots_of(config, pool):
    """--shots -> [int]. Raises BadInput where examples are wanted, and nobody said from where."""
    shots = numbers(config, 'shots', (4,) if pool else (0,))
    if max(shots) and not pool:
        key, file = 'train_captions', config.coco_annotations
        if config.vqa_questions:
            key, file = 'train_questions', config.vqa_questions
        raise BadInput(f'--shots={config.shots}: --{key}=FILE names the training split, for examples; '
                       f'--{key}={file} takes them from the questions asked, never of the same picture')
    if config.predictions and len(shots) > 1:
        raise BadInput(f'--predictions: holds one run; --shots={config.shots} are {len(shots)}')
    return shots


def run_official(config, asker, contrastive, report):
    """COCO captions or VQA -> rows; and the predictions in the official results format, an entry for each
    question asked. Without published answers there are predictions only."""
    if not config.images:
        raise BadInput('--images: name the folder of pictures')
    file, task, metrics, open_file = config.vqa_questions, 'question', ['vqa_accuracy'], open_questions
    if config.coco_annotations:
        file, task, metrics, open_file = config.coco_annotations, 'caption', CAPTIONS, open_captions
    items, pool = open_file(config, asker.media, report)
    pool = [item for item in pool if item.example and item.people]
    asked, shots, rows = chosen(items, config), shots_of(config, pool), []
    there = [item for item in asked if item.example]
    scored = any(item.people for item in there)
    if not scored and not config.predictions:
        raise BadInput(f'{file}: no answers to compare with; --predictions=FILE writes what is said')
    for count in shots:
        made = official_episodes(there, pool, count, config.seed, asker.features.pixels, config.text_examples)
        good = [e for e in usable_or_fail(asker, made, report, file) if e is not None]
        said = dict(zip([e.where for e in good], asker.answer(good, task)))
        if scored:
            known = [e for e in good if e.people]
            for metric in metrics:
                warn_few(metric, known)
                rows.append(row_of(metric, task, known, [said[e.where] for e in known], shots=count))
        if config.predictions:
            write_official(config.predictions, asked, said, task)
    return rows


def write_official(path, asked, said, task):
    """Predictions as the servers take them. They want an entry for everything asked: what has no answer gets
    ''."""
    entries = []
    for item in asked:
        number, answer = ('image_id', 'caption') if task == 'caption' else ('question_id', 'answer')
        if isinstance(item.number, str) and is_picture(item.number):  # VizWiz asks one question of a picture
            number = 'image'
        prediction = said[item.where]['prediction'] if item.where in said else ''
        entries.append({number: item.number, answer: prediction})
    with whole_file(path, 'w', encoding='utf-8') as f:
        json.dump(entries, f)
    print(f'{path}: {len(entries)} predictions')
