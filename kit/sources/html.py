"""Saved web pages, made Documents the way M3W was (§2.4, appendix A.3.1): the text that a reader sees and the
pictures where the DOM has them.

    bytes  ──decode_html──►  str  ──PageReader──►  [text or Media, ...]
"""
import base64
import binascii
import os
import re
from html.parser import HTMLParser
from urllib.parse import unquote, unquote_to_bytes, urljoin

from data import Document
from kit.files import BadItem
from kit.sources.base import locate
from kit.sources.decode import Inside, media_of, natural, only_bad_items, open_picture, to_rgb
from kit.sources.finding import Finder
from kit.sources.pages import checked, LIMIT_PAGE, LIMIT_PICTURES, WebPages


# The paper's filters of pictures on web pages (appendix A.3.1): buttons, rulers and spacers.
LEAST_SIDE = 64
MOST_ASPECT = 3
ONE_COLOUR = 3          # levels of 255 between the darkest and the brightest: JPEG is not exact

# What a browser saves with a page, besides its pictures.
PARTS_OF_PAGES = tuple('.css .js .svg .woff .woff2 .ttf .eot .map .download .html .htm .xhtml'.split())

LIMIT_TAGS = 100_000    # tags and pieces of text in one page
LIMIT_DEPTH = 200       # of elements inside one another; browsers stop at 512


def find_html(place):
    """[file] of a folder of .html pages and below, or the one that is given."""
    if not place.is_folder:
        return [place.path] * (is_html(place.path) and os.path.isfile(place.path))
    return sorted(html_files(place.path), key=natural)


def is_html(name):
    return name.lower().endswith(('.html', '.htm', '.xhtml'))


def html_files(root):
    """The .html files in a folder and below; hidden ones are left out, links to folders are not followed."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith('.'))
        for name in files:
            if is_html(name) and not name.startswith('.'):
                yield os.path.join(folder, name)


def read_html(found, place):
    return checked(HtmlPages(found, place))


class HtmlPages(WebPages):
    """A page a file; pictures that are tiny, elongated or of one colour are left out."""

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
