"""One prompt on its way through a model, as a picture: `python sample.py --explain=True --picture=FILE`.

What is drawn comes from kit.tasks.explain; here only its names are known: tokens with text, image_index and
learned; lines of code with path, names, shapes, letters, file, line and times; words with likely and blanked.
"""
import os

from PIL import Image

from kit.show.canvas import Canvas
from kit.show.lettering import (
    BLUE, GREEN, GREY, INK, PALE, PALETTE, SHEET_WIDTH, shorten, text_width, VERMILION)
from kit.show.sheets import fitted

ROOM = SHEET_WIDTH - 28  # between the margins
SMALL = 10               # size of letters in the list of lines
TINTS = [PALE] + [color + '38' for color in PALETTE[:6]]  # behind a token: of no picture, of the first, …


def tint(image_index):
    return TINTS[1 + (image_index - 1) % 6 if image_index else 0]


def heading(canvas, y, text):
    canvas.text(14, y, text, size=15, bold=True)
    return y + 28


def section(height, title):
    """-> (a canvas with a title, where to go on)"""
    canvas = Canvas(SHEET_WIDTH, height + 38)
    return canvas, heading(canvas, 8, title)


def shown(text):
    return text.replace(' ', '·')


def drawn(shape):
    return shape.replace('×', 'x')  # a letter that the font lacks


# ---------------------------------------------------------------------------------------------
# Tokens


def token_places(tokens):
    """Where each token stands, on as many rows as it takes: [(x, row, width, token)]"""
    places, x, row = [], 14, 0
    for token in tokens:
        width = max(20, min(text_width(shown(token.text)) + 8, ROOM))
        if x + width > 14 + ROOM and x > 14:
            x, row = 14, row + 1
        places.append((x, row, width, token))
        x += width + 3
    return places


def token_section(tokens, pictures, title):
    """The pictures with their numbers, and every token on the colour of the picture that it sees."""
    columns = ROOM // 62
    picture_rows = -(-len(pictures) // columns)
    places = token_places(tokens)
    rows = places[-1][1] + 1 if places else 0
    canvas, y = section(picture_rows * 78 + rows * 40 + 26, title)
    for k, picture in enumerate(pictures):
        x, top = 14 + k % columns * 62, y + k // columns * 78
        small = fitted(picture, 52, 52)
        canvas.box(x, top, 58, 58, PALETTE[k % 6])
        canvas.paste(small, x + 3, top + 3)
        canvas.text(x + 29, top + 61, str(k + 1), INK, anchor='ma')
    y += picture_rows * 78 + 4
    for x, row, width, token in places:
        top = y + row * 40
        canvas.box(x, top, width, 19, tint(token.image_index))
        if token.learned:
            canvas.box(x, top + 19, width, 3, GREEN)
        canvas.text(x + width / 2, top + 9, shorten(shown(token.text), width), INK, anchor='mm')
        canvas.text(x + width / 2, top + 23, str(token.image_index or '-'), GREY, size=SMALL, anchor='ma')
    y += rows * 40
    canvas.box(14, y + 3, 14, 3, GREEN)
    legend = 'training learns to predict it;  number and colour: the picture that it sees (-: none)'
    canvas.text(33, y - 3, legend, GREY)
    return canvas.done()


# ---------------------------------------------------------------------------------------------
# Lines of code


def tree_rows(lines):
    """Lines of code and the functions they stand in -> [(depth, text, line or None)]"""
    rows, before = [], []
    for line in lines:
        same = len(os.path.commonprefix([line.path, before]))
        rows += [(depth, line.path[depth], None) for depth in range(same, len(line.path))]
        rows.append((len(line.path), ', '.join(line.names), line))
        before = line.path
    return rows


def line_section(lines, title, columns=2, gap=14, step=14):
    rows = tree_rows(lines)
    each = -(-len(rows) // columns) or 1
    width = (ROOM - gap * (columns - 1)) // columns
    canvas, y = section(each * step, title)
    for n, (depth, text, line) in enumerate(rows):
        x, top = 14 + n // each * (width + gap), y + n % each * step
        if line is None:
            canvas.text(x + 8 * depth, top, shorten(text, width - 8 * depth, SMALL), BLUE, SMALL)
            continue
        shape = drawn(' > '.join(line.shapes)) + (f'  x {line.times}' if line.times > 1 else '')
        canvas.text(x + 8 * depth, top, shorten(text, 152 - 8 * depth, SMALL), INK, SMALL)
        canvas.text(x + 156, top, f'{line.file}:{line.line}', GREY, SMALL)
        canvas.text(x + width, top, line.letters, GREY, SMALL, anchor='ra')
        room = width - 252 - text_width(line.letters, SMALL)
        canvas.text(x + 246, top, shorten(shape, room, SMALL), INK, SMALL)
    return canvas.done()


def short_section(parts, title, step=18):
    """parts: {name: Line} of the large parts of the model"""
    canvas, y = section(len(parts) * step, title)
    for n, (name, line) in enumerate(parts.items()):
        top = y + n * step
        canvas.text(14, top, name, INK)
        canvas.text(150, top, drawn(line.shapes[-1]), BLUE)
        canvas.text(330, top, line.letters, GREY)
        canvas.text(430, top, f'{line.file}:{line.line}', GREY)
    return canvas.done()


# ---------------------------------------------------------------------------------------------
# The answer


def with_said(likely, said, probability):
    """The likeliest words, and after them what was said, where it is none of them."""
    return likely if said in dict(likely) else [*likely, (said, probability)]


def bars(canvas, likely, said, x, y, color):
    for k, (text, p) in enumerate(likely):
        top = y + 18 * k
        canvas.text(x + 96, top + 8, shorten(shown(text), 96), color if text == said else INK, anchor='rm')
        canvas.box(x + 104, top + 2, max(1, 240 * p), 12, color if text == said else '#B8B8B8')
        canvas.text(x + 110 + 240 * p, top + 8, f'{100 * p:.1f} %', GREY, anchor='lm')


def word_section(words, title):
    """For each word of the answer the likeliest ones; beside them those with the pictures blanked."""
    tall = 18 * max((len(word.likely) + 1 for word in words), default=0) + 8
    canvas, y = section(len(words) * tall + 20, title)
    beside = any(word.blanked for word in words)
    canvas.text(118, y, 'with the pictures of the examples' if beside else 'the model as it is', GREY)
    if beside:
        canvas.text(574, y, 'with these pictures blanked', GREY)
    for k, word in enumerate(words):
        top = y + 22 + k * tall
        canvas.text(14, top + 8, f'{k + 1}.', GREY, anchor='lm')
        bars(canvas, with_said(word.likely, word.text, word.probability), word.text, 14, top, GREEN)
        if word.blanked:
            blanked = with_said(word.blanked, word.text, word.probability_blanked)
            bars(canvas, blanked, word.text, 470, top, VERMILION)
    return canvas.done()


def explained_sheet(tokens, pictures, parts, lines, words, titles):
    """-> the whole story on one sheet. pictures: PIL; titles: of its four sections"""
    sections = [token_section(tokens, pictures, titles[0]), short_section(parts, titles[1]),
                line_section(lines, titles[2]), word_section(words, titles[3])]
    sheet = Image.new('RGB', (SHEET_WIDTH, sum(s.height for s in sections) + 8), 'white')
    y = 0
    for s in sections:
        sheet.paste(s, (0, y))
        y += s.height
    return sheet
