"""Sheets of pictures: prompts with their answers, what a source holds, where a model looked."""
import math

import numpy as np
from PIL import Image

from kit.show.canvas import Canvas, draw_lines, grid, note, with_title
from kit.show.lettering import (
    BLUE, GREEN, GREY, INK, LINE, PALE, SHEET_WIDTH, shorten, text_width, VERMILION, WHITE, wrap)


# ---------------------------------------------------------------------------------------------
# Sheets of pictures


def fitted(picture, width, height):
    """The picture as large as fits, aspect kept: pixels stay square when it has to grow a lot."""
    if 'A' in picture.mode or 'transparency' in picture.info:
        picture = picture.convert('RGBA')
        picture = Image.alpha_composite(Image.new('RGBA', picture.size, WHITE), picture)
    picture = picture.convert('RGB')
    ratio = min(width / picture.width, height / picture.height)
    size = max(1, round(picture.width * ratio)), max(1, round(picture.height * ratio))
    return picture.resize(size, Image.NEAREST if ratio >= 2 else Image.LANCZOS)


def framed(picture, cell):
    """A picture, `cell` pixels at its longer side, in a thin grey line."""
    picture = fitted(picture, cell, cell)
    canvas = Canvas(picture.width + 2, picture.height + 2)
    canvas.box(0, 0, picture.width + 2, picture.height + 2, '#B0B0B0')
    canvas.paste(picture, 1, 1)
    return canvas.done()


def film_strip(frames, cell, width, most=8):
    """A clip: up to eight of its frames, evenly chosen, on a dark strip with holes along its edges."""
    count = min(len(frames), most)
    frames = [frames[i] for i in np.linspace(0, len(frames) - 1, count).round().astype(int)]
    side = int(max(8, min(0.6 * cell, (width - 4) / count - 4)))
    frames = [fitted(frame, side, side) for frame in frames]
    tall = max(frame.height for frame in frames)
    canvas = Canvas(4 + count * (side + 4), tall + 20)
    canvas.box(0, 0, 4 + count * (side + 4), tall + 20, '#333333')
    for x in range(5, canvas.image.width - 6, 12):
        canvas.box(x, 3, 6, 4, '#F4F4F4')
        canvas.box(x, tall + 13, 6, 4, '#F4F4F4')
    for i, frame in enumerate(frames):
        canvas.paste(frame, 4 + i * (side + 4) + (side - frame.width) // 2, 10 + (tall - frame.height) // 2)
    return canvas.done()


def same_answer(answer, truth):
    def plain(text):
        return str(text).strip().removesuffix('.').strip().casefold()
    return plain(answer) == plain(truth)


def answer_runs(answer, truth):
    shown = str(answer).strip() or '(nothing)'
    if truth is None:
        return [(shown, BLUE, True)]
    if same_answer(answer, truth):
        return [(shown, GREEN, True)]
    return [(shown, VERMILION, True), (f'({str(truth).strip()})', GREY, False)]


def prompt_block(frames, runs, cell, width):
    """A picture or clip with its text beneath, or text alone -> (image, height of the picture in it)"""
    if not frames:
        picture_height, text_top, block_width = 0, 0, width
        lines = wrap(runs, width)
    else:
        picture = framed(frames[0], cell) if len(frames) == 1 else film_strip(frames, cell, width)
        picture_height, text_top = picture.height, picture.height + 5
        for block_width in (max(cell + 2, picture.width), 2 * cell, 4 * cell):  # much text gets more room
            block_width = max(picture.width, min(block_width, width))
            lines = wrap(runs, block_width)
            if len(lines) <= 6:
                break
    canvas = Canvas(block_width, max(1, text_top + LINE * len(lines)))
    if frames:
        canvas.paste(picture, 0, 0)
    draw_lines(canvas, lines, 0, text_top)
    if not frames and lines:  # as wide as its text, so that the sheet can be narrow
        block_width = max(x + text_width(word) + 2 for line in lines for x, word, _, _ in line)
        return canvas.done().crop((0, 0, math.ceil(block_width), canvas.image.height)), 0
    return canvas.done(), picture_height


def prompt_strip(prompt, cell, width):
    """One prompt with its answer, from left to right and on to the next row like a text."""
    blocks = []  # (frames, runs of text)
    for piece in prompt['pieces']:
        if not isinstance(piece, str):
            blocks.append((list(piece) if isinstance(piece, (list, tuple)) else [piece], []))
        else:
            blocks = blocks or [([], [])]
            blocks[-1][1].append((piece, GREY, False))
    blocks = blocks or [([], [])]
    blocks[-1][1].extend(answer_runs(prompt.get('answer', ''), prompt.get('truth')))

    rows, x = [[]], 0  # of (x, image, height of the picture in it)
    for frames, runs in blocks:
        image, picture_height = prompt_block(frames, runs, min(cell, width - 2), width)
        alone = not frames or rows[-1] and rows[-1][-1][2] == 0  # text without a picture has its own row
        if rows[-1] and (x + image.width > width or alone):
            rows, x = rows + [[]], 0
        rows[-1].append((x, image, picture_height))
        x += image.width + 12

    title = shorten(prompt.get('title') or '', width)
    places, y, widest = [], 20 if title else 0, text_width(title) + 2
    for row in rows:
        base = max(picture_height for _, _, picture_height in row)  # pictures stand on one line
        places += [(image, x, y + base - picture_height) for x, image, picture_height in row]
        widest = max(widest, row[-1][0] + row[-1][1].width)
        y += max(base - picture_height + image.height for _, image, picture_height in row) + 12
    canvas = Canvas(math.ceil(widest), y - 12)
    canvas.text(0, 0, title, bold=True)
    for image, x, y in places:
        canvas.paste(image, x, y)
    return canvas.done()


def prompt_sheet(prompts, columns=1, cell=96, title=''):
    """Prompts as the model saw them, and its answers: green if right, red if wrong, blue if nobody knows.

    A prompt is {'pieces': [picture | list of frames | text, ...], 'answer': str, 'truth': str or None,
    'title': str}.
    """
    columns = max(1, min(columns, len(prompts)))
    room = (SHEET_WIDTH - 28 - 28 * (columns - 1)) // columns
    strips = [prompt_strip(prompt, cell, room) for prompt in prompts]
    if not strips:
        return with_title(note('no prompts'), title)
    rows = [strips[i:i + columns] for i in range(0, len(strips), columns)]
    width = max(strip.width for strip in strips)
    heights = [max(strip.height for strip in row) + 25 for row in rows]  # 12, a thin line, 12
    canvas = Canvas(columns * (width + 28) - 28, sum(heights) - 25)
    y = 0
    for row, height in zip(rows, heights):
        if y > 0:
            canvas.box(0, y - 13, canvas.image.width, 1, PALE)
        for i, strip in enumerate(row):
            canvas.paste(strip, i * (width + 28), y)
        y += height
    return with_title(canvas.done(), title)


def captioned_sheet(pictures, captions, columns, cell, title):
    """Pictures in equal cells with up to three lines beneath each."""
    cards = []
    for picture, caption in zip(pictures, captions):
        lines = wrap([(str(caption), INK, False)], cell)
        if len(lines) > 3:
            last = ' '.join(word for _, word, _, _ in lines[2]) + '...'
            lines = lines[:2] + [[(0, shorten(last, cell), INK, False)]]
        canvas = Canvas(cell + 14, cell + 18 + LINE * len(lines))
        canvas.paste(picture, (cell + 2 - picture.width) // 2, cell + 2 - picture.height)
        draw_lines(canvas, lines, 0, cell + 6)
        cards.append(canvas.done())
    return with_title(grid(cards, columns), title)


def contact_sheet(items, columns=4, cell=128, title=''):
    """What a source holds: items are (picture, caption)."""
    items = list(items)
    return captioned_sheet([framed(picture, cell) for picture, _ in items], [caption for _, caption in items],
                           columns, cell, title)


def heat(picture, weights, cell, top=None):
    """The picture in its own colours where the weight is, a little faded elsewhere; a red line goes around
    what has at least half of `top`, the largest weight unless said. Weights may have any scale."""
    picture = fitted(picture, cell, cell)
    weights = np.nan_to_num(np.atleast_2d(np.asarray(weights, dtype=np.float64)), posinf=0.0).clip(min=0)
    weights = (weights / (top or weights.max() or 1)).clip(max=1).astype(np.float32)
    weights = np.asarray(Image.fromarray(weights).resize(picture.size, Image.BILINEAR))
    pixels, looked = np.asarray(picture, dtype=np.float32), weights[..., None]
    faded = 0.45 * pixels + 0.55 * 225
    shown = (faded * (1 - looked) + pixels * looked).round().astype(np.uint8)
    shown[border(weights >= 0.5)] = [int(VERMILION[k:k + 2], 16) for k in (1, 3, 5)]
    return Image.fromarray(shown)


def border(inside, thick=2):
    """The outermost pixels of a region. (height, width) bool -> the same"""
    core = inside
    for _ in range(thick):
        padded = np.pad(core, 1)
        core = core & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inside & ~core


def attention_sheet(steps, cell=120, title=''):
    """Where each word comes from: steps are {'word', 'picture', 'weights' (h, w), any scale, and maybe 'top',
    the weight that counts as full}."""
    pictures = [framed(heat(step['picture'], step['weights'], cell, step.get('top')), cell) for step in steps]
    columns = max(1, min(8, (SHEET_WIDTH - 28) // (cell + 14)))
    return captioned_sheet(pictures, [step['word'] for step in steps], columns, cell, title)
