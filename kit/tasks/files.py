"""Episodes that people have on disk: .jsonl files, COCO captions and VQA."""
import json
import os
import re
from collections import Counter
from functools import partial

import numpy as np

from data import CAPTION_PROMPT, Episode, Example, Media, question_prompt
from kit.files import BadInput, BadItem, open_file
from kit.sources.base import check_caption, parse_json, read_lines
from kit.sources.decode import Inside, is_picture, read_frames
from kit.tasks.episodes import zero_shot_prompt


LIMIT_OFFICIAL = 1 << 30  # bytes of a COCO or VQA file, which is read whole


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
