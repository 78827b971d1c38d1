"""Text, as a terminal and a picture can show it."""
import re
import unicodedata
from bisect import bisect_right
from functools import lru_cache

from PIL import ImageFont

# Okabe and Ito's colours, told apart with any kind of colour vision (without their yellow: too pale here)
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = '#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9'
PALETTE = [BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, '#333333']
INK, GREY, PALE, WHITE = '#222222', '#6E6E6E', '#E4E4E4', '#FFFFFF'
TEXT, LINE = 12, 16       # size of ordinary text, and from one line of it to the next
SHEET_WIDTH = 1000        # widest sheet; a README shows about this much
LONGEST_TEXT = 600        # characters of one piece of text on a sheet; the rest becomes "..."


# ---------------------------------------------------------------------------------------------
# Text


def printable(text):
    """Text without anything that could move a cursor or turn the writing direction around."""
    out = []
    for char in unicodedata.normalize('NFC', str(text)):
        kind = unicodedata.category(char)
        if char in '\n\t' or kind in ('Zl', 'Zp'):
            out.append('\t' if char == '\t' else '\n')
        elif kind == 'Cf':                      # bidi controls, zero-width joiners: invisible, so left out
            continue
        elif kind in ('Cc', 'Cs', 'Co', 'Cn'):  # control, lone surrogate, private, unassigned
            out.append('\N{REPLACEMENT CHARACTER}')
        else:
            out.append(char)
    return ''.join(out)


def drawable(text):
    """Printable text in letters that Pillow's own font has: it knows no accents, so é is drawn as e."""
    out = []
    for char in printable(text):
        plain = ''.join(c for c in unicodedata.normalize('NFKD', char) if not unicodedata.combining(c))
        out.append(plain if plain.isascii() else char)
    return ''.join(out)


def one_line(text):
    return ' '.join(drawable(text).split())


@lru_cache(maxsize=None)
def font(size):
    return ImageFont.load_default(size)


def text_width(text, size=TEXT):
    return font(size).getlength(text)


def shorten(text, width, size=TEXT):
    """One line of text, cut with "..." where it is wider than `width`."""
    text = one_line(text)[:LONGEST_TEXT]
    if text_width(text, size) <= width:
        return text
    fitting = bisect_right(range(len(text)), width, key=lambda n: text_width(text[:n] + '...', size))
    return text[:max(0, fitting - 1)] + '...'


def split_word(word, width):
    """The parts of a word, each of which fits into `width`."""
    parts = ['']
    for char in word:
        if parts[-1] and text_width(parts[-1] + char) > width:
            parts.append('')
        parts[-1] += char
    return parts


def wrap(runs, width):
    """Runs of (text, colour, bold) as lines of (x, word, colour, bold), none wider than `width`."""
    lines, x = [[]], 0
    for text, color, bold in runs:
        if len(text) > LONGEST_TEXT:
            text = text[:LONGEST_TEXT] + '...'
        for number, paragraph in enumerate(p for p in drawable(text).split('\n') if p.strip()):
            if number > 0:
                lines, x = lines + [[]], 0
            for word in paragraph.split():
                for part in split_word(word, width - 1):
                    if lines[-1] and x + text_width(part) > width:
                        lines, x = lines + [[]], 0
                    lines[-1].append((x, part, color, bold))
                    x += text_width(part + ' ') + bold
    return [line for line in lines if line]


def text_table(rows, header):
    """Rows as aligned plain text for the terminal: words to the left, columns of numbers to the right."""
    def shown(value):
        if value is None:
            return ''
        return f'{value:.3f}' if isinstance(value, float) else ' '.join(printable(value).split())

    def is_number(cell):
        return re.fullmatch(r'[-+]?(\d[\d\s.,%±()\[\]–+-]*|\d[\d.]*e[-+]?\d+|nan|inf|)', cell) is not None

    columns = list(zip(*[[shown(value) for value in row] for row in (header, *rows)]))
    for i, (name, *cells) in enumerate(columns):
        width = max(len(cell) for cell in (name, *cells))
        right = any(cells) and all(is_number(cell) for cell in cells)
        columns[i] = [cell.rjust(width) if right else cell.ljust(width) for cell in (name, *cells)]
        columns[i].insert(1, '-' * width)
    return '\n'.join('  '.join(line).rstrip() for line in zip(*columns))
