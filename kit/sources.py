"""Reading what people have on disk, whatever state it is in.

    open_path(path)  ──►  Pairs: a list of (picture, caption)  ──►  Pages (kit/fewshot.py): few-shot pages made of them
        │   │                 │ document(i, rng)                       │ document(i, rng), text(i, rng)
        │   │                 ▼                                        ▼
        │   │             Document([Media, 'a red ring'])       Document([Media, 'Output:', ' dax', Media, ...])
        │   └───────────►  WebPages (kit/pages.py): pages that somebody wrote, texts and pictures in their order
        ▼
      Report: what was left out

Opening a source reads names and captions only, and keeps where a picture is rather than the picture: memory stays flat,
and any item can be had by its number. Pictures are decoded when their Media is loaded (kit/decode.py). A stranger's data
holds anything, so there are two kinds of trouble: the user pointed at the wrong thing (BadInput, one line), or a single
item is damaged (BadItem, which is counted and skipped).
"""
import filecmp
import glob
import itertools
import json
import os
import re
import stat
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from data import Document
from kit.configurator import BadInput, BadItem, one_line, open_file
from kit.decode import FFMPEG, is_picture, is_video, media_of, natural
from kit.fewshot import Pages

RECOGNISED = ('a folder with metadata.jsonl (lines of {"file_name": ..., "text": ...}), a folder of class folders that hold '
              'pictures, .tar shards of pairs (key.jpg + key.txt or key.json), captions_*.json (COCO, with --images=DIR), '
              'documents.jsonl, or a folder of .html pages')

SPLITS = ('train', 'val', 'valid', 'validation', 'test')  # what a top-level folder is called when it is a split

# Bounds, so that no file can fill the memory or take for ever.
LIMIT_LINE = 8 << 20    # bytes of one line of metadata.jsonl and documents.jsonl
LIMIT_TEXT = 1 << 20    # bytes of one caption
LIMIT_LIST = 1 << 40    # bytes of a whole metadata.jsonl, which is read line by line

BLOCK = 64  # documents of a mix that change places among themselves


# ---------------------------------------------------------------------------------------------
# Pictures with captions

class Report:
    """What was left out of a source: how many items of each kind, and where the first few are.

    The same thing at the same place counts once, however many epochs come across it.
    """

    def __init__(self):
        self.count, self.where, self.seen = Counter(), {}, set()

    def add(self, bad_item):
        if (this := hash((bad_item.kind, bad_item.where))) in self.seen:
            return
        self.seen.add(this)
        self.count[bad_item.kind] += 1
        self.where[bad_item.kind] = (self.where.get(bad_item.kind, []) + [bad_item.where])[:3]

    def add_report(self, other):
        self.count += other.count
        self.seen |= other.seen
        for kind, places in other.where.items():
            self.where[kind] = (self.where.get(kind, []) + places)[:3]

    @property
    def total(self):
        return sum(self.count.values())

    def as_dict(self):
        """{kind: count}"""
        return dict(self.count)

    def lines(self):
        """['missing: 5 (a.jsonl:3, a.jsonl:8, a.jsonl:9, ...)'], the most frequent kind first."""
        return [one_line(f'{kind}: {n} ({", ".join(self.where[kind])}{", ..." if n > len(self.where[kind]) else ""})'
                         + (f'; {FFMPEG}' if kind == 'a video' else '')) for kind, n in self.count.most_common()]


class Epochs:
    """Which of n things is number i of an endless stream: each epoch runs through all of them once, in its own order.

    *Why no shuffle buffer:* things are addressed by number, so a permutation of the numbers mixes the whole source rather
    than a buffer's worth of it, a position to resume at is one number, and any split of the numbers over ranks or workers
    shows each thing once an epoch, whoever asks and in whatever order. It costs 8 bytes a thing, and reads on disk that
    jump, which only a spinning one minds.
    """

    def __init__(self, n, seed):
        self.n, self.seed = n, seed
        self.last = (-1, None)  # the last permutation, only to save time

    def __call__(self, i):
        epoch, k = divmod(i, self.n)
        if self.last[0] != epoch:
            self.last = (epoch, np.random.default_rng([self.seed, epoch]).permutation(self.n))
        return int(self.last[1][k])


@dataclass(slots=True)
class Item:
    """A picture or clip on disk (absolute path, or an Inside) and its caption. label: what makes two items the same thing;
    group: what classes belong together, the folder that a class folder lies in (None: of no class folder); turn: quarter turns to the left."""
    path: str
    text: str
    split: str = 'train'
    label: str = ''
    where: str = ''
    group: str | None = None
    turn: int = 0


class Pairs:
    """A finite list of (picture, caption), served in a new order every epoch.

    n_variant: in how many variants `document` shows each picture, 1 being the plain one only; flip: whether a
    variant may be a mirror image; report: what was left out on the way here. Raises BadInput if there are no items.
    """

    def __init__(self, items, name, n_frame=8, n_variant=1, seed=0, flip=False, report=None):
        if not items:
            raise BadInput(f'{name}: no items')
        self.items, self.name, self.n_frame, self.n_variant = items, name, n_frame, n_variant
        self.seed, self.flip, self.report = seed, flip, report or Report()
        self.order = Epochs(len(items), seed)

    def __len__(self):
        return len(self.items)

    def split_names(self):
        """The split of each item."""
        if isinstance(self.items, list):
            return [item.split or 'train' for item in self.items]
        return self.items.splits  # of kit.shards.TarItems: known without reading their captions

    @property
    def splits(self):
        """{split: number of items}"""
        return dict(Counter(self.split_names()))

    def split(self, name):
        """Pairs of the items of one split. Raises BadInput, naming the splits there are."""
        kept = [k for k, split in enumerate(self.split_names()) if split == name]
        if not kept:
            there = ', '.join(f'{split} ({n})' for split, n in self.splits.items())
            raise BadInput(f"{self.name}: no split '{name}'; there is {there}")
        return self.take(kept)

    def take(self, kept):
        """Pairs of the items of these numbers."""
        items = [self.items[k] for k in kept] if isinstance(self.items, list) else self.items.take(kept)
        return Pairs(items, self.name, self.n_frame, self.n_variant, self.seed, self.flip, self.report)

    def media(self, i, variant=0):
        """Item i as Media. Raises BadItem when the file has gone since the source was opened."""
        return media_of(self.items[i].path, self.n_frame, variant, self.flip, self.items[i].turn)

    def at(self, k, variant=0):
        """Item k as a Document."""
        item = self.items[k]
        return Document([self.media(k, variant), item.text], kind='pair', where=item.where)

    def document(self, i, rng):
        """Document number i, counted over epochs; it depends on `seed` and i, its variant on rng (numpy Generator)."""
        return self.at(self.order(i), int(rng.integers(self.n_variant)))


def readable_pairs(pairs, pixels, report):
    """The Pairs whose pictures can be read; what cannot is in the report. pixels: kit.features.Pixels. Raises BadInput if there
    are none."""
    good = []
    for i, item in enumerate(pairs.items):
        try:
            pixels(pairs.media(i))
            good.append(item)
        except BadItem as e:
            report.add(e)
    if not good:
        raise BadInput(f'{pairs.name}: no picture can be read: ' + '; '.join(report.lines()))
    return Pairs(good, pairs.name, pairs.n_frame, pairs.n_variant, pairs.seed, pairs.flip, pairs.report)


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


def open_path(path, n_frame=8, seed=0, split='train', n_variant=1, flip=False, images='', classes=Classes()):
    """Whatever is at `path` -> Pairs, or WebPages where it holds pages. Raises BadInput."""
    from kit import pages
    if pages.is_pages(path):
        return pages.open_pages(path, n_frame, seed, images)
    return open_folder(path, n_frame, seed, split, n_variant=n_variant, flip=flip, images=images, classes=classes)


def open_folder(path, n_frame=8, seed=0, split='train', report=None, n_variant=1, flip=False, images='', classes=Classes()):
    """A folder, a .tar shard, a glob of shards or a COCO captions file -> Pairs of one split (every split if None). Its
    format is told by what is on disk.

    path: one of these, or a list of them that make one source; images: the folder of the pictures that a COCO file
    names. What was left out is in the `report` of the result, and added to the Report given here, if any. Raises
    BadInput when a folder is missing, empty or none of RECOGNISED, when more than half of the items are bad, and when
    there is no such split.
    """
    from kit.pages import is_pages
    from kit.shards import find_tars, read_tars
    roots = [os.fspath(root) for root in ([path] if isinstance(path, (str, os.PathLike)) else path)]
    name = ' + '.join(roots)
    here, items, pictures = Report(), [], []
    for root in roots:
        before = here.total
        if is_pages(root):
            raise BadInput(f'{root}: holds pages; pairs of a picture and its caption are wanted here')
        if found := find_metadata(root):
            for file, folder_split in found:
                items += read_metadata(file, folder_split, here)
        elif found := find_tars(root, here):
            shards = read_tars(found, here)
            items = items + list(shards) if len(roots) > 1 else shards
        elif found := find_coco(root):
            for file, file_split in found:
                items += read_coco(file, images or os.path.dirname(file) or '.', file_split, here)
        else:
            check_folder(root)
            found = find_classes(root, here)
            if not found and here.total == before:
                raise BadInput(f'{root}: nothing here that can be read; recognised are {RECOGNISED}')
            pictures += found
    # Only now: the same class may be under several roots, and two classes under different roots must not share a name.
    if pictures:
        items = items + class_items(pictures, classes)

    bad = here.total
    if bad > len(items):  # one damaged file is bad luck; most of them are a mistake, and training would hide it
        hint = '' if images or not find_coco(roots[0]) else ' (--images=DIR says where its pictures are)'
        raise BadInput(f'{name}: {bad} of {bad + len(items)} items cannot be used: ' + '; '.join(here.lines()) + hint)
    if report is not None:
        report.add_report(here)
    pairs = Pairs(items, name, n_frame, n_variant, seed, flip, here)
    return pairs if split is None else pairs.split(split)


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


def locate(root, name):
    """The real path of `name` in the folder `root` (itself a real path). Raises BadItem when it is not there, or
    leads out of it: a downloaded list must not be able to show us other files of this machine."""
    path = os.path.join(root, name)
    try:
        real = os.path.realpath(path)  # links and '..' resolved
        if os.path.isabs(name) or not real.startswith(os.path.join(root, '')):
            raise BadItem('outside the folder', path)
        mode = os.stat(real).st_mode
    except (OSError, ValueError) as e:  # ValueError: names that no file can have
        raise BadItem('missing', path) from e
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise BadItem('not a file', path)
    return real


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


def read_lines(file, report):
    """(number, offset in the file, bytes) of each line that is not empty; lines too long go into the report. Raises BadInput
    if the file cannot be opened."""
    try:
        with open_file(file, LIMIT_LIST) as f:
            start = 0
            for number in itertools.count(1):
                line = f.readline(LIMIT_LINE)
                if not line:
                    return
                too_long = len(line) == LIMIT_LINE and not line.endswith(b'\n')
                while too_long and (rest := f.readline(LIMIT_LINE)) and not rest.endswith(b'\n'):
                    pass
                if too_long:
                    report.add(BadItem('line too long', f'{file}:{number}'))
                elif line.strip():
                    yield number, start, line
                start = f.tell()
    except OSError as e:
        raise BadInput(f'{file}: {e.strerror}') from e


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


def parse_json(content, where):
    """bytes -> dict. Raises BadItem."""
    try:
        fields = json.loads(content.decode('utf-8-sig'))
    except UnicodeDecodeError as e:
        raise BadItem('not UTF-8', where, str(e)) from e
    except (ValueError, RecursionError) as e:
        raise BadItem('not JSON', where, str(e)) from e
    if not isinstance(fields, dict):
        raise BadItem('not JSON', where, 'not an object')
    return fields


def check_caption(text, where):
    """The caption without spaces around it. Raises BadItem where it is none."""
    if not isinstance(text, str) or not text.strip():
        raise BadItem('no text', where)
    try:
        if len(text.encode()) > LIMIT_TEXT:
            raise BadItem('text too long', where)
    except UnicodeEncodeError as e:  # JSON can spell half a character, "\ud800"
        raise BadItem('not UTF-8', where, str(e)) from e
    return text.strip()


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


# ---------------------------------------------------------------------------------------------
# The four sources


class Source:
    """What one of the keys m3w, align, ltip, vtp and text stands for: one or several parts, mixed by weight.

    document(i) -> data.Document number i of an endless stream; text(i) -> str. Both depend on seed, role and i alone,
    so a position in the data is one number, and rank r of R takes the numbers that leave r when divided by R. Each part has
    numbers of its own, 0, 1, 2, ..., each of them once: of every part every item comes once in an epoch of that part.
    """

    def __init__(self, role, parts, weights, seed):
        self.role, self.parts, self.seed = role, parts, seed
        self.weights = [Fraction(str(weight)) for weight in weights]  # 0.1 is a tenth, however far the numbers go

    def whose(self, i):
        """-> (which part number i belongs to, how many of its own come before it)

        *Why not drawn by weight:* a sampled part would show some items twice and others not at all. Dealt out evenly, as a
        line is drawn in pixels, the first i numbers hold i times the share of a part, rounded, and that needs no counting. The
        numbers of a block change places, or a mix of 1:1 would deal all even numbers to the same part, and rows of texts
        (kit/run.py) begin with even numbers only.
        """
        if len(self.parts) == 1:
            return 0, i
        block, place = divmod(i, BLOCK)
        places = np.random.default_rng([self.seed, *self.role.encode(), BLOCK, block]).permutation(BLOCK)
        i, total = block * BLOCK + int(places[place]), sum(self.weights)
        for part, weight in enumerate(self.weights):  # this part against all that come after it
            before = i * weight // total
            if (i + 1) * weight // total > before:  # always so for the last one, whose weight is all that is left
                return part, before
            i, total = i - before, total - weight

    def draw(self, i):
        """-> the part, its own number, and chance for this number alone"""
        part, own = self.whose(i)
        rng = np.random.default_rng([self.seed, *self.role.encode(), i])
        rng.random()  # once chose the part; without it, the same seed would no longer give the runs that it gave
        return self.parts[part], own, rng

    def document(self, i):
        part, own, rng = self.draw(i)
        return part.document(own, rng)

    def text(self, i):
        part, own, rng = self.draw(i)
        return part.text(own, rng)


def split_spec(role, spec):
    """'dirA:3,dirB:1' -> [('dirA', 3.0), ('dirB', 1.0)]. Raises BadInput."""
    parts = []
    for entry in spec.split(','):
        path, _, weight = entry.rpartition(':')
        try:
            path, weight = path or entry, float(weight)
        except ValueError:
            path, weight = entry, 1.0  # a colon of the path's own, or none
        if not path:
            raise BadInput(f'{role}: {spec!r} names no folder before or after one of its commas')
        if not 0 < weight < float('inf'):  # a NaN is neither
            raise BadInput(f'{role}: the weight of {path} must be a number above zero')
        parts.append((path, weight))
    return parts


def open_source(role, spec, n_frame=8, seed=0, naming=0.6, flip=False, images='', classes=Classes(), n_variant=4, **pages):
    """'shapes', 'PATH', or several of them with weights, 'dirA:3,dirB:1' -> Source. Raises BadInput.

    Pairs go to align, ltip and vtp, and as few-shot pages made of them to m3w and text (`pages`: more for the Pages, which show each picture in n_variant variants); pages go
    to m3w and text.
    """
    from kit.shapes import Shapes, made_up_names
    parts, found = [], split_spec(role, spec)
    for path, weight in found:
        if path == 'shapes':
            parts.append(Shapes('m3w' if role == 'text' else role, float(Fraction(weight) / sum(Fraction(w) for _, w in found)), seed))
            continue
        part = open_path(path, n_frame, seed, n_variant=n_variant if role == 'm3w' else 1, flip=flip, images=images, classes=classes)
        if role in ('m3w', 'text') and isinstance(part, Pairs):
            part = Pages(part, naming=naming, **{'names': made_up_names(np.random.default_rng(0), 1000), 'n_way': (2, 5), **pages})
        elif role not in ('m3w', 'text') and not isinstance(part, Pairs):
            raise BadInput(f'{role}: {path} holds pages, which go to m3w or text; {role} wants pictures with captions')
        parts.append(part)
    return Source(role, parts, [weight for _, weight in found], seed)
