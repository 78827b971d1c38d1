"""All forms of data that can be opened, as a table, and the sources that training reads.

    open_source('m3w', 'pages:3,pairs:1')  ──►  Source.document(i), .text(i)
    open_folder(path)                      ──►  Pairs of one split
    open_path(path)                        ──►  Pairs, or WebPages where there are pages
"""
import os
import re
import zlib
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Callable

import numpy as np

from kit.files import BadInput, BadItem
from kit.sources.annotations import find_captions, find_questions, read_captions, read_question_items
from kit.sources.base import FolderSpec, Pairs, Report
from kit.sources.decode import FFMPEG, is_picture, is_video
from kit.sources.fewshot import Pages, PageSpec
from kit.sources.finding import given_path, kind_of_file, Place
from kit.sources.folders import find_classes, read_classes
from kit.sources.html import find_html, PARTS_OF_PAGES, read_html
from kit.sources.lists import ENDINGS, find_lists, find_metadata, read_lists
from kit.sources.pages import (
    find_line_pages, find_tar_pages, read_line_pages, read_tar_pages, WebPages)
from kit.sources.shards import find_tars, read_tars
from kit.sources.sidecars import find_sidecars, read_sidecars
from kit.sources.source import Source
from kit.world.names import made_up_names
from kit.world.pages import Shapes


# ---------------------------------------------------------------------------------------------
# The table


@dataclass(frozen=True)
class Form:
    """A form that data comes in.

    name: in the words of a message; find(Place) -> a list of what belongs to it there, empty where the place
    has another form; read(list, Place) -> list of Items (or what serves them by number), or a source of
    pages; holds: what it gives; whole: the folder itself is the source, not a list in it, so that what nobody
    can read in it counts against it.
    """
    name: str
    find: Callable
    read: Callable
    holds: str = 'pairs'
    whole: bool = False


def find_world(place):
    return [place.path] * (place.path == 'shapes')


def read_world(found, place):
    return Shapes('m3w' if place.role == 'text' else place.role, place.share, place.seed)


# The first form that is found counts. Class folders come last: where there is a list of captions, folders are
# only folders.
FORMS = (
    Form("'shapes', the drawn world", find_world, read_world, 'the drawn world'),
    Form('documents.jsonl, or any .jsonl of pages (OBELICS, MMC4)',
         find_line_pages, read_line_pages, 'pages'),
    Form('metadata.jsonl, .csv, .tsv or .parquet, rows of file_name, text and perhaps split',
         find_metadata, read_lists),
    Form('.tar shards of pages', find_tar_pages, read_tar_pages, 'pages'),
    Form('.tar shards of pairs (key.jpg + key.txt or key.json)', find_tars, read_tars),
    Form('captions_*.json (COCO, with --images=DIR) or dataset_*.json (Karpathy)',
         find_captions, read_captions),
    Form('*questions.json and *annotations.json (VQA)', find_questions, read_question_items),
    Form('captions.txt, or any .csv, .tsv or .jsonl of pictures and captions', find_lists, read_lists),
    Form('pictures with a .txt or .json beside each', find_sidecars, read_sidecars, whole=True),
    Form('a folder of .html pages', find_html, read_html, 'pages'),
    Form('class folders that hold pictures', find_classes, read_classes, whole=True),
)
LISTS = (*ENDINGS, '.json', '.tar')  # what a file of such a form ends in
RECOGNISED = '; '.join(form.name for form in FORMS)


def form_of(place):
    """Which form the place has -> (Form, what was found). Raises BadInput where it has none."""
    for form in FORMS[:-1]:
        if found := form.find(place):
            return form, found
    check_below(place)
    if found := FORMS[-1].find(place):
        return FORMS[-1], found
    path = place.path
    if is_video(path):
        raise BadInput(f'{path}: a video; {FFMPEG}, and name them in a metadata.jsonl')
    if not os.path.exists(path):
        raise BadInput(f'{path}: no such folder')
    if not place.is_folder:
        raise BadInput(f'{path}: not a folder; recognised are {RECOGNISED}')
    try:
        empty = not os.listdir(path)
    except OSError as e:
        raise BadInput(f'{path}: {e.strerror}') from e
    if empty:
        raise BadInput(f'{path}: the folder is empty; recognised are {RECOGNISED}')
    count_unread(place, FORMS[-1], (), [])
    place.report.add_report(place.aside)
    there = place.report.lines()
    if n := sum(is_picture(name) for _, name in place.files):
        there.insert(0, f'pictures in no class folder, and without captions: {n}')
    there = f' ({"; ".join(there)})' if there else ''
    raise BadInput(f'{path}: nothing here that can be read{there}; recognised are {RECOGNISED}')


def check_below(place):
    """Raises BadInput where a list lies further down: class folders are what is left where there is none."""
    pictures = {(parts, os.path.splitext(name)[0]) for parts, name in place.files if is_picture(name)}
    folders = dict.fromkeys(parts for parts, name in place.files if parts and name.lower().endswith(LISTS)
                            and (parts, os.path.splitext(name)[0]) not in pictures)
    for parts in folders:
        below = Place(place.at(*parts))
        for form in FORMS[1:-1]:
            if not form.whole and form.find(below):
                raise BadInput(f'{place.path}: {form.name} further down; open {below.path} instead '
                               '(--images=DIR says where its pictures are, if they are elsewhere)')


def is_pages(path):
    """Whether what is at `path` is read as pages rather than as pairs."""
    try:
        return form_of(Place(given_path(path)))[0].holds == 'pages'
    except BadInput:
        return False


def count_unread(place, form, found, items):
    """Every file in the folder is read, or belongs to one that is (it has its name, but for the ending), or
    is counted under its kind: as bad where the folder itself is the source, else as left aside."""
    found = [part for entry in found for part in (entry if isinstance(entry, tuple) else [entry])]
    used = {part if form.whole else os.path.realpath(part) for part in found if isinstance(part, str)}
    used |= place.read_too | ({item.path for item in items} if isinstance(items, list) else set())
    folders, unread = {parts: os.path.join(place.root, *parts) for parts in {p for p, _ in place.files}}, []
    for parts, name in place.files:
        path = os.path.join(folders[parts], name)
        above = (os.path.join(place.root, *parts[:n]) for n in range(1, len(parts) + 1))  # a folder of frames
        if path not in used and not any(folder in used for folder in above):
            unread.append((path, name))
    stems = {os.path.splitext(path)[0] for path in used} if unread else set()
    for path, name in unread:
        if is_picture(name):
            if form.holds == 'pairs' and not form.whole and os.path.realpath(path) not in used:
                place.aside.add(BadItem('a picture that nothing is said about', path))
        elif os.path.splitext(path)[0] not in stems and not (
                form.holds == 'pages' and name.lower().endswith(PARTS_OF_PAGES)):
            (place.report if form.whole else place.aside).add(BadItem(kind_of_file(name), path))
    for trouble in place.troubles:  # links that lead nowhere: a list names what it means, a folder does not
        if form.whole or trouble.kind == 'unreadable':
            (place.report if form.whole else place.aside).add(trouble)


# ---------------------------------------------------------------------------------------------
# One path

def open_path(path, spec=FolderSpec(), n_frame=8, seed=0, split='train', n_variant=1, role='', share=1.0):
    """Whatever is at `path` -> Pairs, or WebPages where it holds pages; 'shapes' -> the drawn world.
    Raises BadInput."""
    place = Place(given_path(path), checked_spec(spec), n_frame, seed, role, share)
    form, found = form_of(place)
    if form.holds == 'pages':
        pages = form.read(found, place)
        count_unread(place, form, found, [])
        pages.report.add_report(place.aside)
        return pages
    if form.holds != 'pairs':
        return form.read(found, place)
    return read_pairs([(place, form, found)], split, n_variant)


def open_folder(path, spec=FolderSpec(), n_frame=8, seed=0, split='train', report=None, n_variant=1):
    """A folder, a .tar shard, a glob of shards, or a list of captions -> Pairs of one split (every split if
    None). Its form is told by what is on disk, in the order of FORMS.

    path: one of these, or a list of them that make one source. What was left out is in the `report` of the
    result, and added to the Report given here, if any. Raises BadInput when something is missing, empty or of
    no form in FORMS, when more than half of the items are bad, and when there is no such split.
    """
    paths = [path] if isinstance(path, (str, os.PathLike)) else path
    here, aside, spec, places = Report(), Report(), checked_spec(spec), []
    for one in paths:
        place = Place(given_path(one), spec, n_frame, seed, report=here, aside=aside)
        form, found = form_of(place)
        if form.holds != 'pairs':
            raise BadInput(f'{place.path}: holds {form.holds}; pairs of a picture and its caption are wanted')
        places.append((place, form, found))
    pairs = read_pairs(places, split, n_variant)
    if report is not None:
        report.add_report(pairs.report)
    return pairs


def read_pairs(places, split, n_variant):
    """[(Place, Form, what was found there)], which share their reports -> Pairs of one split."""
    first, parts, together = places[0][0], [], {}
    for place, form, found in places:
        if form.whole:  # all places together: the same class may lie in several
            together.setdefault(form, []).extend(found)
        else:
            parts.append(form.read(found, place))
        if place.is_folder:
            count_unread(place, form, found, [] if form.whole else parts[-1])
    parts += [form.read(found, first) for form, found in together.items()]
    items = parts[0] if len(parts) == 1 else [item for part in parts for item in part]
    if first.spec.held_share and isinstance(items, list):
        hold_out(items, first.spec.held_share)
    name, bad, report = ' + '.join(place.path for place, _, _ in places), first.report.total, first.report
    if bad > len(items):  # one damaged file is bad luck; most of them are a mistake that training would hide
        lost = 'missing' in report.count and not first.spec.images
        lines = '; '.join(report.lines()) + ' (--images=DIR says where its pictures are)' * lost
        raise BadInput(f'{name}: {bad} of {bad + len(items)} items cannot be used: {lines}')
    report.add_report(first.aside)
    pairs = Pairs(items, name, first.n_frame, n_variant, first.seed, first.spec.flip, report, first.spec.fps)
    return pairs if split is None else pairs.split(split)


def hold_out(items, share):
    """Where all items are of the split train, a share of the labels is of the split val from here on. The
    same labels on every machine, and in every folder."""
    if all(item.split == 'train' for item in items):
        for item in items:
            if item.label and zlib.crc32(item.label.encode('utf-8', 'replace')) < share * (1 << 32):
                item.split = 'val'


def checked_spec(spec):
    """The FolderSpec, ~ in its folder being home. Raises BadInput where there is no such folder."""
    images = given_path(spec.images) if spec.images else ''
    if images and not os.path.isdir(images):
        raise BadInput(f'--images={images}: no such folder')
    return replace(spec, images=images)


# ---------------------------------------------------------------------------------------------
# The sources that training reads


def split_spec(role, spec):
    r"""'dirA:3,dirB:1' -> [('dirA', 3.0), ('dirB', 1.0)]. A comma of a path's own is written \, there. Raises
    BadInput."""
    parts = []
    for entry in re.split(r'(?<!\\),', spec):
        entry = entry.replace('\\,', ',')
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


def open_source(role, spec, folders=FolderSpec(), pages=PageSpec(), n_frame=8, seed=0):
    """'shapes', 'PATH', or several of them with weights, 'dirA:3,dirB:1' -> Source. Raises BadInput.

    Pairs go to align, ltip and vtp, and as few-shot pages made of them to m3w and text; pages go to m3w and
    text. folders: how what is on disk is read; pages: how few-shot pages are made of pairs.
    """
    parts, named = [], split_spec(role, spec)
    total = sum(Fraction(weight) for _, weight in named)
    for path, weight in named:
        n_variant = pages.page_variants if role == 'm3w' else 1
        share = float(Fraction(weight) / total)
        part = open_path(path, folders, n_frame, seed, 'train', n_variant, role, share)
        if isinstance(part, Pairs) and role in ('m3w', 'text'):
            part = Pages(part, made_up_names(np.random.default_rng(0), 4000), **pages.sizes())
        elif isinstance(part, WebPages) and role not in ('m3w', 'text'):
            raise BadInput(f'{role}: {path} holds pages, which go to m3w or text; {role} wants pictures with '
                           'captions')
        parts.append(part)
    return Source(role, parts, [weight for _, weight in named], seed)
