"""All forms of data that can be opened, and the sources that training reads."""
import os
from fractions import Fraction

import numpy as np

from kit.files import BadInput
from kit.sources.base import Pairs, Report
from kit.sources.fewshot import Pages
from kit.sources.folders import (
    check_folder, class_items, Classes, find_classes, find_coco, find_metadata, read_coco, read_metadata,
    RECOGNISED)
from kit.sources.pages import html_files, is_html, open_pages
from kit.sources.shards import find_tars, read_tars
from kit.world.pages import Shapes
from kit.world.words import made_up_names


def is_pages(path):
    """Whether what is at `path` is read as pages rather than as pairs."""
    path = os.fspath(path)
    if os.path.isfile(path):
        return is_html(path) or path.endswith('.jsonl') and os.path.basename(path) != 'metadata.jsonl'
    if not os.path.isdir(path):
        return False
    if os.path.isfile(os.path.join(path, 'documents.jsonl')):
        return True
    if find_metadata(path) or find_tars(path, Report()) or find_coco(path):
        return False
    return next(html_files(path), None) is not None


BLOCK = 64  # documents of a mix that change places among themselves


def open_path(path, n_frame=8, seed=0, split='train', n_variant=1, flip=False, images='', classes=Classes()):
    """Whatever is at `path` -> Pairs, or WebPages where it holds pages. Raises BadInput."""
    if is_pages(path):
        return open_pages(path, n_frame, seed, images)
    return open_folder(path, n_frame, seed, split, n_variant=n_variant, flip=flip, images=images, classes=classes)


def open_folder(path, n_frame=8, seed=0, split='train', report=None, n_variant=1, flip=False, images='', classes=Classes()):
    """A folder, a .tar shard, a glob of shards or a COCO captions file -> Pairs of one split (every split if None). Its
    format is told by what is on disk.

    path: one of these, or a list of them that make one source; images: the folder of the pictures that a COCO file
    names. What was left out is in the `report` of the result, and added to the Report given here, if any. Raises
    BadInput when a folder is missing, empty or none of RECOGNISED, when more than half of the items are bad, and when
    there is no such split.
    """
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
