"""Folders with a list of captions, class folders, COCO captions."""
import filecmp
import glob
import json
import os
import re
from collections import Counter
from dataclasses import dataclass

from kit.files import BadInput, BadItem
from kit.sources.base import check_caption, Item, LIMIT_LINE, locate, parse_json, read_lines, SPLITS
from kit.sources.decode import FFMPEG, is_picture, is_video, natural


RECOGNISED = ('a folder with metadata.jsonl (lines of {"file_name": ..., "text": ...}), a folder of class folders that hold '
              'pictures, .tar shards of pairs (key.jpg + key.txt or key.json), captions_*.json (COCO, with --images=DIR), '
              'documents.jsonl, or a folder of .html pages')


# ---------------------------------------------------------------------------------------------
# Opening what is on disk

@dataclass
class Classes:
    """How class folders are read. depth: how many folder names make a class, its own and those before it (0: all of them); rotate:
    each class comes four times, upright and turned by 90, 180 and 270 degrees, as four classes; held: groups (folders that class
    folders lie in) that make the split `val`, several with commas."""
    depth: int = 0
    rotate: bool = False
    held: str = ''


def check_folder(path):
    """Raises BadInput unless path is a folder with something in it."""
    if not os.path.exists(path):
        raise BadInput(f'{path}: no such folder')
    if is_video(path):
        raise BadInput(f'{path}: a video; {FFMPEG}, and name them in a metadata.jsonl')
    if not os.path.isdir(path):
        raise BadInput(f'{path}: not a folder; recognised are {RECOGNISED}')
    try:
        if not os.listdir(path):
            raise BadInput(f'{path}: the folder is empty; recognised are {RECOGNISED}')
    except OSError as e:
        raise BadInput(f'{path}: {e.strerror}') from e


# Format 1: metadata.jsonl (Hugging Face ImageFolder)

def find_metadata(root):
    """[(metadata.jsonl, split or None)]: the folder's own, or else one in each of its split folders."""
    if os.path.basename(root) == 'metadata.jsonl':
        root = os.path.dirname(root)
    places = [(os.path.join(root, 'metadata.jsonl'), None)]
    places += [(os.path.join(root, split, 'metadata.jsonl'), split) for split in SPLITS]
    found = [place for place in places if os.path.isfile(place[0])]
    return found[:1] if found and found[0][1] is None else found


def read_metadata(file, split, report):
    """metadata.jsonl -> list of Items; bad lines go into the report. Raises BadInput if it cannot be opened."""
    items, root = [], os.path.realpath(os.path.dirname(file))
    for number, _, line in read_lines(file, report):
        where = f'{file}:{number}'
        try:
            items.append(read_line(line, root, split, where))
        except BadItem as e:
            report.add(BadItem(e.kind, where, e.message))
    return items


def read_line(line, root, split, where):
    """One line of metadata.jsonl (bytes) -> Item. Raises BadItem."""
    fields = parse_json(line, where)
    name, text = fields.get('file_name'), check_caption(fields.get('text'), where)
    if not isinstance(name, str) or not name:
        raise BadItem('no file_name', where)
    in_split = fields.get('split') or split or 'train'
    if not isinstance(in_split, str):
        raise BadItem('bad split', where, repr(in_split))
    return Item(locate(root, name), text, in_split, text, where)


# Format 2: class folders (torchvision ImageFolder)

def find_classes(root, report):
    """[(split, class folder as a tuple of names, picture), ...] of all pictures that lie in some folder below root.
    Raises BadInput where a metadata.jsonl lies among them."""
    root = os.path.realpath(root)
    found, folders = [], [()]
    while folders:
        parts = folders.pop()
        try:
            entries = sorted(os.scandir(os.path.join(root, *parts)), key=lambda entry: natural(entry.name))
        except OSError as e:
            report.add(BadItem('unreadable', os.path.join(root, *parts), e.strerror))
            continue
        for entry in entries:
            if entry.name.startswith('.'):
                continue
            if entry.name == 'metadata.jsonl':  # or every picture would be captioned "images"
                raise BadInput(f'{root}: the metadata.jsonl is further down; open {os.path.dirname(entry.path)} instead')
            if entry.is_dir(follow_symlinks=False):
                folders.append(parts + (entry.name,))
            elif is_picture(entry.name) or is_video(entry.name) or os.path.isdir(entry.path):  # the last is a link to a folder
                try:
                    if is_video(entry.name):
                        raise BadItem('a video', entry.path, FFMPEG)
                    if entry.is_symlink() or not entry.is_file():
                        locate(root, os.path.join(*parts, entry.name))
                    if entry.is_file():  # a folder that lies in here is read where it lies
                        found.append((parts, entry.path))
                except BadItem as e:
                    report.add(e)
    # train/ and val/ are splits if they hold class folders and stand together or alone. A 'train' between 'bus' and
    # 'tram' is a train.
    tops = {parts[0] for parts, _ in found if parts}
    splits = {top for top in tops if top in SPLITS}
    if splits != tops and len(splits) == 1 or any(parts[0] in splits for parts, _ in found if len(parts) == 1):
        splits = set()
    if splits:
        found = [(parts[0], parts[1:], path) if parts and parts[0] in splits else (None, (), path) for parts, path in found]
    else:
        found = [('train', parts, path) for parts, path in found]
    classes = [(split, parts, path) for split, parts, path in found if parts]
    for _, parts, path in found if classes else []:
        if not parts:
            report.add(BadItem('in no class folder', path))
    return classes


def class_items(pictures, classes):
    """[(split, class folder as a tuple of names, picture), ...] -> list of Items, read as `classes` says. Raises BadInput."""
    if classes.depth:
        if shallow := next((file for _, parts, file in pictures if len(parts) < classes.depth), None):
            raise BadInput(f'--class_depth={classes.depth}: {shallow} lies less deep')
        pictures = same_once([(split, parts[-classes.depth:], file) for split, parts, file in pictures])
    held = {name.strip() for name in classes.held.split(',')} - {''}
    if unknown := held - {parts[-2] for _, parts, _ in pictures if len(parts) > 1}:
        there = sorted({parts[-2] for _, parts, _ in pictures if len(parts) > 1})
        raise BadInput(f'--held_groups={classes.held}: no class folders lie in {min(unknown)!r}; there is {", ".join(there) or "nothing to hold out"}')
    captions, items = name_classes({parts for _, parts, _ in pictures}), []
    for turn in range(4 if classes.rotate else 1):
        said = f' turned {90 * turn}' if turn else ''
        for split, parts, file in pictures:
            is_held = len(parts) > 1 and parts[-2] in held
            if not (turn and (is_held or split != 'train')):  # what is asked about stands upright
                name = captions[parts] + said
                items.append(Item(file, name, 'val' if is_held else split, name, file, ' '.join(parts[:-1]) + said, turn))
    return items


def same_once(pictures):
    """Without the copies of a picture in its own class: an alphabet may have been packed twice."""
    seen, kept = {}, []
    for split, parts, file in pictures:
        twins = seen.setdefault((parts, os.path.basename(file)), [])
        if not any(filecmp.cmp(file, twin, shallow=False) for twin in twins):
            twins.append(file)
            kept.append((split, parts, file))
    return kept


def name_classes(classes):
    """{class folder (tuple of names): caption}. The caption is the folder's own name, with as many parents before
    it as it takes to tell it from another class: birds/crane and machines/crane."""
    depth = dict.fromkeys(classes, 1)
    while True:
        captions = {parts: ' '.join(spell(part) for part in parts[-n:]) for parts, n in depth.items()}
        count = Counter(captions.values())
        same = [parts for parts in classes if count[captions[parts]] > 1 and depth[parts] < len(parts)]
        if not same:
            return captions  # what still reads the same, hot_dog and hot-dog, is the same
        for parts in same:
            depth[parts] += 1


def spell(name):
    """A folder's name as words."""
    name = os.fsencode(name).decode('utf-8', 'replace')  # a name on disk need not be text
    return ' '.join(name.replace('_', ' ').replace('-', ' ').split()) or name


# Format 3: captions_*.json (COCO); format 4, .tar shards, is in kit/shards.py

def find_coco(root):
    """[(captions file, split)] of such a file, or of a folder of them: captions_train2017.json holds the training split."""
    files = [root] if root.endswith('.json') and os.path.isfile(root) else []
    if os.path.isdir(root):
        files = sorted(glob.glob(os.path.join(glob.escape(root), 'captions_*.json')))
    found = [(file, next((split for split in SPLITS if os.path.basename(file).startswith('captions_' + split)), None)) for file in files]
    return found if os.path.isdir(root) else [(file, None) for file, _ in found]


def read_coco(file, images, split, report):
    """captions_*.json -> list of Items, one a caption; several belong to the same picture. Raises BadInput."""
    if not os.path.isdir(images):
        raise BadInput(f'--images={images}: no such folder')
    # COCO keeps captions_train2017.json's pictures in train2017/, and does not say so.
    places = [os.path.realpath(images), os.path.realpath(os.path.join(images, os.path.basename(file)[:-len('.json')].removeprefix('captions_')))]
    paths, items = {}, []  # picture's id -> path, or what is wrong with it
    for entry in json_array(file, 'images'):
        number, name = (entry.get('id'), entry.get('file_name')) if isinstance(entry, dict) else (None, None)
        if isinstance(number, (int, str)) and isinstance(name, str) and name:
            for place in places:
                try:
                    paths[number] = locate(place, name)
                    break
                except BadItem as e:
                    paths.setdefault(number, e)
    for position, entry in enumerate(json_array(file, 'annotations')):
        entry = entry if isinstance(entry, dict) else {}
        where = f'{file}: annotation {entry.get("id", f"number {position}")}'
        number = entry.get('image_id')
        path = paths.get(number) if isinstance(number, (int, str)) else None
        try:
            text = check_caption(entry.get('caption'), where)
            if path is None:
                raise BadItem('no such image id', where)
            if isinstance(path, BadItem):
                raise BadItem(path.kind, path.where)
            items.append(Item(path, text, split or 'train', text, where))
        except BadItem as e:
            report.add(BadItem(e.kind, where, e.where))
    return items


def json_array(file, key):
    """The elements of the array `key` of the JSON object in a file, one after the other: COCO's captions are 90 MB, and as
    Python objects many times that. Raises BadInput."""
    decoder, text, at = json.JSONDecoder(), '', 0

    def more():
        nonlocal text, at
        chunk = f.read(1 << 20)
        text, at = text[at:] + chunk, 0
        return bool(chunk)

    def peek():  # the next character that is no space
        nonlocal at
        while True:
            at = re.compile(r'[ \t\r\n]*').match(text, at).end()
            if at < len(text) or not more():
                return text[at:at + 1]

    def take(character):
        nonlocal at
        if peek() != character:
            raise ValueError(f'{character!r} expected, found {text[at:at + 20]!r}')
        at += 1

    def value():
        nonlocal at
        peek()
        while True:
            try:
                result, end = decoder.raw_decode(text, at)
                if end < len(text) or not more():  # a number may go on in the next chunk
                    at = end
                    return result
            except ValueError:
                if len(text) - at > LIMIT_LINE or not more():
                    raise

    try:
        with open(file, encoding='utf-8-sig') as f:
            take('{')
            while peek() != '}':
                name = value()
                take(':')
                if peek() == '[':
                    take('[')
                    while peek() != ']':
                        element = value()
                        if name == key:
                            yield element
                        if peek() != ']':
                            take(',')
                    take(']')
                else:
                    value()
                if peek() != '}':
                    take(',')
    except OSError as e:
        raise BadInput(f'{file}: {e.strerror}') from e
    except (ValueError, RecursionError) as e:
        raise BadInput(f'{file}: not a captions file: {e}') from e
