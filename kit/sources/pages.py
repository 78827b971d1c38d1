"""Pages that somebody wrote, texts and pictures in their order: .jsonl, .json members of shards; html.py:
saved .html.

    Place  ──►  WebPages: at(k), document(i, rng), text(i, rng)
                    │
                    ▼
                Document(['A heading\nA paragraph.', Media, 'More text.', ...], kind='page', dropped=[...])

Nothing is kept in memory but where each page begins. A page is read when its number comes up. A picture in it
that is missing, remote, damaged or filtered out leaves the page without it, and is listed in the Document's
`dropped`.
"""
import base64
import binascii
import itertools
import os
from itertools import groupby

import numpy as np

from data import Document
from kit.files import BadInput, BadItem
from kit.sources.base import Epochs, first_object, first_of, is_row, parse_json, read_lines, Report
from kit.sources.decode import Inside, media_of, only_bad_items
from kit.sources.finding import kind_of_file
from kit.sources.shards import find_tars, tar_members


LIMIT_PAGE = 32 << 20   # bytes of one page (one that carries its pictures in itself is large)
LIMIT_PICTURES = 1_000  # in one page


def find_line_pages(place):
    """[file] of pages in lines: documents.jsonl, or every .jsonl in a folder that begins with a page; or the
    one given."""
    if not place.is_folder:
        name = os.path.basename(place.path)
        listed = name.endswith('.jsonl') and os.path.isfile(place.path) and first_object(place.path)
        pages = name.endswith('.jsonl') and os.path.isfile(place.path) and (
            name == 'documents.jsonl' or is_page(listed) or not is_row(listed))
        return [place.path] * (pages and name != 'metadata.jsonl')
    if os.path.isfile(place.at('documents.jsonl')):
        return [place.at('documents.jsonl')]
    lists = [place.at(name) for name in place.tops if name.endswith('.jsonl') and name != 'metadata.jsonl']
    return [file for file in lists if os.path.isfile(file) and is_page(first_object(file))]


def is_page(fields):
    """Whether an object is a page, in the form of OBELICS or of MMC4."""
    return 'text_list' in fields or 'texts' in fields and 'images' in fields


def find_tar_pages(place):
    """[(shard, split)] of shards whose .json members are pages, which carry their pictures in themselves."""
    tars = find_tars(place)
    for path, _ in tars[:1]:
        with only_bad_items(path), open(path, 'rb') as f:
            try:
                for name, start, size in itertools.islice(tar_members(f, path), 20):
                    if name.endswith('.json') and size <= LIMIT_PAGE:
                        f.seek(start)
                        return tars if is_page(parse_json(f.read(size), name)) else []
            except BadItem:
                return []
    return []


def read_line_pages(found, place):
    return checked(LinePages(found, place))


def read_tar_pages(found, place):
    return checked(TarPages(found, place))


def checked(pages):
    """The WebPages. Raises BadInput where there are none, or where most of the first hundred cannot be
    read."""
    if not len(pages):
        raise BadInput(f'{pages.name}: no pages' + ''.join('; ' + line for line in pages.report.lines()))
    report, first = Report(), range(min(100, len(pages)))
    for k in first:
        try:
            pages.at(k, pictures=False)
        except BadItem as e:
            report.add(e)
    if 2 * report.total > len(first):
        raise BadInput(f'{pages.name}: {report.total} of the first {len(first)} pages cannot be used: '
                       + '; '.join(report.lines()))
    return pages


class WebPages:
    """A finite number of pages, served in a new order every epoch. Subclasses say how page k is read.

    at(k, pictures=True) -> Document; without pictures, only its texts. Raises BadItem where it cannot be read
    at all.
    """

    def __init__(self, n, place):
        self.n, self.name, self.n_frame, self.fps = n, place.path, place.n_frame, place.spec.fps
        self.report, self.order = place.report, Epochs(n, place.seed)

    def __len__(self):
        return self.n

    def document(self, i, rng):
        """Page number i, counted over epochs. Raises BadItem, also where no picture is left on it."""
        document = self.at(self.order(i))
        if not document.media:
            raise BadItem('page without pictures', document.where)  # M3W has none of these
        return document

    def text(self, i, rng):
        """The texts of page number i, for the language model. Raises BadItem."""
        document = self.at(self.order(i), pictures=False)
        if not document.pieces:
            raise BadItem('page without text', document.where)
        return '\n'.join(document.pieces)


def joined(pieces, between):
    """The same pieces, texts that follow one another made one."""
    out = []
    for is_text, group in groupby(pieces, lambda piece: isinstance(piece, str)):
        out += [between.join(group)] if is_text else group
    return out


# ---------------------------------------------------------------------------------------------
# Pages in lines and in shards


class JsonPages(WebPages):
    """Pages as objects, in one of two forms:

        OBELICS  {"texts": ["A dog.", null, "And a cat."], "images": [null, "dog.jpg", null]}
        MMC4     {"text_list": ["A dog.", "And a cat."],
                  "image_info": [{"image_name": "dog.jpg", "matched_text_index": 1}]}

    In the second a picture stands before the sentence that it was matched to; several for one sentence keep
    their order. A picture is a file's name, or the file itself in base64: {"bytes": …}, "image_base64": …, or
    a data: address. Subclasses say how the object of page k is read: content(k) -> (bytes, where).
    """
    find = None  # a Finder of the pictures that have names

    def at(self, k, pictures=True):
        content, where = self.content(k)
        fields = parse_json(content, where)
        if 'text_list' in fields:
            pieces, between = mmc4_pieces(fields, where), ' '
        else:
            pieces, between = obelics_pieces(fields, where), '\n\n'
        if sum(not isinstance(piece, str) for piece in pieces) > LIMIT_PICTURES:
            raise BadItem('too large', where, f'more than {LIMIT_PICTURES} pictures')
        dropped, found = [], []
        for piece in pieces:
            if isinstance(piece, str):
                found.append(piece)
            elif pictures:
                try:
                    found.append(self.picture(piece[0], where))
                except BadItem as e:
                    dropped.append(BadItem(e.kind, f'{where}: {str(piece[0])[:200]}', e.message))
        return Document(joined(found, between), 'page', where, dropped)

    def picture(self, named, where):
        """A picture as it stands in the page, a name or an object -> Media. Raises BadItem."""
        inside = first_of(named, ('image_base64', 'bytes')) if isinstance(named, dict) else None
        if isinstance(named, str) and named[:5] == 'data:':
            inside = named.partition(',')[2]
        if inside is not None:
            return media_of(Inside(where, content=from_base64(inside, where)), self.n_frame, fps=self.fps)
        if isinstance(named, dict):
            named = first_of(named, ('image_name', 'path', 'file_name', 'raw_url', 'url'))
        if not isinstance(named, str) or not named:
            raise BadItem('picture without a name', '')
        if named.startswith('//'):
            raise BadItem('remote picture', '')
        if self.find is None:
            raise BadItem('picture outside its shard', '')
        return media_of(self.find(named), self.n_frame, fps=self.fps)


class LinePages(JsonPages):
    """A page a line, in one file or several."""

    def __init__(self, files, place):
        # 24 bytes a page: the file, where its line begins, and its number.
        lines = [(k, start, number) for k, file in enumerate(files)
                 for number, start, _ in read_lines(file, place.report)]
        self.lines = np.array(lines, dtype=np.int64).reshape(-1, 3)
        self.files, self.find = files, place.finder(os.path.dirname(files[0]) or '.')
        super().__init__(len(self.lines), place)

    def content(self, k):
        file, start, number = self.lines[k].tolist()
        where = f'{self.files[file]}:{number}'
        with only_bad_items(where), open(self.files[file], 'rb') as f:
            f.seek(start)
            return f.readline(), where


class TarPages(JsonPages):
    """A page a .json member, in shards."""

    def __init__(self, tars, place):
        self.tars, rows = [path for path, _ in tars], []
        for number, path in enumerate(self.tars):
            try:
                with open(path, 'rb') as f:
                    for name, start, size in tar_members(f, path):
                        if name.endswith('.json'):
                            rows.append((number, start, size))
                        elif not name:
                            place.report.add(BadItem('outside the folder', f'{path} at byte {start - 512}'))
                        elif not os.path.basename(name).startswith('.'):
                            place.report.add(BadItem(kind_of_file(name), f'{path}:{name}'))
            except BadItem as e:
                place.report.add(e)
            except OSError as e:
                raise BadInput(f'{path}: {e.strerror}') from e
        self.rows = np.array(rows, dtype=np.int64).reshape(-1, 3)
        super().__init__(len(rows), place)

    def content(self, k):
        tar, start, size = self.rows[k].tolist()
        member = Inside(self.tars[tar], start, size)
        if size > LIMIT_PAGE:
            raise BadItem('too large', str(member), f'{size} bytes')
        with only_bad_items(member):
            return member.read(), str(member)


def from_base64(text, where):
    """base64 -> bytes. Raises BadItem."""
    try:
        return base64.b64decode(text)
    except (binascii.Error, ValueError, TypeError) as e:
        raise BadItem('damaged', where, str(e)) from e


def obelics_pieces(fields, where):
    """[text or (picture's name,), ...] of {"texts", "images"}, one of the two null at each position. Raises
    BadItem."""
    texts, images = fields.get('texts'), fields.get('images')
    if not isinstance(texts, list) or not isinstance(images, list) or len(texts) != len(images):
        raise BadItem('not a page', where, 'texts and images must be lists of one length')
    pieces = []
    for text, image in zip(texts, images):
        if text is not None and image is not None:
            raise BadItem('not a page', where, 'a text and an image at the same position')
        if image is not None:
            pieces.append((image,))
        elif text is not None and check_text(text, where).strip():
            pieces.append(text)
    return pieces


def mmc4_pieces(fields, where):
    """[text or (picture's name,), ...] of {"text_list", "image_info"}. Raises BadItem."""
    texts, images = fields['text_list'], fields.get('image_info')
    lists = isinstance(texts, list) and isinstance(images, list)
    if not lists or not all(isinstance(image, dict) for image in images):
        raise BadItem('not a page', where, 'text_list and image_info must be lists')
    before = [[] for _ in texts]  # the pictures that stand before each sentence
    for image in images:
        index = image.get('matched_text_index')
        if type(index) is not int or not 0 <= index < len(texts):
            raise BadItem('not a page', where, f'matched_text_index {index!r} of {len(texts)} texts')
        before[index].append((image,))
    return [piece for text, pictures in zip(texts, before)
            for piece in [*pictures, *([text] if check_text(text, where).strip() else [])]]


def check_text(text, where):
    if not isinstance(text, str):
        raise BadItem('not a page', where, 'a text is none')
    try:
        text.encode()
    except UnicodeEncodeError as e:  # JSON can spell half a character
        raise BadItem('not UTF-8', where) from e
    return text
