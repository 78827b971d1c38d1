"""The pictures that the README begins with.

    python -m kit.show.figures                  # writes assets/architecture.png
    python sample.py --checkpoint=assets/pictures.pt --prompt_file=assets/pictures/prompt.txt
    cp out/sample.png assets/prompt.png
"""
import math
import os

from kit.show.canvas import Canvas, save
from kit.show.lettering import BLUE, GREEN, GREY, INK, PURPLE, text_width, WHITE

ASSETS = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), 'assets')

# The sizes of the nano preset; a test holds them to it.
NANO = {'image_size': 48, 'places': 9, 'vision_dim': 384, 'n_latent': 8, 'resampler_layer': 1,
        'dim': 128, 'head': 4, 'head_dim': 32, 'layer': 3, 'n_vocab': 1024}
# What each token is and which picture it sees (φ).
TOKENS = (('<BOS>', 0), ('<image>', 1), ('Output', 1), (':', 1), ('·dro', 1), ('<EOC>', 1),
          ('<image>', 2), ('Output', 2), (':', 2))
ANSWER = '·dro'

FROZEN, FROZEN_EDGE = '#E4EEF6', '#8DB3D0'
TRAINED, TRAINED_EDGE = '#FDE6CC', '#E08A2E'
OF_PICTURE = '#9A9A9A', GREEN, PURPLE      # of no picture, of the first, of the second
WIDTH, HEIGHT, SCALE = 1000, 600, 2        # twice as many pixels as a README shows: sharp on any screen


FLAME = ((0.1, -1.2), (0.3, -0.7), (0.7, -0.2), (0.85, 0.3), (0.7, 0.75), (0.35, 1), (-0.35, 1), (-0.7, 0.75),
         (-0.85, 0.3), (-0.75, -0.1), (-0.5, -0.45), (-0.3, -0.1), (-0.1, -0.6))  # in a circle around (0, 0)


class Figure(Canvas):
    """A Canvas with boxes, arrows and rows of small squares."""

    def scaled(self, *lengths):
        return [length * self.scale for length in lengths]

    def rounded(self, x, y, width, height, fill, edge, radius=8):
        corners = self.scaled(x, y, x + width, y + height)
        self.draw.rounded_rectangle(corners, radius * self.scale, fill, edge, round(1.5 * self.scale))

    def oval(self, x, y, radius_x, radius_y, color, width):
        corners = self.scaled(x - radius_x, y - radius_y, x + radius_x, y + radius_y)
        self.draw.ellipse(corners, outline=color, width=round(width * self.scale))

    def part(self, x, y, width, height, title, lines=(), frozen=True):
        """A part of the model, with a mark of whether it is frozen."""
        self.rounded(x, y, width, height, *((FROZEN, FROZEN_EDGE) if frozen else (TRAINED, TRAINED_EDGE)))
        top = y + height / 2 - 8 * len(lines)
        self.text(x + width / 2, top, title, size=15, anchor='mm', bold=True)
        for k, line in enumerate(lines):
            self.text(x + width / 2, top + 19 + 16 * k, line, GREY, size=12, anchor='mm')
        (self.snowflake if frozen else self.flame)(x + width - 15, y + 15)

    def snowflake(self, x, y, radius=7):
        for k in range(6):
            a = math.pi * k / 3 + math.pi / 6
            tip = x + radius * math.cos(a), y + radius * math.sin(a)
            self.line([(x, y), tip], FROZEN_EDGE, 1.5)
            u, v = x + 0.6 * radius * math.cos(a), y + 0.6 * radius * math.sin(a)  # where it branches
            for b in (a - 0.6, a + 0.6):
                self.line([(u, v), (u + 3 * math.cos(b), v + 3 * math.sin(b))], FROZEN_EDGE, 1)

    def flame(self, x, y, radius=7):
        for size, color in ((1, TRAINED_EDGE), (0.5, TRAINED)):
            outline = [(x + radius * size * a, y + radius * (0.45 * (1 - size) + size * b)) for a, b in FLAME]
            self.area(outline, color)

    def arrow(self, *points, color=GREY, width=1.6, size=6):
        (x0, y0), (x1, y1) = points[-2:]
        length = math.hypot(x1 - x0, y1 - y0)
        dx, dy = (x1 - x0) / length, (y1 - y0) / length
        x, y = x1 - size * dx, y1 - size * dy  # where the tip begins
        self.line([*points[:-1], (x, y)], color, width)
        across_x, across_y = -size / 2 * dy, size / 2 * dx
        self.area([(x1, y1), (x + across_x, y + across_y), (x - across_x, y - across_y)], color)

    def tensor(self, x, y, name, sizes):
        """A tensor's name and its shape, beside an arrow."""
        self.text(x, y, name, INK, size=13, anchor='lm')
        self.text(x + text_width(name, 13) + 7, y, shapes(sizes)[name], BLUE, size=13, anchor='lm')

    def phi(self, x, y, size=9, color=INK):
        """The letter, which the font lacks."""
        self.oval(x, y, size / 2, size / 2.6, color, 1.3)
        self.line([(x, y - 0.8 * size), (x, y + 0.8 * size)], color, 1.3)

    def ring(self, x, y, size, cx, cy, r):
        """A picture: a yellow ring on dark ground."""
        self.box(x, y, size, size, '#26262E')
        self.oval(x + cx, y + cy, r, r, '#FFD90F', 0.42 * r)

    def squares(self, x, y, columns, rows, color, side=9, gap=3):
        for i in range(columns):
            for j in range(rows):
                self.box(x + i * (side + gap), y + j * (side + gap), side, side, color)


# ---------------------------------------------------------------------------------------------
# The architecture, from top to bottom: pictures on the left, text on the right


def shapes(n, batch=1, images=2, frames=1):
    """-> {tensor: its shape in the picture}; n: sizes, as NANO has them"""
    b, t = batch, len(TOKENS)
    made = {
        'tokens': (b, t),
        'image_index': (b, t),
        'pixels': (b, images, frames, 3, n['image_size'], n['image_size']),
        'features': (b * images * frames, n['places'], n['vision_dim']),
        'visual tokens': (b, images, n['n_latent'], n['dim']),
        'keys, values': (b, images, n['head'], n['n_latent'], n['head_dim']),
        'stream': (b, t, n['dim']),
        'logits': (b, t, n['n_vocab'] + 2),
    }
    return {name: str(shape).replace(' ', '') for name, shape in made.items()}


def draw_eyes(f, n):
    """Pictures -> visual tokens, in the left column."""
    middle = 150
    for k, (x, spot) in enumerate(((74, (30, 42, 17)), (158, (44, 26, 13)))):
        f.box(x - 3, 21, 74, 74, OF_PICTURE[k + 1])
        f.ring(x, 24, 67, *spot)
        f.text(x + 34, 98, f'picture {k + 1}', OF_PICTURE[k + 1], size=12, anchor='ma', bold=True)
    f.arrow((middle, 118), (middle, 150))
    f.tensor(middle + 12, 133, 'pixels', n)
    f.part(30, 151, 240, 54, 'NFNet', ['sees each picture by itself'])
    f.arrow((middle, 206), (middle, 238))
    f.tensor(middle + 12, 221, 'features', n)
    side = round(n['places'] ** 0.5)
    f.squares(90, 242, side, side, GREEN)
    f.squares(177, 242, side, side, PURPLE)
    f.arrow((middle, 280), (middle, 300))
    layers = f'{n["resampler_layer"]} layer' + ('s' if n['resampler_layer'] > 1 else '')
    lines = f'{n["n_latent"]} learned latents ask each picture', layers
    f.part(30, 301, 240, 72, 'Perceiver resampler', lines, frozen=False)
    f.arrow((middle, 374), (middle, 400))
    f.squares(48, 405, n['n_latent'], 1, GREEN)
    f.squares(157, 405, n['n_latent'], 1, PURPLE)
    f.tensor(54, 431, 'visual tokens', n)


def draw_tokens(f, x, y):
    """The prompt, each token on the colour of the picture it sees -> the x of its middle"""
    start = x
    for text, seen in TOKENS:
        width = text_width(text, 13) + 12
        f.rounded(x, y, width, 24, OF_PICTURE[seen] + ('40' if seen else '30'), None, 5)
        f.text(x + width / 2, y + 12, text, size=13, anchor='mm')
        f.text(x + width / 2, y + 36, str(seen), OF_PICTURE[seen], size=13, anchor='mm', bold=True)
        x += width + 4
    return (start + x - 4) / 2


def draw_mask(f, x, y, n, cell=11, gap=2):
    """Which visual token each text token may look at: its own picture's. x: of the first column"""
    step = cell + gap
    for k in (1, 2):
        left = x + (k - 1) * (n['n_latent'] * step + 10)
        f.text(left + n['n_latent'] * step / 2, y - 6, f'picture {k}', OF_PICTURE[k], size=12, anchor='mb')
        for row, (_, seen) in enumerate(TOKENS):
            for column in range(n['n_latent']):
                f.box(left + column * step, y + row * step, cell, cell, OF_PICTURE[k] if seen == k else WHITE)
    for row, (text, _) in enumerate(TOKENS):
        f.text(x - 7, y + row * step + cell / 2, text, size=11, anchor='rm')
    middle, bottom = x + n['n_latent'] * step + 4, y + len(TOKENS) * step
    f.text(middle, bottom + 5, '<BOS> sees none: its attention is exactly 0', GREY, anchor='ma')


def draw_gated_layer(f, x, y, n):
    f.part(x, y, 620, 198, '', frozen=False)
    f.text(x + 16, y + 18, 'Gated cross-attention', size=15, anchor='lm', bold=True)
    lines = ['A text token looks at the visual tokens of', 'one picture: the last before it.',
             'What it finds is added to the stream, times a',
             'gate that starts shut and opens in training.',
             'Then an MLP, behind a gate of its own.']
    for k, line in enumerate(lines):
        f.text(x + 16, y + 40 + 18 * k + 7 * (k > 1) + 7 * (k > 3), line, GREY, size=12)
    f.tensor(x + 16, y + 172, 'keys, values', n)
    draw_mask(f, x + 376, y + 42, n)


def draw_tower(f, n):
    """Text -> the next word, in the right column."""
    left = 350
    middle = draw_tokens(f, left, 24)
    f.tensor(822, 36, 'tokens', n)
    f.tensor(822, 60, 'image_index', n)
    f.phi(810, 60)
    f.arrow((middle, 70), (middle, 90))
    f.part(middle - 150, 91, 164, 36, 'Embedding')
    f.part(middle + 20, 91, 130, 36, '', frozen=False)
    f.text(middle + 30, 109, '<image>, <EOC>', size=12, anchor='lm')
    f.arrow((middle, 128), (middle, 175))
    f.tensor(middle + 12, 144, 'stream', n)
    f.rounded(left - 14, 160, 648, 328, None, '#BBBBBB', 12)
    draw_gated_layer(f, left, 176, n)
    f.arrow((middle, 375), (middle, 403))
    f.tensor(middle + 12, 388, 'stream', n)
    f.part(left, 404, 560, 68, 'Language model block', ['self-attention and MLP of a GPT'])
    f.text(left + 620, 448, f'x {n["layer"]}', GREY, size=22, anchor='rm', bold=True)
    f.arrow((262, 410), (306, 410), (306, 275), (349, 275), color=INK)
    f.arrow((middle, 473), (middle, 516))
    f.tensor(middle + 12, 502, 'stream', n)
    f.part(middle - 120, 517, 240, 66, 'Output head',
           ['the embedding, transposed;', '<image> and <EOC> are trained'])
    f.arrow((middle + 121, 546), (880, 546))
    f.tensor(middle + 150, 532, 'logits', n)
    width = text_width(ANSWER, 13) + 12
    f.rounded(884, 534, width, 24, PURPLE + '40', PURPLE, 5)
    f.text(884 + width / 2, 546, ANSWER, size=13, anchor='mm')
    f.text(884 + width / 2, 562, 'the next word', GREY, size=12, anchor='ma')


def draw_legend(f):
    for y, words, frozen in ((525, 'frozen', True), (555, 'trained', False)):
        f.rounded(30, y, 26, 20, *((FROZEN, FROZEN_EDGE) if frozen else (TRAINED, TRAINED_EDGE)), 4)
        (f.snowflake if frozen else f.flame)(43, y + 10, 6)
        f.text(64, y + 10, words, GREY, size=13, anchor='lm')


def architecture(sizes=NANO):
    """-> the model with its shapes, for a prompt of two pictures"""
    figure = Figure(WIDTH, HEIGHT, SCALE)
    draw_eyes(figure, sizes)
    draw_tower(figure, sizes)
    draw_legend(figure)
    return figure.image


if __name__ == '__main__':
    save(architecture(), os.path.join(ASSETS, 'architecture.png'))
