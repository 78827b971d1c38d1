"""The ground that all readers stand on: what people have on disk, whatever state it is in.

    open_path(path)  ──►  Pairs: (picture, caption)  ──►  Pages (fewshot.py): few-shot pages made of them
        │   │                 │ document(i, rng)              │ document(i, rng), text(i, rng)
        │   │                 ▼                               ▼
        │   │             Document([Media, 'a red ring'])     Document([Media, 'Output:', ' dax', Media, ...])
        │   └───────────►  WebPages (pages.py): pages that somebody wrote, texts and pictures in their order
        ▼
      Report: what was left out

Opening a source reads names and captions only. It keeps where a picture is, not the picture: memory stays
flat, and any item can be had by its number. Pictures are decoded when their Media is loaded (decode.py). A
stranger's data holds anything, so there are two kinds of trouble: the user pointed at the wrong thing
(BadInput, one line), or a single item is damaged (BadItem, which is counted and skipped).
"""
import itertools
import json
import os
import re
import stat
from collections import Counter
from dataclasses import dataclass

import numpy as np

from data import Document, Example, question_prompt
from kit.files import BadInput, BadItem, one_line, open_file
from kit.sources.decode import FFMPEG, media_of


SPLITS = ('train', 'val', 'test')  # what splits are called here, however people call them
SPLIT_WORDS = {'train': ('train', 'training', 'trn', 'restval'),
               'val': ('val', 'valid', 'validation', 'validate', 'dev', 'devel', 'development'),
               'test': ('test', 'testing', 'tst', 'eval', 'evaluation')}
SPLIT_CALLED = {word: split for split, words in SPLIT_WORDS.items() for word in words}


def split_of(name):
    """'Training' -> 'train', 'dev' -> 'val', 'Eval' -> 'test'; None where it is the name of no split."""
    return SPLIT_CALLED.get(name.strip().lower())


# Bounds, so that no file can fill the memory or be read without end.
LIMIT_LINE = 8 << 20    # bytes of one line of a list
LIMIT_TEXT = 1 << 20    # bytes of one caption
LIMIT_LIST = 1 << 40    # bytes of a whole list that is read line by line
LIMIT_JSON = 1 << 30    # bytes of a JSON file, which is read whole


@dataclass(frozen=True)
class FolderSpec:
    """How what is on disk is read: the keys of train.py of the same names.

    images: folder of the pictures that a list names, where they are not beside it. Of class folders:
    class_depth, how many folder names make a class, its own and those before it (0: all of them); rotate:
    each class comes four times, upright and turned by 90, 180 and 270 degrees, as four classes; held_groups:
    groups (folders that class folders lie in) that make the split `val`, several with commas. held_share:
    where all items are of the split train, this share of the labels makes the split `val`. flip: a variant
    of a picture may be its mirror image. fps: frames a second that are taken of animations.
    """
    images: str = ''
    class_depth: int = 0
    rotate: bool = False
    held_groups: str = ''
    held_share: float = 0.0
    flip: bool = False
    fps: float = 1.0


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
        lines = []
        for kind, n in self.count.most_common():
            more = ', ...' if n > len(self.where[kind]) else ''
            hint = f'; {FFMPEG}' if kind == 'a video' else ''
            lines.append(one_line(f'{kind}: {n} ({", ".join(self.where[kind])}{more}){hint}'))
        return lines


class Epochs:
    """Which of n things is number i of an endless stream: each epoch runs through all of them once, in its
    own order.

    *Why no shuffle buffer:* things are addressed by number. A permutation of the numbers mixes the whole
    source rather than a buffer's worth of it, a position to resume at is one number, and any split of the
    numbers over ranks or workers shows each thing once an epoch, whoever asks and in whatever order. It costs
    8 bytes a thing, and reads that jump on the disk, which only a spinning one minds.
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
    """A picture or clip on disk and what is said about it.

    path: absolute, or an Inside; text: the caption, or the answer; prompt: what is asked ("Question: …
    Answer:"), given and not learned; label: what makes two items the same thing; where: file and line; group:
    what classes belong together, the folder that a class folder lies in (None: of no class folder); turn:
    quarter turns to the left; word: what the encoder calls it, where its words stand beside the captions
    (kit/run/class_words.py); category: what kind of thing it is, where a list says so.
    """
    path: str
    text: str
    split: str = 'train'
    label: str = ''
    where: str = ''
    group: str | None = None
    turn: int = 0
    prompt: str = ''
    word: str = ''
    category: str = ''


class Pairs:
    """A finite list of (picture, caption), served in a new order every epoch.

    items: a list of Items, or what serves them by number (shards.TarItems); n_variant: in how many variants
    `document` shows each picture, 1 being the plain one only; flip: whether a variant may be a mirror image;
    fps: frames a second of animations; report: what was left out on the way here. Raises BadInput if there
    are no items.
    """

    def __init__(self, items, name, n_frame=8, n_variant=1, seed=0, flip=False, report=None, fps=1.0):
        if not items:
            raise BadInput(f'{name}: no items')
        self.items, self.name, self.n_frame, self.n_variant = items, name, n_frame, n_variant
        self.seed, self.flip, self.report, self.fps = seed, flip, report or Report(), fps
        self.order = Epochs(len(items), seed)

    def __len__(self):
        return len(self.items)

    def split_names(self):
        """The split of each item."""
        if isinstance(self.items, list):
            return [item.split or 'train' for item in self.items]
        return self.items.splits  # of shards.TarItems: known without reading their captions

    @property
    def splits(self):
        """{split: number of items}"""
        return dict(Counter(self.split_names()))

    def split(self, name):
        """Pairs of the items of one split, by any of its names. Raises BadInput, naming the splits there
        are."""
        name = split_of(name) or name
        kept = [k for k, split in enumerate(self.split_names()) if split == name]
        if not kept:
            there = ', '.join(f'{split} ({n})' for split, n in self.splits.items())
            raise BadInput(f"{self.name}: no split '{name}'; there is {there}")
        return self.take(kept)

    def take(self, kept):
        """Pairs of the items of these numbers."""
        items = [self.items[k] for k in kept] if isinstance(self.items, list) else self.items.take(kept)
        return self.of(items)

    def of(self, items):
        """Pairs of other items, served in the same way."""
        return Pairs(items, self.name, self.n_frame, self.n_variant, self.seed, self.flip, self.report,
                     self.fps)

    def media(self, i, variant=0, mirrored=False):
        """Item i as Media. Raises BadItem when the file has gone since the source was opened."""
        return media_of(self.items[i].path, self.n_frame, variant, self.flip, self.items[i].turn, self.fps,
                        mirrored)

    def at(self, k, variant=0):
        """Item k as a Document. What has a prompt is an example: the prompt is given, and the answer is
        learned."""
        item = self.items[k]
        if item.prompt:
            example = Example(self.media(k, variant), item.prompt, item.text)
            return Document(example.pieces(), 'examples', item.where)
        return Document([self.media(k, variant), item.text], 'pair', item.where)

    def doubts(self, most=1000):
        """`doubts` of the first items. Classes are called by their folders: that is as it should be."""
        first = [self.items[k] for k in range(min(most, len(self)))]
        return doubts([(item.text, item.path) for item in first], folders=first[0].group is None)

    def document(self, i, rng):
        """Document number i, counted over epochs; it depends on `seed` and i, its variant on rng (numpy
        Generator)."""
        return self.at(self.order(i), int(rng.integers(self.n_variant)))


def doubts(said, folders=True):
    """What makes captions doubtful, a line each. said: [(caption, path of its picture)], as many as are to be
    judged; folders: whether names of folders are doubtful."""
    def plain(name):
        return re.sub(r'[\W_]+', ' ', name.casefold()).strip()

    if len(said) < 2:
        return []
    lines, by_file, by_folder = [], 0, 0
    if len({text for text, _ in said}) == 1:
        lines.append(f'all {len(said):,} texts are the same: {said[0][0][:60]!r}')
    for text, path in said:
        *above, name = re.split(r'[/:]', str(path))
        by_file += plain(text) in (plain(name), plain(os.path.splitext(name)[0]))
        by_folder += plain(text) in map(plain, above)
    if 2 * by_file > len(said):
        lines.append(f'{by_file:,} of {len(said):,} texts are the names of their files')
    elif folders and 2 * by_folder > len(said):
        lines.append(f'{by_folder:,} of {len(said):,} texts are the names of folders: right for classes, '
                     'wrong where captions are meant')
    return lines


def readable_pairs(pairs, pixels, report):
    """The Pairs whose pictures can be read; what cannot is in the report. pixels: kit.features.Pixels. Raises
    BadInput if there are none."""
    good = []
    for i, item in enumerate(pairs.items):
        try:
            pixels(pairs.media(i))
            good.append(item)
        except BadItem as e:
            report.add(e)
    if not good:
        raise BadInput(f'{pairs.name}: no picture can be read: ' + '; '.join(report.lines()))
    return pairs.of(good)


# ---------------------------------------------------------------------------------------------
# Files and lines

def real_path(path, known):
    """os.path.realpath (links and '..' resolved), asked for each folder only once. known: {folder: its real
    path}, filled on the way."""
    folder, name = os.path.split(path)
    if folder not in known:
        known[folder] = os.path.realpath(folder)
    real = os.path.join(known[folder], name)
    return os.path.realpath(path) if name in ('', '.', '..') or os.path.islink(real) else real


def locate(root, name, known=None):
    """The real path of `name` in the folder `root` (itself a real path). known: as of `real_path`. Raises
    BadItem when it is not there, or leads out of it: a downloaded list must not be able to show us other
    files of this machine."""
    path = os.path.join(root, name)
    try:
        real = real_path(path, {} if known is None else known)
        if os.path.isabs(name) or not real.startswith(os.path.join(root, '')):
            raise BadItem('outside the folder', path)
        mode = os.stat(real).st_mode
    except (OSError, ValueError) as e:  # ValueError: names that no file can have
        raise BadItem('missing', path) from e
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise BadItem('not a file', path)
    return real


def read_lines(file, report):
    """(number, offset in the file, bytes) of each line that is not empty; lines too long go into the report.
    Raises BadInput if the file cannot be opened."""
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


# What people call the two columns of a list, or the two fields of an object. The first that is there counts.
PICTURE_KEYS = ('file_name filename image image_path image_name image_file file_path filepath file path '
                'img img_path').split()
TEXT_KEYS = 'text caption captions txt sentences sentence comment description alt_text alt title raw'.split()
SPLIT_KEYS = 'split subset partition set_name'.split()


def first_of(fields, keys):
    """The first of these fields that is there."""
    for key in keys:
        if (value := fields.get(key)) is not None:
            return value
    return None


def lower_keys(fields):
    return {str(key).strip().lower(): value for key, value in fields.items()}


def is_row(fields):
    """Whether an object names a picture and says something about it."""
    return all(first_of(fields, keys) is not None for keys in (PICTURE_KEYS, (*TEXT_KEYS, 'question')))


def first_object(file):
    """The first line of a .jsonl that is an object, of the first twenty, keys in small letters; {} if there
    is none."""
    with open_file(file, LIMIT_LIST) as f:
        for _ in range(20):
            try:
                return lower_keys(parse_json(f.readline(LIMIT_LINE), file))
            except BadItem:
                continue
    return {}


def said_in(fields, where, keys=TEXT_KEYS):
    """([captions], prompt) of a row or object, or ([usual answer], 'Question: … Answer:') where it has a
    question instead.

    Several captions are a list of texts, or of objects with a text each. Raises BadItem where there is none.
    """
    said, question, prompt = first_of(fields, keys), fields.get('question'), fields.get('prompt')
    if said is None and question is not None:
        said = usual_answer(first_of(fields, ('answer', 'answers', 'multiple_choice_answer')))
    said = said if isinstance(said, list) else [said]
    said = [first_of(text, keys) if isinstance(text, dict) else text for text in said]
    texts = [check_caption(text, where) for text in said if not (isinstance(text, str) and not text.strip())]
    if not texts:
        raise BadItem('no text', where)
    if not isinstance(prompt, str) or not prompt.strip():
        prompt = question_prompt(check_caption(question, where)) if question is not None else ''
    return list(dict.fromkeys(texts)), prompt.strip()


def usual_answer(answers):
    """The most frequent of several answers, the first of them where there is a tie: of texts, or of objects
    {"answer": …}."""
    answers = answers if isinstance(answers, list) else [answers]
    answers = [a.get('answer') if isinstance(a, dict) else a for a in answers]
    answers = [str(a) for a in answers if isinstance(a, (str, int, float)) and str(a).strip()]
    return Counter(answers).most_common(1)[0][0] if answers else None


def captions_in(content, is_json, where):
    """([captions], prompt) of a .txt (one a line) or a .json, as bytes. Raises BadItem."""
    if is_json:
        return said_in(parse_json(content, where), where, ('caption', *TEXT_KEYS))
    try:
        lines = re.split(r'\r\n|\r|\n', content.decode('utf-8-sig'))
    except UnicodeDecodeError as e:
        raise BadItem('not UTF-8', where, str(e)) from e
    texts = [check_caption(line, where) for line in lines if line.strip()]
    if not texts:
        raise BadItem('no text', where)
    if all(re.fullmatch(r'\d+(\s+[\d.eE+-]+){4,}', text) for text in texts):
        raise BadItem('boxes and no text', where)  # as YOLO writes them
    return list(dict.fromkeys(texts)), ''
