"""Pages that somebody wrote, texts and pictures in their order: .jsonl, .json members of shards, folders of
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
import re
from html.parser import HTMLParser
from itertools import groupby
from urllib.parse import unquote, unquote_to_bytes, urljoin

import numpy as np

from data import Document, Media
from kit.files import BadInput, BadItem
from kit.sources.base import Epochs, first_of, first_object, is_row, locate, parse_json, read_lines, Report
from kit.sources.decode import Inside, media_of, natural, only_bad_items, open_picture, to_rgb
from kit.sources.finding import Finder, kind_of_file
from kit.sources.shards import find_tars, tar_members


# The paper's filters of pictures on web pages (appendix A.3.1): buttons, rulers and spacers.
LEAST_SIDE = 64
MOST_ASPECT = 3
ONE_COLOUR = 3          # levels of 255 between the darkest and the brightest: JPEG is not exact

# What a browser saves with a page, besides its pictures.
PARTS_OF_PAGES = tuple('.css .js .svg .woff .woff2 .ttf .eot .map .download .html .htm .xhtml'.split())

LIMIT_PAGE = 32 << 20   # bytes of one .html file (a page that carries its pictures in itself is large)
LIMIT_TAGS = 100_000    # tags and pieces of text in one page
LIMIT_PICTURES = 1_000  # in one page
LIMIT_DEPTH = 200       # of elements inside one another; browsers stop at 512


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


def find_html(place):
    """[file] of a folder of .html pages and below, or the one that is given."""
    if not place.is_folder:
        return [place.path] * (is_html(place.path) and os.path.isfile(place.path))
    return sorted(html_files(place.path), key=natural)


def read_line_pages(found, place):
    return checked(LinePages(found, place))


def read_tar_pages(found, place):
    return checked(TarPages(found, place))


def read_html(found, place):
    return checked(HtmlPages(found, place))


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
        if not any(isinstance(piece, Media) for piece in document.pieces):
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


# ---------------------------------------------------------------------------------------------
# HTML


def is_html(name):
    return name.lower().endswith(('.html', '.htm', '.xhtml'))


def html_files(root):
    """The .html files in a folder and below; hidden ones are left out, links to folders are not followed."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith('.'))
        for name in files:
            if is_html(name) and not name.startswith('.'):
                yield os.path.join(folder, name)


class HtmlPages(WebPages):
    """Saved web pages, made Documents the way M3W was (§3.2, appendix A.3.1): the text that a reader sees and
    the pictures where the DOM has them, those left out that are tiny, elongated or of one colour."""

    def __init__(self, files, place):
        super().__init__(len(files), place)
        self.files, self.root, self.pictures = files, place.root, Finder(place.root)
        self.verdicts = {}  # a picture's key -> why it is filtered out, or None; a logo comes on every page

    def at(self, k, pictures=True):
        file = self.files[k]
        with only_bad_items(file):
            locate(self.root, os.path.relpath(file, self.root))  # a link must not show other files of ours
            if os.path.getsize(file) > LIMIT_PAGE:
                raise BadItem('too large', file, f'{os.path.getsize(file)} bytes')
            with open(file, 'rb') as f:
                text = decode_html(f.read())
            find = lambda src, base, place: self.picture(src, base, file, f'{file}:{place}')
            reader = PageReader(find if pictures else None)
            try:
                reader.feed(text + '\n')  # never close(): browsers too drop what an unfinished tag begins
            except TooMuch as e:
                raise BadItem('too large', file, str(e)) from e
        return Document(reader.done(), 'page', file, reader.dropped)

    def picture(self, src, base, file, where):
        """The address in an <img> -> Media. Raises BadItem, also for what the filters leave out."""
        try:
            path = self.find(src, base, file, where)
            media = media_of(path, self.n_frame, fps=self.fps)
            if media.key not in self.verdicts:
                if len(self.verdicts) >= 100_000:
                    self.verdicts.clear()
                self.verdicts[media.key] = filtered(path)
        except BadItem as e:
            raise BadItem(e.kind, where, e.message or e.where) from e
        if self.verdicts[media.key]:
            raise BadItem(self.verdicts[media.key], where)
        return media

    def find(self, src, base, file, where):
        """Where the picture is: a path in the folder, or an Inside. Raises BadItem."""
        if not src:  # left to a script (data-src), or to the browser's choice (srcset)
            raise BadItem('picture without a name', where)
        if src[:5].lower() == 'data:':
            head, comma, body = src.partition(',')
            try:
                content = unquote_to_bytes(body)
                content = base64.b64decode(content) if head.lower().endswith(';base64') else content
            except (binascii.Error, ValueError) as e:
                raise BadItem('damaged', where, str(e)) from e
            return Inside(where, content=content)
        try:
            address = urljoin(base, src)
        except ValueError as e:
            raise BadItem('not an address', where, str(e)) from e
        if re.match(r'(https?|ftp):|//', address, re.IGNORECASE):
            raise BadItem('remote picture', where)
        if re.match(r'[A-Za-z][A-Za-z0-9+.-]*:', address):  # file:, blob:, C:
            raise BadItem('outside the folder', where)
        # '/a.png' is at the root of the site, which is the folder; the rest is beside the page. A name may
        # hold a real % or ?.
        folder = os.path.dirname(os.path.realpath(file))
        beside = '' if address.startswith('/') else os.path.relpath(folder, self.root)
        plain = unquote(re.split(r'[?#]', address)[0])
        for name in (address, plain):
            if os.path.isfile(os.path.join(self.root, beside, name.lstrip('/').replace('\0', ''))):
                break
        return self.pictures(os.path.join(beside, name.lstrip('/')))


def filtered(path):
    """Why the paper's filters leave this picture out: a few words, or None. Raises BadItem where it cannot be
    read."""
    with only_bad_items(path), open_picture(path) as image:
        short, long = sorted(image.size)
        if short < LEAST_SIDE:
            return f'picture under {LEAST_SIDE} pixels'
        if long > MOST_ASPECT * short:
            return f'aspect over {MOST_ASPECT}'
        image.draft('RGB', (LEAST_SIDE, LEAST_SIDE))  # of a JPEG, an eighth of the pixels tells as much
        if all(high - low <= ONE_COLOUR for low, high in to_rgb(image).getextrema()):
            return 'one colour'


def decode_html(content):
    """bytes -> str: as the page declares its encoding, else UTF-8, else what Windows used to write."""
    if content.startswith((b'\xff\xfe', b'\xfe\xff')):
        return content.decode('utf-16', 'replace')
    charset = rb'<meta[^>]{0,200}charset\s*=\s*["\']?\s*([\w-]{1,40})'
    declared = re.search(charset, content[:4096], re.IGNORECASE)
    name = declared[1].decode().lower() if declared else 'utf-8'
    # Only plain encodings of text: Python's list also has idna, punycode and others that can take for ever.
    plain = (r'utf-?8|ascii|us-ascii|latin-?1|iso-8859-\d+|windows-125\d|koi8-[ru]|gb2312|gbk|gb18030|big5|'
             r'euc-(jp|kr)|shift_jis')
    if not re.fullmatch(plain, name):
        name = 'utf-8'
    try:
        return content.decode(name).removeprefix('\ufeff')
    except (UnicodeDecodeError, LookupError):
        return content.decode('utf-8' if declared else 'cp1252', 'replace')


VOID = set('area base br col embed hr img input link meta param source track wbr'.split())  # hold nothing
BLOCKS = set('address article aside blockquote body br center dd details dialog div dl dt fieldset '
             'figcaption figure footer form h1 h2 h3 h4 h5 h6 header hr html li main menu ol option p pre '
             'section summary table tbody tfoot thead tr ul caption nav'.split())
SKIPPED = set('script style template noscript title nav svg math canvas audio video object iframe select '
              'button textarea datalist'.split())
# An element that ends without an end tag: what its start tag closes, and what stands in between.
ENDS_P = BLOCKS - set('br body html option caption tbody thead tfoot tr li dt dd'.split())
CLOSES = {'li': ({'li'}, {'ul', 'ol', 'menu'}), 'dt': ({'dt', 'dd'}, {'dl'}), 'dd': ({'dt', 'dd'}, {'dl'}),
          'tr': ({'tr'}, {'table'}),
          'td': ({'td', 'th'}, {'table', 'tr'}), 'th': ({'td', 'th'}, {'table', 'tr'}),
          **{tag: ({'p'}, {'table', 'td', 'th', 'button', 'object'}) for tag in ENDS_P}}


class TooMuch(Exception):
    """A page beyond the limits."""


def is_hidden(tag, attrs):
    """Whether a reader of the page does not see an element."""
    style = re.sub(r'\s', '', attrs.get('style', '')[:1000].lower())
    return (tag in SKIPPED or tag == 'dialog' and 'open' not in attrs or 'hidden' in attrs
            or attrs.get('aria-hidden') == 'true' or attrs.get('role') == 'navigation'
            or 'display:none' in style or 'visibility:hidden' in style)


class PageReader(HTMLParser):
    """The visible text of a page and its pictures, in order. Blocks become lines; a picture ends the text
    before it.

    find(src, base, 'line:column') -> Media, or raises BadItem, which goes to `dropped`; None: no pictures are
    wanted. Raises TooMuch.
    """

    def __init__(self, find):
        super().__init__(convert_charrefs=True)
        self.find, self.base, self.count = find, '', 0
        self.open = []                     # (tag, hidden) of the elements we are in
        self.pieces, self.dropped = [], []
        self.lines, self.line = [], []     # of the text since the last picture; of the line at hand

    @property
    def hidden(self):
        return bool(self.open) and self.open[-1][1]

    def handle_starttag(self, tag, attrs):
        self.one_more()
        attrs = {name: value or '' for name, value in reversed(attrs)}  # of two alike the first counts
        if tag in CLOSES:
            self.close_implied(*CLOSES[tag])
        hidden = self.hidden or is_hidden(tag, attrs)
        if tag == 'base' and not self.base:
            self.base = attrs.get('href', '').strip()
        if tag in BLOCKS:
            self.end_line()
        elif tag in ('td', 'th'):
            self.line.append(' ')
        if tag == 'img' and self.find and not hidden:
            try:
                line, column = self.getpos()
                if len(self.dropped) + len(self.pieces) > LIMIT_PICTURES:
                    raise TooMuch(f'more than {LIMIT_PICTURES} pictures')
                media = self.find(attrs.get('src', '').strip(), self.base, f'{line}:{column + 1}')
                self.end_text()
                self.pieces.append(media)
            except BadItem as e:
                self.dropped.append(e)
        if tag not in VOID and len(self.open) < LIMIT_DEPTH:
            self.open.append((tag, hidden))

    def close_implied(self, closed, boundary):
        for depth in range(len(self.open) - 1, -1, -1):
            if self.open[depth][0] in closed:
                del self.open[depth:]
                return
            if self.open[depth][0] in boundary:
                return

    def handle_endtag(self, tag):
        self.one_more()
        for depth in range(len(self.open) - 1, -1, -1):
            if self.open[depth][0] == tag:
                del self.open[depth:]
                break
        if tag in BLOCKS:
            self.end_line()

    def handle_data(self, data):
        self.one_more()
        if not self.hidden:
            self.line.append(data)

    def parse_marked_section(self, i, report=1):
        """<![CDATA[ and the like mean nothing in HTML; the base class would give up on them."""
        return self.parse_bogus_comment(i)

    def one_more(self):
        self.count += 1
        if self.count > LIMIT_TAGS:
            raise TooMuch(f'more than {LIMIT_TAGS} tags')

    def end_line(self):
        line = ' '.join(''.join(self.line).split())
        if line:
            self.lines.append(line)
        self.line = []

    def end_text(self):
        self.end_line()
        if self.lines:
            self.pieces.append('\n'.join(self.lines))
        self.lines = []

    def done(self):
        """-> [text or Media, ...]"""
        self.end_text()
        return self.pieces
