"""Something to draw on, and how it is saved.

Every PNG of the project is drawn in this room, with Pillow alone. All functions return a picture; `save` puts
it on disk. Nothing here may stop a training run: missing values are gaps, no data gives a chart that says so,
any text can be drawn, hostile or not. Lengths are in pixels of the finished picture.
"""
import io
import math

from PIL import Image, ImageDraw

from kit.files import whole_file
from kit.show.lettering import font, GREY, INK, LINE, shorten, TEXT, text_width, WHITE


def save(image, path):
    with whole_file(path, 'wb') as file:
        file.write(png(image))


def png(image):
    """A picture as the bytes of a file."""
    out = io.BytesIO()
    image.save(out, format='PNG', optimize=True)
    return out.getvalue()


# ---------------------------------------------------------------------------------------------
# Drawing


class Canvas:
    """A white sheet. Slanted lines are jagged, so charts are drawn `scale` times too large and reduced."""

    def __init__(self, width, height, scale=1):
        self.scale = scale
        self.image = Image.new('RGB', (round(width) * scale, round(height) * scale), WHITE)
        self.draw = ImageDraw.Draw(self.image, 'RGBA')  # RGBA: a colour with alpha is blended

    def line(self, points, color, width):
        points = [(x * self.scale, y * self.scale) for x, y in points]
        self.draw.line(points, fill=color, width=round(width * self.scale), joint='curve')

    def dot(self, x, y, color, radius):
        x, y, radius = x * self.scale, y * self.scale, radius * self.scale
        self.draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)

    def area(self, points, color):
        self.draw.polygon([(x * self.scale, y * self.scale) for x, y in points], fill=color)

    def box(self, x, y, width, height, color):
        """A filled rectangle on whole pixels, which also makes the crispest level or upright line."""
        x, y, width, height = (round(v) * self.scale for v in (x, y, width, height))
        if width > 0 and height > 0:
            self.draw.rectangle((x, y, x + width - 1, y + height - 1), fill=color)

    def text(self, x, y, text, color=INK, size=TEXT, anchor='la', bold=False):
        for shift in (0, 0.6) if bold else (0,):  # the font has one weight: bold is the text printed twice
            place = (x + shift) * self.scale, y * self.scale
            self.draw.text(place, text, color, font(size * self.scale), anchor)

    def paste(self, picture, x, y):
        self.image.paste(picture, (round(x), round(y)))

    def done(self):
        return self.image.reduce(self.scale) if self.scale > 1 else self.image


def draw_lines(canvas, lines, x, y):
    for i, line in enumerate(lines):
        for shift, word, color, bold in line:
            canvas.text(x + shift, y + i * LINE, word, color, bold=bold)


def note(text, size=(560, 120)):
    """A sheet that says why there is nothing on it."""
    canvas = Canvas(*size)
    canvas.text(size[0] / 2, size[1] / 2, shorten(text, size[0] - 20), GREY, anchor='mm')
    return canvas.done()


def grid(images, columns):
    """Pictures side by side on one white sheet, in cells as large as the largest of them."""
    if not images:
        return note('nothing to show')
    columns = max(1, min(columns, len(images)))
    width, height = max(im.width for im in images), max(im.height for im in images)
    canvas = Canvas(columns * width, math.ceil(len(images) / columns) * height)
    for i, image in enumerate(images):
        canvas.paste(image, i % columns * width, i // columns * height)
    return canvas.done()


def with_title(image, title):
    """The same sheet with a margin around it and a title above."""
    title = shorten(title, max(image.width, 240), 16)
    top = 44 if title else 14
    canvas = Canvas(max(image.width, text_width(title, 16)) + 28, image.height + top + 14)
    canvas.text(14, 14, title, size=16, bold=True)
    canvas.paste(image, 14, top)
    return canvas.done()
