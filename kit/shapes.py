"""A small world to learn from: pictures, clips, pages and text, drawn and written here, so that nothing has to be
downloaded and everything is known about what the model has and has not seen.

*Held out for good, in every stage:* 16 of the 64 colour–shape pairs, two for each colour and two for each shape
(so every colour and every shape is known, their meeting is new), and a sixth of the made-up names. Nothing below
ever draws or writes them for training; split 'held' gives them for evaluation. (Most settings were chosen on
another cut of the table, diagonals 3 and 4; the page mix and the learning rate schedule were chosen on this one.)

Everything is made from a number: picture 17 of a split is always the same picture, and document 5 of a source is
always the same document. So nothing needs storing, and a resumed run simply goes on counting.
"""
import math
import re
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data import ACTION_PROMPT, CAPTION_PROMPT, Document, Episode, Example, Media, dialogue_prompt, question_prompt, statement_prompt

SIZE = 48   # pixels
SUPER = 4   # drawn this much larger, then averaged down: smooth edges
FRAMES = 8  # of a clip, at one a second

COLOURS = {'red': (214, 40, 40), 'orange': (245, 130, 32), 'yellow': (250, 212, 40), 'green': (46, 160, 67),
           'blue': (38, 96, 214), 'purple': (130, 60, 180), 'pink': (245, 140, 190), 'brown': (122, 74, 38)}
SHAPES = ('circle', 'square', 'triangle', 'star', 'ring', 'cross', 'heart', 'moon')
FILLS = ('plain', 'striped', 'dotted')
SIZES = ('small', 'large')
PLACES = {'left': (-1, 0), 'right': (1, 0), 'top': (0, -1), 'bottom': (0, 1), 'middle': (0, 0)}
PLACE_WORDS = {'left': 'on the left', 'right': 'on the right', 'top': 'at the top', 'bottom': 'at the bottom', 'middle': 'in the middle'}
BACKGROUNDS = {'white': (246, 246, 242), 'grey': (186, 190, 194), 'dark': (38, 42, 52)}
GLYPHS = 'ABEHKMTX2347'
NUMBERS = ('no', 'one', 'two', 'three')
EVENTS = {'moves to the left': (-1, 0), 'moves to the right': (1, 0), 'moves up': (0, -1), 'moves down': (0, 1),
          'grows': None, 'shrinks': None, 'turns': None}
DIRECTIONS = tuple(EVENTS)[:4]

PAIRS = [(c, s) for c in COLOURS for s in SHAPES]
# The colour × shape table, cut along its diagonals: every row and every column gives two of its cells away.
HELD_PAIRS = [(c, s) for i, c in enumerate(COLOURS) for j, s in enumerate(SHAPES) if (i + j) % 8 in (1, 6)]
TRAIN_PAIRS = [p for p in PAIRS if p not in HELD_PAIRS]

# Made-up names: one of 48 beginnings and one of 48 endings; one in six is held out.
BEGINNINGS = [a + b for a in ('b', 'd', 'f', 'g', 'k', 'l', 'm', 'n', 'p', 'z', 'bl', 'gr') for b in 'aeiu']
ENDINGS = [a + b for a in ('ck', 'd', 'f', 'g', 'l', 'm', 'n', 'p', 'r', 's', 't', 'x') for b in ('et', 'o', 'us', 'in')]

# Which pictures there are, by split: (pairs, how many pictures, a number to draw them from).
SPLITS = {'train': (TRAIN_PAIRS, len(TRAIN_PAIRS) * 160, 1), 'held': (HELD_PAIRS, len(HELD_PAIRS) * 160, 2)}
CLIP_SPLITS = {'train': (TRAIN_PAIRS, len(TRAIN_PAIRS) * 40, 3), 'held': (HELD_PAIRS, len(HELD_PAIRS) * 40, 4)}


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
        'square': np.array([(-.82, -.82), (.82, -.82), (.82, .82), (-.82, .82)]),
        'triangle': 1.15 * np.stack([np.cos(third), np.sin(third) + 0.15], 1),
        'star': np.stack([spikes * np.cos(angle), spikes * np.sin(angle)], 1),
        'ring': np.concatenate([_circle(1.0), _circle(0.52)[::-1]]),  # out and back: the seam has no width
        'cross': np.array([(-arm, -1), (arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm),
                           (arm, 1), (-arm, 1), (-arm, arm), (-1, arm), (-1, -arm), (-arm, -arm)]),
        'heart': np.stack([16 * np.sin(t) ** 3, -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))], 1) / 16.5,
        'moon': np.concatenate([_circle(1.0, 0.9, 2 * math.pi - 0.9), _circle(0.85, 2 * math.pi - 1.15, 1.15, centre=(0.28, 0))]),
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
    """Scene -> PIL picture, SIZE × SIZE. A clip moves the centre, radius or colour away from the scene's own."""
    rng = np.random.default_rng(scene.seed)
    image = _canvas(scene, rng)
    if rgb is None:
        rgb = COLOURS[scene.colour]
    rgb = tuple(int(v) for v in np.clip(np.array(rgb) * rng.uniform(0.88, 1.12) + rng.integers(-12, 13, 3), 0, 255))  # of a shade
    tilt = rng.uniform(-0.2, 0.2)
    if radius is None:
        radius = rng.uniform(6.5, 8.0) if scene.size == 'small' else rng.uniform(12.5, 15.0)
    reach = 13.0 if scene.size == 'small' else 9.0  # how far from the middle "left" is
    middle = np.array([SIZE / 2, SIZE / 2])
    if scene.count == 1:
        where = [middle + np.array(PLACES[scene.place]) * reach + rng.uniform(-1.8, 1.8, 2) if centre is None else np.array(centre)]
    else:  # spread around the middle, not touching
        start = rng.uniform(0, 2 * math.pi)
        where = [middle + 13 * np.array([math.cos(start + 2 * math.pi * i / scene.count), math.sin(start + 2 * math.pi * i / scene.count)])
                 + rng.uniform(-1.5, 1.5, 2) for i in range(scene.count)]
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
    glyph = str(rng.choice(list(GLYPHS))) if count == 1 and size == 'small' and rng.random() < 0.5 else ''
    places = [p for p in PLACES if not (glyph and p == 'middle')]
    fill = str(rng.choice(FILLS, p=[0.5, 0.25, 0.25])) if size == 'large' else 'plain'  # a pattern needs room to be seen
    return Scene(colour, shape, size, fill, str(rng.choice(places)) if count == 1 else 'middle',
                 count, glyph, str(rng.choice(list(BACKGROUNDS))), bool(rng.random() < 0.4), int(rng.integers(2 ** 31)))


@lru_cache(maxsize=None)
def clip(split, i):
    pairs, n, seed = CLIP_SPLITS[split]
    colour, shape = pairs[i % len(pairs)]
    rng = np.random.default_rng([seed, i])
    event = str(rng.choice(list(EVENTS), p=[0.16, 0.16, 0.16, 0.16, 0.12, 0.12, 0.12]))
    becomes = str(rng.choice([c for c in COLOURS if c != colour and (c, shape) in pairs])) if event == 'turns' else ''
    return Clip(Scene(colour, shape, 'small', background=str(rng.choice(list(BACKGROUNDS))), busy=bool(rng.random() < 0.2),
                      seed=int(rng.integers(2 ** 31))), event, becomes)


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


def made_up_names(rng, n, split='train'):
    """n different made-up names of a split."""
    names = []
    while len(names) < n:
        a, b = int(rng.integers(len(BEGINNINGS))), int(rng.integers(len(ENDINGS)))
        if ('held' if (a + b) % 6 == 0 else 'train') == split and BEGINNINGS[a] + ENDINGS[b] not in names:
            names.append(BEGINNINGS[a] + ENDINGS[b])
    return names


# ---------------------------------------------------------------------------------------------
# What is said about them


def plural(shape):
    return shape + 'es' if shape == 'cross' else shape + 's'


def phrase(s, size=True, fill=True):
    """'a large striped red ring', 'two red rings'"""
    words = [s.size] if size and s.count == 1 else []
    words += [s.fill] if fill and s.fill != 'plain' else []
    words += [s.colour, s.shape if s.count == 1 else plural(s.shape)]
    if s.count > 1:
        return f'{NUMBERS[s.count]} {" ".join(words)}'
    return f'{"an" if words[0][0] in "aeiou" else "a"} {" ".join(words)}'


def caption(s):
    """What few-shot examples say: 'a large striped red ring.'"""
    return phrase(s) + '.'


def long_caption(s):
    """Everything there is to say, as LTIP's captions do."""
    text = phrase(s)
    if s.count == 1:
        text += ' ' + PLACE_WORDS[s.place]
    text += f' on a {"busy " if s.busy else ""}{s.background} background'
    return text + (f' with the sign {s.glyph}' if s.glyph else '') + '.'


def noisy_caption(s, rng):
    """Short and careless, as ALIGN's alt texts are: something is always missing, in any order, with odd words.

    What is missing matters: from 'red' and 'three stars' the encoder learns colour and shape each for itself. Where
    captions always name both, it learns the pairs by heart, and a new pair is a stranger.
    """
    named = {'count': NUMBERS[s.count] if s.count > 1 else '', 'size': s.size if s.count == 1 else '', 'fill': s.fill if s.fill != 'plain' else '',
             'colour': s.colour, 'shape': s.shape if s.count == 1 else plural(s.shape)}
    words = [w for kind, w in named.items() if w and rng.random() < {'colour': 0.5, 'shape': 0.7}.get(kind, 0.3)]
    if rng.random() < 0.2:
        words = [words[k] for k in rng.permutation(len(words))]
    before = ('', '', 'photo of a ', 'nice ', 'my ')[int(rng.integers(5))]
    after = ('', '', '', f' {int(rng.integers(10, 99))}', '!')[int(rng.integers(5))]
    return before + (' '.join(words) or s.shape) + after


def clip_caption(c):
    return f'{phrase(c.scene, size=False, fill=False)} {c.event}{" " + c.becomes if c.becomes else ""}.'


def questions(s):
    """Every question a scene can answer, as (kind, question, answer)."""
    asked = [('colour', 'what color is it?', s.colour), ('shape', 'what shape is it?', s.shape), ('count', 'how many are there?', NUMBERS[s.count])]
    if s.count == 1:
        asked += [('size', 'is it small or large?', s.size), ('place', 'where is it?', PLACE_WORDS[s.place])]
    return asked + ([('sign', 'what does the sign say?', s.glyph)] if s.glyph else [])


# ---------------------------------------------------------------------------------------------
# Training documents


def naming_page(rng, n_image=(8, 13), ways=(2, 6)):
    """Pictures of a few kinds of thing, each kind with a name made up for this page alone.

    *Why.* The name can only come from the page: from an earlier picture that looks alike. Whoever predicts it has
    learned to learn from the prompt. A name's first showing cannot be known, so it is given, not learned.
    """
    pairs = rng.choice(len(TRAIN_PAIRS), int(rng.integers(*ways)), replace=False)
    names = made_up_names(rng, len(pairs))
    seen, pieces = set(), []
    for _ in range(int(rng.integers(*n_image))):
        kind = int(rng.integers(len(pairs)))
        media = picture_media('train', random_picture(rng, 'train', int(pairs[kind])))
        pieces += Example(media, 'Output:', names[kind]).pieces(learned=kind in seen)
        seen.add(kind)
    return Document(pieces, 'examples')


def caption_page(rng, n_image=(4, 12)):
    pieces = []
    for _ in range(int(rng.integers(*n_image))):
        media, s = training_picture(rng)
        pieces += Example(media, 'Output:', caption(s)).pieces()
    return Document(pieces, 'examples')


def question_page(rng, n_image=(5, 12), p_long=0.33):
    """One in three may be as long as a prompt of 32 examples, and so are the rows of the language stage. *Why.* Where no page had been
    longer than 11, questions were answered less and less after more examples than that (24 % after 32). Now 80 to 92 % are, by the
    run, of 93 to 95 % after 4. Captions and clips need no such pages."""
    pieces = []
    for _ in range(int(rng.integers(n_image[0], 34 if rng.random() < p_long else n_image[1]))):
        media, s = training_picture(rng)
        asked = questions(s)
        _, question, answer = asked[int(rng.integers(len(asked)))]
        pieces += Example(media, question_prompt(question), answer).pieces()
    return Document(pieces, 'examples')


def story_page(rng, n_image=(3, 7)):
    """Running text with pictures in it. It speaks of the one above or of the one below, as people do."""
    above = rng.random() < 0.5
    pieces = ['Some things I saw.']
    for _ in range(int(rng.integers(*n_image))):
        media, s = training_picture(rng)
        said = long_caption(s)
        pieces += [media, f' Above you see {said}'] if above else [f' Below you see {said}', media]
    return Document(pieces, 'page')


def clip_page(rng, n_clip=(2, 10)):
    pieces = []
    for _ in range(int(rng.integers(*n_clip))):
        i = int(rng.integers(CLIP_SPLITS['train'][1]))
        pieces += Example(clip_media('train', i), 'Output:', clip_caption(clip('train', i))).pieces()
    return Document(pieces, 'examples')


PAGES = ((naming_page, 0.27), (caption_page, 0.39), (question_page, 0.19), (clip_page, 0.10), (story_page, 0.05))
# The first pages have captions only; the others come in over as many again. *Why.* Captions tie what the encoder sees
# to words that the language model knows, and that opens the gates. Names mean nothing to it; while the gates are shut
# their loss is pure noise, and enough of it keeps them shut (with 45 % naming pages from the start, still at chance
# after 400 steps; captions alone were learned in 125).
ONLY_CAPTIONS = 1500


class Shapes:
    """The embedded world as one of the four sources: role 'm3w' (pages), 'align' (short noisy pairs), 'ltip' (long
    pairs) or 'vtp' (clips).

    document(i, rng) -> Document; text(i, rng) -> str for the language stage. Both are endless and drawn from rng,
    but that pair number i of 'align' and of 'ltip' show the same picture, another one with another seed: it is encoded once for the two.
    """
    name = 'shapes'

    def __init__(self, role, share=1.0, seed=0):
        """share: of this world in a mix; the later pages come in when all parts together have shown so many."""
        self.role, self.only_captions, self.seed = role, ONLY_CAPTIONS * share, seed

    def document(self, i, rng):
        if self.role == 'm3w':
            if rng.random() > i / self.only_captions - 1:
                return caption_page(rng)
            make, share = zip(*PAGES)
            return make[int(rng.choice(len(make), p=share))](rng)
        if self.role == 'vtp':
            return clip_page(rng, n_clip=(1, 4))
        media, s = training_picture(np.random.default_rng([self.seed, i]))  # the same in both roles: a picture has two captions
        return Document([media, noisy_caption(s, rng) if self.role == 'align' else long_caption(s)], 'pair')

    def text(self, i, rng):
        make, share = zip(*TEXTS)
        return make[int(rng.choice(len(make), p=share))](rng)


# ---------------------------------------------------------------------------------------------
# Plain text for the language model, which must learn to copy before it is frozen
#
# A colour never stands before a shape in it. *Why.* From captions as they are it learns which pairs there are, and then
# holds a new one for impossible: a frozen model's prejudice, against which the picture has to argue for ever. (Its
# log-probability of the right shape after the colour of a held-out pair was −2.7, where knowing nothing gives −2.1;
# with the prejudice subtracted, 84 % of the shapes were right, and 76 % with it.)


def copy_text(rng):
    """The same random words again and again: nothing but copying predicts them (this grows induction heads)."""
    words = made_up_names(rng, int(rng.integers(3, 7)))
    pool = list(COLOURS) + list(SHAPES) + list(PLACES)
    words += [str(w) for w in rng.choice(pool, int(rng.integers(1, 7)), replace=False)]
    while True:
        words = [words[k] for k in rng.permutation(len(words))]
        if not any(a in COLOURS and b in SHAPES for a, b in zip(words, words[1:] + words[:1])):
            return ' '.join(words * int(rng.integers(2, 5)))


def naming_text(rng):
    """Made-up names that recur next to what they name, in random order: a naming page without its pictures.

    Mostly the thing is a single word, next to its name: looking that up is the simplest copying there is, and on a
    page with pictures, where every token sees its picture, the look-up is as short.
    """
    if rng.random() < 0.7:
        things = [str(w) for w in rng.choice([*COLOURS, *SHAPES, *PLACES, *FILLS, *SIZES], int(rng.integers(2, 7)), replace=False)]
        link, end = [(' ', '. '), (': ', '. '), (' ', ' ')][int(rng.integers(3))]
    else:
        pairs = [f'{a} {b}' for a in (*SIZES, *FILLS) for b in (*COLOURS, *SHAPES)]
        things = [str(p) for p in rng.choice(pairs, int(rng.integers(2, 6)), replace=False)]
        link, end = [(' Output: ', '\n'), (': ', '. '), (' ', ', '), (' Output: ', ' ')][int(rng.integers(4))]
    names = made_up_names(rng, len(things))
    order = rng.integers(len(things), size=int(rng.integers(8, 33)))
    return end.join(things[k] + link + names[k] for k in order)


def plain_text(rng):
    """Any training page, its pictures left out, and of each colour with its shape one of the two replaced by a made-up word."""
    make = [caption_page, question_page, story_page, clip_page][int(rng.choice(4, p=[0.3, 0.45, 0.1, 0.15]))]
    text = ' '.join(piece.strip() for piece in make(rng, (3, 33)).pieces if isinstance(piece, str))  # as long as a prompt may get

    def part(found):
        name = made_up_names(rng, 1)[0]
        return f'{name} {found[2]}' if rng.random() < 0.5 else f'{found[1]} {name}'
    return PAIR.sub(part, text)


PAIR = re.compile(rf"\b({'|'.join(COLOURS)}) ((?:{'|'.join(SHAPES)})(?:s|es)?)\b")
TEXTS = ((copy_text, 0.15), (naming_text, 0.35), (plain_text, 0.5))


# ---------------------------------------------------------------------------------------------
# Few-shot tasks about pairs and names that were never trained on


def naming_episode(rng, split, ways, shots, turn=None):
    """Which of the made-up names has the thing in the last picture? `shots` examples of each of `ways` kinds, in
    random order. Kinds and names are drawn for this episode; no picture appears twice.

    turn: the query shows the kind of support picture number `turn`. Taking them in turn makes chance exactly 1/ways
    for whoever goes by place (by luck, "the last one" can be right in a third of 400 four-way episodes).
    """
    pairs = SPLITS[split][0]
    kinds = rng.choice(len(pairs), ways, replace=False)
    names = made_up_names(rng, ways, split)
    order = rng.permutation(np.repeat(np.arange(ways), shots))
    asked = int(order[int(rng.integers(len(order))) if turn is None else turn % len(order)])
    numbers = [rng.choice(SPLITS[split][1] // len(pairs), shots + 1, replace=False) for _ in kinds]

    def show(kind):
        *rest, n = numbers[kind]
        numbers[kind] = rest
        return Example(picture_media(split, int(kinds[kind]) + len(pairs) * int(n)), CAPTION_PROMPT, names[kind])

    return Episode([show(kind) for kind in order], show(asked), choices=names)


def caption_episode(rng, split, shots):
    """Describe a picture of a new pair; the support shows known pairs."""
    def one(split):
        i = random_picture(rng, split)
        return Example(picture_media(split, i), CAPTION_PROMPT, caption(scene(split, i))), scene(split, i)
    query, truth = one(split)
    return Episode([one('train')[0] for _ in range(shots)], query, check=partial(caption_is_right, truth))


def question_episode(rng, split, shots):
    """Answer a question about a new pair. The support asks questions about known pairs."""
    def one(split):
        i = random_picture(rng, split)
        asked = questions(scene(split, i))
        _, question, answer = asked[int(rng.integers(len(asked)))]
        return Example(picture_media(split, i), question_prompt(question), answer)
    return Episode([one('train') for _ in range(shots)], one(split))


def clip_episode(rng, split, shots):
    """Which way does it move? Any caption counts whose direction is right."""
    def one(split):
        while True:
            i = int(rng.integers(CLIP_SPLITS[split][1]))
            if clip(split, i).event in DIRECTIONS:
                return Example(clip_media(split, i), CAPTION_PROMPT, clip_caption(clip(split, i))), clip(split, i)
    query, truth = one(split)
    return Episode([one('train')[0] for _ in range(shots)], query, check=partial(direction_is_right, truth))


def caption_is_right(scene, text):
    """Every attribute that the text names is the scene's, and it names at least colour and shape."""
    words = text.lower().replace('.', ' ').replace(',', ' ').split()
    true = {'colour': scene.colour, 'shape': scene.shape, 'size': scene.size if scene.count == 1 else None, 'fill': scene.fill,
            'count': NUMBERS[scene.count]}
    singular = {plural(s): s for s in SHAPES} | {s: s for s in SHAPES}
    named = {'colour': [w for w in words if w in COLOURS], 'shape': [singular[w] for w in words if w in singular],
             'size': [w for w in words if w in SIZES], 'fill': [w for w in words if w in FILLS], 'count': [w for w in words if w in NUMBERS]}
    if not named['count'] and ('a' in words or 'an' in words):
        named['count'].append('one')
    if scene.count > 1:
        named['size'] = []  # several are always small; saying so is neither asked nor wrong
    return bool(named['colour'] and named['shape']) and all(w == true[kind] for kind, said in named.items() for w in said)


def direction_is_right(clip, text):
    return [d for d in DIRECTIONS if d in text] == [clip.event]


def zero_shot_classes():
    """Every pair, described in three ways, for naming a picture by comparing embeddings (the CLIP way)."""
    return [[f'{c} {s}', f'a {c} {s}', f'photo of a {c} {s}'] for c, s in PAIRS]


def zero_shot_pictures(split, n):
    """n pictures of a split, and which of PAIRS each shows."""
    return [picture_media(split, i) for i in range(n)], [PAIRS.index(SPLITS[split][0][i % len(SPLITS[split][0])]) for i in range(n)]


# ---------------------------------------------------------------------------------------------
# Twins of the paper's other benchmarks. Each shows new pairs after examples of known ones.


def reading_episode(rng, split, shots):
    """What does the sign say? (TextVQA: to answer is to read.)"""
    def one(split):
        while True:
            i = random_picture(rng, split)
            if scene(split, i).glyph:
                return Example(picture_media(split, i), question_prompt('what does the sign say?'), scene(split, i).glyph)
    query = one(split)
    return Episode([one('train') for _ in range(shots)], query)


def happening(c):
    """What a clip shows, as its caption says it: 'moves up', 'turns blue'"""
    return f'{c.event} {c.becomes}' if c.becomes else c.event


def clip_questions(c):
    """Every question a clip can answer, as (kind, question, answer)."""
    asked = [('event', 'what does it do?', happening(c)), ('shape', 'what shape is it?', c.scene.shape)]
    return asked + ([('becomes', 'what color does it turn?', c.becomes)] if c.becomes else [('colour', 'what color is it?', c.scene.colour)])


def random_clip(rng, split):
    """A clip's number."""
    return int(rng.integers(CLIP_SPLITS[split][1]))


def clip_question_episode(rng, split, shots):
    """Answer a question about a clip (MSVD-QA, MSRVTT-QA, iVQA, NextQA)."""
    def one(split):
        i = random_clip(rng, split)
        asked = clip_questions(clip(split, i))
        _, question, answer = asked[int(rng.integers(len(asked)))]
        return Example(clip_media(split, i), question_prompt(question), answer)
    query = one(split)
    return Episode([one('train') for _ in range(shots)], query)


def choice_episode(rng, split, shots, ways=4):
    """What does it do: one of four (STAR: multiple choice over clips)."""
    def one(split):
        i = random_clip(rng, split)
        return Example(clip_media(split, i), question_prompt('what does it do?'), happening(clip(split, i))), clip(split, i)
    query, truth = one(split)
    others = [e if e != 'turns' else f'turns {rng.choice(list(COLOURS))}' for e in EVENTS if e != truth.event]
    choices = [query.answer, *(str(e) for e in rng.choice(others, ways - 1, replace=False))]
    return Episode([one('train')[0] for _ in range(shots)], query, choices=[choices[k] for k in rng.permutation(ways)])


def dialogue_episode(rng, split, shots):
    """The last question of a dialogue about a picture, its possible answers ranked (VisDial).

    The truth counts 1, an answer that says it among other things one half, all others 0.
    """
    def one(split):
        i = random_picture(rng, split)
        s = scene(split, i)
        asked = questions(s)
        *before, (kind, question, answer) = [asked[k] for k in rng.permutation(len(asked))[:int(rng.integers(2, 4))]]
        caption = f'a {s.colour} thing.' if kind != 'colour' else 'a thing.'
        example = Example(picture_media(split, i), dialogue_prompt(caption, [(q, a) for _, q, a in before], question), answer)
        return example, s, kind
    query, s, kind = one(split)
    right = {query.answer: 1.0, phrase(s, size=kind == 'size', fill=False): 0.5 if kind in ('colour', 'shape', 'count', 'size') else 0.0}
    wrong = {'colour': COLOURS, 'shape': SHAPES, 'count': NUMBERS[1:], 'size': SIZES, 'place': PLACE_WORDS.values(), 'sign': GLYPHS}
    pool = [w for words in wrong.values() for w in words if w not in right and w != query.answer]
    pool = [w for w in wrong[kind] if w not in right] + [str(w) for w in rng.choice(pool, 6, replace=False)]
    choices = [*right, *dict.fromkeys(pool)][:12]
    order = rng.permutation(len(choices))
    return Episode([one('train')[0] for _ in range(shots)], query, choices=[choices[k] for k in order],
                   relevance=[right.get(choices[k], 0.0) for k in order])


def statement_episode(rng, split, shots, turn=None):
    """Is a written statement true of the picture? Yes or no (the form of HatefulMemes). A false one is wrong in its colour
    or in its shape. turn: odd for a true statement; by chance unless said."""
    def one(split, true):
        i = random_picture(rng, split)
        s = scene(split, i)
        told = s
        if not true:
            kind, values = (('colour', list(COLOURS)), ('shape', SHAPES))[int(rng.integers(2))]
            told = replace(s, **{kind: str(rng.choice([v for v in values if v != getattr(s, kind)]))})
        return Example(picture_media(split, i), statement_prompt(phrase(told, size=False, fill=False), 'Is it true?'), 'yes' if true else 'no')
    query = one(split, bool(rng.integers(2) if turn is None else turn % 2))
    return Episode([one('train', bool(rng.integers(2))) for _ in range(shots)], query, choices=['yes', 'no'])


def action_episode(rng, split, shots):
    """Every action there is, as a caption of this clip (RareAct: things do what nobody saw them do before). The choices
    are in the order of EVENTS."""
    def one(split):
        i = random_clip(rng, split)
        c = clip(split, i)
        thing, new = phrase(c.scene, size=False, fill=False), str(rng.choice([n for n in COLOURS if n != c.scene.colour]))
        said = [f'{thing} {happening(c) if e == c.event else f"{e} {new}" if e == "turns" else e}' for e in EVENTS]
        return Example(clip_media(split, i), ACTION_PROMPT, said[list(EVENTS).index(c.event)]), said
    query, said = one(split)
    return Episode([one('train')[0] for _ in range(shots)], query, choices=said)
