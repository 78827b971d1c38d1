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
import itertools
import json
import os
import stat
from collections import Counter
from dataclasses import dataclass

import numpy as np

from data import Document
from kit.files import BadInput, BadItem, one_line, open_file
from kit.sources.decode import FFMPEG, media_of


SPLITS = ('train', 'val', 'valid', 'validation', 'test')  # what a top-level folder is called when it is a split

# Bounds, so that no file can fill the memory or take for ever.
LIMIT_LINE = 8 << 20    # bytes of one line of metadata.jsonl and documents.jsonl
LIMIT_TEXT = 1 << 20    # bytes of one caption
LIMIT_LIST = 1 << 40    # bytes of a whole metadata.jsonl, which is read line by line


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
