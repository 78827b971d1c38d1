"""A small world to learn from: pictures, clips, pages and text, drawn and written here, so that nothing has
to be downloaded and everything is known about what the model has and has not seen.

*Held out for good, in every stage:* 16 of the 64 colour–shape pairs, two for each colour and two for each
shape (so every colour and every shape is known, their meeting is new), and a sixth of the made-up names.
Nothing below ever draws or writes them for training; split 'held' gives them for evaluation. (Most settings
were chosen on another cut of the table, diagonals 3 and 4; the page mix and the learning rate schedule were
chosen on this one.)

Everything is made from a number: picture 17 of a split is always the same picture, and document 5 of a
source is always the same document. So nothing needs storing, and a resumed run simply goes on counting.
"""
import math
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data import Media


SIZE = 48   # pixels
SUPER = 4   # drawn this much larger, then averaged down: smooth edges
FRAMES = 8  # of a clip, at one a second

COLOURS = {'red': (214, 40, 40), 'orange': (245, 130, 32), 'yellow': (250, 212, 40), 'green': (46, 160, 67),
           'blue': (38, 96, 214), 'purple': (130, 60, 180), 'pink': (245, 140, 190), 'brown': (122, 74, 38)}
SHAPES = ('circle', 'square', 'triangle', 'star', 'ring', 'cross', 'heart', 'moon')
FILLS = ('plain', 'striped', 'dotted')
SIZES = ('small', 'large')
PLACES = {'left': (-1, 0), 'right': (1, 0), 'top': (0, -1), 'bottom': (0, 1), 'middle': (0, 0)}
PLACE_WORDS = {'left': 'on the left', 'right': 'on the right', 'top': 'at the top',
               'bottom': 'at the bottom', 'middle': 'in the middle'}
BACKGROUNDS = {'white': (246, 246, 242), 'grey': (186, 190, 194), 'dark': (38, 42, 52)}
GLYPHS = 'ABEHKMTX2347'
NUMBERS = ('no', 'one', 'two', 'three')
EVENTS = {'moves to the left': (-1, 0), 'moves to the right': (1, 0), 'moves up': (0, -1),
          'moves down': (0, 1), 'grows': None, 'shrinks': None, 'turns': None}
DIRECTIONS = tuple(EVENTS)[:4]

PAIRS = [(c, s) for c in COLOURS for s in SHAPES]
# The colour × shape table, cut along its diagonals: every row and every column gives two of its cells away.
HELD_PAIRS = [(c, s) for i, c in enumerate(COLOURS) for j, s in enumerate(SHAPES) if (i + j) % 8 in (1, 6)]
TRAIN_PAIRS = [p for p in PAIRS if p not in HELD_PAIRS]

# Which pictures there are, by split: (pairs, how many pictures, a number to draw them from).
SPLITS = {'train': (TRAIN_PAIRS, len(TRAIN_PAIRS) * 160, 1), 'held': (HELD_PAIRS, len(HELD_PAIRS) * 160, 2)}
CLIP_SPLITS = {'train': (TRAIN_PAIRS, len(TRAIN_PAIRS) * 40, 3),
               'held': (HELD_PAIRS, len(HELD_PAIRS) * 40, 4)}


# ---------------------------------------------------------------------------------------------
# Drawing


def _circle(radius=1.0, start=0.0, stop=2 * math.pi, n=28, centre=(0.0, 0.0)):
    t = np.linspace(start, stop, n)
    return np.stack([centre[0] + radius * np.cos(t), centre[1] + radius * np.sin(t)], 1)


def _outlines():
    """Each shape as one closed polygon (P,2) about the origin, within a radius of about one."""
    t = np.linspace(0, 2 * math.pi, 40)
    spikes = np.where(np.arange(10) % 2 == 0, 1.1, 0.45)
    angle = np.arange(10) * math.pi / 5 - math.pi / 2
    arm = 0.36
    third = np.arange(3) * 2 * math.pi / 3 - math.pi / 2
    return {
        'circle': _circle(0.95),
        'square': np.array([(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)]),
        'triangle': 1.15 * np.stack([np.cos(third), np.sin(third) + 0.15], 1),
        'star': np.stack([spikes * np.cos(angle), spikes * np.sin(angle)], 1),
        'ring': np.concatenate([_circle(1.0), _circle(0.52)[::-1]]),  # out and back: the seam has no width
        'cross': np.array([(-arm, -1), (arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm),
                           (arm, 1), (-arm, 1), (-arm, arm), (-1, arm), (-1, -arm), (-arm, -arm)]),
        'heart': np.stack(
            [16 * np.sin(t) ** 3, -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))],
            1,
        )
        / 16.5,
        'moon': np.concatenate(
            [_circle(1.0, 0.9, 2 * math.pi - 0.9), _circle(0.85, 2 * math.pi - 1.15, 1.15, centre=(0.28, 0))]
        ),
    }


OUTLINES = _outlines()


@dataclass(frozen=True)
class Scene:
    """Everything that is in a picture; `seed` draws what no caption names (exact place, tilt, clutter)."""
    colour: str
    shape: str
    size: str = 'large'
    fill: str = 'plain'
    place: str = 'middle'
    count: int = 1
    glyph: str = ''
    background: str = 'white'
    busy: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Clip:
    """A scene in which something happens; `becomes` is the new colour of one that turns."""
    scene: Scene
    event: str
    becomes: str = ''


@lru_cache(maxsize=None)
def _font():
    return ImageFont.load_default(15 * SUPER)


def _canvas(scene, rng):
    """The background: one colour, or that colour with faint clutter."""
    edge = SIZE * SUPER
    base = np.clip(np.array(BACKGROUNDS[scene.background]) + rng.integers(-6, 7, 3), 0, 255)
    image = Image.new('RGB', (edge, edge), tuple(int(v) for v in base))
    if scene.busy:
        draw = ImageDraw.Draw(image)
        for _ in range(rng.integers(8, 15)):
            shade = tuple(int(v) for v in np.clip(base + rng.integers(-32, 33), 0, 255))
            x, y, dx, dy = rng.uniform(0, edge, 4)
            if rng.random() < 0.5:
                draw.line((x, y, dx, dy), fill=shade, width=int(rng.integers(2, 3 * SUPER)))
            else:
                r = rng.uniform(2, 6) * SUPER
                draw.ellipse((x - r, y - r, x + r, y + r), fill=shade)
    return image


def _put(image, outline, x, y, radius, tilt, rgb, fill):
    """Draw one object; x, y, radius in pixels of the final picture."""
    turn = np.array([(math.cos(tilt), -math.sin(tilt)), (math.sin(tilt), math.cos(tilt))])
    points = [tuple(p) for p in (outline @ turn.T * radius + (x, y)) * SUPER]
    if fill == 'plain':
        ImageDraw.Draw(image).polygon(points, fill=rgb)
        return
    light = tuple(v + (255 - v) * 7 // 10 for v in rgb)
    paint = Image.new('RGB', image.size, rgb)
    draw = ImageDraw.Draw(paint)
    gap = 5 * SUPER
    if fill == 'striped':
        for at in range(0, 2 * image.width, gap):
            draw.line((at, 0, at - image.width, image.width), fill=light, width=int(1.8 * SUPER))
    else:
        r = 1.15 * SUPER
        for row, cy in enumerate(range(0, image.width, gap)):
            for cx in range(gap // 2 * (row % 2), image.width, gap):
                draw.ellipse((cx - r, cy - r, cx + r, cy + r), fill=light)
    mask = Image.new('L', image.size)
    ImageDraw.Draw(mask).polygon(points, fill=255)
    image.paste(paint, mask=mask)


def draw(scene, centre=None, radius=None, rgb=None):
    """Scene -> PIL picture, SIZE × SIZE. A clip moves the centre, radius or colour away from the scene's
    own."""
    rng = np.random.default_rng(scene.seed)
    image = _canvas(scene, rng)
    if rgb is None:
        rgb = COLOURS[scene.colour]
    rgb = tuple(
        int(v) for v in np.clip(np.array(rgb) * rng.uniform(0.88, 1.12) + rng.integers(-12, 13, 3), 0, 255)
    )  # of a shade
    tilt = rng.uniform(-0.2, 0.2)
    if radius is None:
        radius = rng.uniform(6.5, 8.0) if scene.size == 'small' else rng.uniform(12.5, 15.0)
    reach = 13.0 if scene.size == 'small' else 9.0  # how far from the middle "left" is
    middle = np.array([SIZE / 2, SIZE / 2])
    if scene.count == 1:
        where = [
            middle + np.array(PLACES[scene.place]) * reach + rng.uniform(-1.8, 1.8, 2)
            if centre is None
            else np.array(centre)
        ]
    else:  # spread around the middle, not touching
        start = rng.uniform(0, 2 * math.pi)
        where = [
            middle
            + 13
            * np.array(
                [
                    math.cos(start + 2 * math.pi * i / scene.count),
                    math.sin(start + 2 * math.pi * i / scene.count),
                ]
            )
            + rng.uniform(-1.5, 1.5, 2)
            for i in range(scene.count)
        ]
    for x, y in where:
        _put(image, OUTLINES[scene.shape], x, y, radius, tilt, rgb, scene.fill)
    if scene.glyph:  # in a corner, away from the object
        ink = (250, 250, 250) if scene.background == 'dark' else (20, 20, 24)
        dx, dy = PLACES[scene.place]
        x = 36 if dx < 0 or (dx == 0 and rng.random() < 0.5) else 12
        y = 36 if dy < 0 or (dy == 0 and rng.random() < 0.5) else 12
        ImageDraw.Draw(image).text((x * SUPER, y * SUPER), scene.glyph, fill=ink, font=_font(), anchor='mm')
    return image.reduce(SUPER)


def draw_clip(clip):
    """Clip -> list of FRAMES pictures."""
    rng = np.random.default_rng(clip.scene.seed + 1)
    middle, frames = SIZE / 2, []
    offset = rng.uniform(-5, 5, 2)
    radius = rng.uniform(6.5, 8.0)
    direction = EVENTS[clip.event]
    travel = rng.uniform(11, 15)
    for f in range(FRAMES):
        t = f / (FRAMES - 1)  # 0 … 1
        x, y, r, rgb = middle + offset[0], middle + offset[1], radius, None
        if direction is not None:
            x += direction[0] * travel * (2 * t - 1) - (offset[0] if direction[0] else 0)
            y += direction[1] * travel * (2 * t - 1) - (offset[1] if direction[1] else 0)
        elif clip.event == 'grows':
            r = 4 + 11 * t
        elif clip.event == 'shrinks':
            r = 15 - 11 * t
        elif t > 0.5:
            rgb = COLOURS[clip.becomes]
        frames.append(draw(clip.scene, (x, y), r, rgb))
    return frames


# ---------------------------------------------------------------------------------------------
# Which pictures there are


@lru_cache(maxsize=None)
def scene(split, i):
    """Scene number i of a split. Its pair is pairs[i mod len(pairs)], the rest is drawn."""
    pairs, n, seed = SPLITS[split]
    colour, shape = pairs[i % len(pairs)]
    rng = np.random.default_rng([seed, i])
    count = int(rng.choice([1, 2, 3], p=[0.8, 0.12, 0.08]))
    size = str(rng.choice(SIZES)) if count == 1 else 'small'
    glyph = str(rng.choice(list(GLYPHS))) if count == 1 and size == 'small' and rng.random() < 0.9 else ''
    places = [p for p in PLACES if not (glyph and p == 'middle')]
    # A pattern needs room to be seen.
    fill = str(rng.choice(FILLS, p=[0.5, 0.25, 0.25])) if size == 'large' else 'plain'
    place = str(rng.choice(places)) if count == 1 else 'middle'
    return Scene(colour, shape, size, fill, place, count, glyph, str(rng.choice(list(BACKGROUNDS))),
                 busy=bool(rng.random() < 0.4), seed=int(rng.integers(2**31)))


@lru_cache(maxsize=None)
def clip(split, i):
    pairs, n, seed = CLIP_SPLITS[split]
    colour, shape = pairs[i % len(pairs)]
    rng = np.random.default_rng([seed, i])
    event = str(rng.choice(list(EVENTS), p=[0.16, 0.16, 0.16, 0.16, 0.12, 0.12, 0.12]))
    others = [c for c in COLOURS if c != colour and (c, shape) in pairs]
    becomes = str(rng.choice(others)) if event == 'turns' else ''
    s = Scene(colour, shape, 'small', background=str(rng.choice(list(BACKGROUNDS))),
              busy=bool(rng.random() < 0.2), seed=int(rng.integers(2**31)))
    return Clip(s, event, becomes)


def load_picture(split, i):
    return [draw(scene(split, i))]


def load_clip(split, i):
    return draw_clip(clip(split, i))


def picture_media(split, i):
    return Media(f'shapes/{split}/{i}', partial(load_picture, split, i))


def clip_media(split, i):
    return Media(f'shapes-clip/{split}/{i}', partial(load_clip, split, i))


def random_picture(rng, split, pair=None):
    """A picture's number; of one pair (its place in the split's list) if said."""
    pairs, n, _ = SPLITS[split]
    return int(rng.integers(n)) if pair is None else pair + len(pairs) * int(rng.integers(n // len(pairs)))


def training_picture(rng):
    """-> (Media, Scene)"""
    i = random_picture(rng, 'train')
    return picture_media('train', i), scene('train', i)


def random_clip(rng, split):
    """A clip's number."""
    return int(rng.integers(CLIP_SPLITS[split][1]))
