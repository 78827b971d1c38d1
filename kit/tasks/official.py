"""COCO captions and VQA, as their makers publish them.

    python evaluate.py --coco_annotations=captions_val2014.json --images=val2014 --predictions=captions.json
    python evaluate.py --vqa_questions=Q.json --vqa_annotations=A.json --images=val2014
    --predictions=answers.json
"""
import json
import os
import re
from collections import Counter

import numpy as np

from data import CAPTION_PROMPT, Episode, Example, question_prompt
from kit.files import BadInput, BadItem, open_file, whole_file
from kit.sources.base import check_caption
from kit.sources.decode import is_picture
from kit.tasks.episodes import zero_shot_prompt
from kit.tasks.files import usable_or_fail
from kit.tasks.options import numbers
from kit.tasks.prompts import file_media
from kit.tasks.results import row_of


LIMIT_OFFICIAL = 1 << 30  # bytes of a COCO or VQA file, which is read whole


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
    """{image id: path}: the number that a picture's name ends in, as in COCO_val2014_000000000042.jpg. Raises
    BadInput."""
    if not os.path.isdir(folder):
        raise BadInput(f'--images={folder}: no such folder')
    found = {}
    for name in sorted(os.listdir(folder)):
        number = re.search(r'(\d+)\.\w+$', name)
        if number and is_picture(name):  # '._…42.jpg', which macOS leaves behind, is none
            found.setdefault(int(number[1]), os.path.join(folder, name))
    return found


def read_coco(annotations, images, report):
    """captions_*.json and its folder of pictures -> [(image id, Example, all its captions, where)]. Raises
    BadInput."""
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
    """v2_…_questions.json, v2_…_annotations.json and their pictures -> [(question id, Example, all answers,
    where)]: the example has the most frequent of the answers. Raises BadInput."""
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
    """[(id, Example, what people said, where)] -> [(id, Episode)], n of them (all if 0), in the file's order.
    Examples are drawn from the other pictures, of those that can be read (pixels: kit.features.Pixels); with
    0 shots they are text alone."""
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


def run_official(config, asker, contrastive, report):
    """COCO captions or VQA -> rows; and the predictions in the official results format, one entry for each
    question asked."""
    if not config.images:
        raise BadInput('--images: name the folder of pictures')
    shots = numbers(config, 'shots', (4,))
    if config.predictions and len(shots) > 1:
        raise BadInput(f'--predictions: holds one run; --shots={config.shots} are {len(shots)}')
    rows = []
    if config.coco_annotations:
        file, task, metric, names = config.coco_annotations, 'caption', 'cider', ('image_id', 'caption')
        items = read_coco(config.coco_annotations, config.images, report)
    else:
        file, task, metric, names = config.vqa_questions, 'question', 'vqa_accuracy', ('question_id', 'answer')
        items = read_vqa(config.vqa_questions, config.vqa_annotations, config.images, report)
    n = config.n if 'n' in config.given else 0
    for count in shots:
        asked = official_episodes(items, count, n, config.seed, asker.features.pixels, config.text_examples)
        episodes = usable_or_fail(asker, [e for _, e in asked], report, file)
        good = [e for e in episodes if e is not None]
        answers = asker.answer(good, task)
        rows.append(row_of(metric, task, good, answers, shots=count))
        if config.predictions:  # the servers want an entry for everything asked: what has no answer gets ''
            found = iter(answers)
            said = ['' if e is None else next(found)['prediction'] for e in episodes]
            with whole_file(config.predictions, 'w', encoding='utf-8') as f:
                json.dump([{names[0]: number, names[1]: text} for (number, _), text in zip(asked, said)], f)
    return rows
