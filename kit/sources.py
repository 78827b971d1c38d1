"""Reading what people have on disk, whatever state it is in.

    open_path(path)  ──►  Pairs: a list of (picture, caption)  ──►  Pages: few-shot pages made of them
        │   │                 │ document(i, rng)                       │ document(i, rng), text(i, rng)
        │   │                 ▼                                        ▼
        │   │             Document([Media, 'a red ring'])       Document([Media, 'Output:', ' dax', Media, ...])
        │   └───────────►  WebPages (kit/pages.py): pages that somebody wrote, texts and pictures in their order
        ▼
      Report: what was left out

Opening a source reads names and captions only, and keeps where a picture is rather than the picture: memory stays flat,
and any item can be had by its number. Pictures are decoded when their Media is loaded. A stranger's data holds anything,
so there are two kinds of trouble: the user pointed at the wrong thing (BadInput, one line), or a single item is damaged
(BadItem, which is counted and skipped).
"""
import contextlib
import filecmp
import functools
import glob
import hashlib
import io
import itertools
import json
import os
import re
import stat
import warnings
import zlib
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from data import Document, Example, Media
from kit.configurator import BadInput, BadItem, one_line, open_file

RECOGNISED = ('a folder with metadata.jsonl (lines of {"file_name": ..., "text": ...}), a folder of class folders that hold '
              'pictures, .tar shards of pairs (key.jpg + key.txt or key.json), captions_*.json (COCO, with --images=DIR), '
              'documents.jsonl, or a folder of .html pages')

SPLITS = ('train', 'val', 'valid', 'validation', 'test')  # what a top-level folder is called when it is a split

VIDEOS = '.mp4 .m4v .mov .avi .mkv .webm .mpg .mpeg .wmv .flv .ogv .ts .3gp'.split()
FFMPEG = 'make a folder of frames of each: ffmpeg -i clip.mp4 -vf fps=1 clip/%05d.jpg'  # one frame a second (§3.2)

PICTURES = ('.png .apng .jpg .jpeg .jfif .gif .webp .avif .bmp .tif .tiff .ppm .pgm .pbm .pnm .pfm .jp2 .ico').split()

# Pillow's decoders that we use. Not all of them: EPS, for one, would run Ghostscript on a stranger's program.
Image.init()
FORMATS = [f for f in ('PNG', 'JPEG', 'MPO', 'GIF', 'WEBP', 'AVIF', 'BMP', 'TIFF', 'PPM', 'JPEG2000', 'ICO') if f in Image.OPEN]
ANIMATED = ('GIF', 'WEBP', 'PNG', 'AVIF')  # not TIFF and MPO: those hold pages, or a second view of the same scene

ORIENTATION = 0x0112  # the EXIF tag: which way the camera was held

# Bounds, so that no file can fill the memory or take for ever.
LIMIT_BYTES = 1 << 30   # of one picture file (some decoders read it whole)
LIMIT_FRAMES = 10_000   # looked at in one animation
LIMIT_LINE = 8 << 20    # bytes of one line of metadata.jsonl and documents.jsonl
LIMIT_TEXT = 1 << 20    # bytes of one caption
LIMIT_LIST = 1 << 40    # bytes of a whole metadata.jsonl, which is read line by line

BLOCK = 64  # documents of a mix that change places among themselves


# ---------------------------------------------------------------------------------------------
# One picture or clip

@contextlib.contextmanager
def only_bad_items(where):
    """Whatever goes wrong inside leaves as a BadItem; warnings do not leave at all. where: a str, or what is spelt out only then.

    Python keeps one list of warnings to ignore for the whole process: decode in worker processes, not in threads.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    except BadItem:
        raise
    except FileNotFoundError as e:
        raise BadItem('missing', str(where)) from e
    except PermissionError as e:
        raise BadItem('unreadable', str(where)) from e
    except UnidentifiedImageError as e:
        raise BadItem('not a picture', str(where)) from e
    except Image.DecompressionBombError as e:
        raise BadItem('too large', str(where), str(e)) from e
    except Exception as e:  # damaged files make decoders raise nearly anything: SyntaxError, struct.error, KeyError, ...
        cut_short = isinstance(e, EOFError) or 'truncated' in str(e).lower()
        raise BadItem('truncated' if cut_short else 'damaged', str(where), f'{type(e).__name__}: {e}') from e


@dataclass(frozen=True)
class Inside:
    """A picture inside another file: `size` bytes of `path` from `start` on (a member of a tar), or, where a page
    carries its picture in itself (a data: address), `content`."""
    path: str
    start: int = 0
    size: int = 0
    content: bytes | None = None

    def read(self):
        """bytes. Raises BadItem where the file does not hold as many."""
        if self.content is not None:
            return self.content
        if self.size > LIMIT_BYTES:
            raise BadItem('too large', str(self), f'{self.size} bytes')
        with open(self.path, 'rb') as f:
            f.seek(self.start)
            content = f.read(self.size)
        if len(content) < self.size:
            raise BadItem('truncated', str(self))
        return content

    def __str__(self):
        if self.content is not None:
            return self.path
        try:
            with open(self.path, 'rb') as f:  # its name stands in the 512 bytes before it: no need to remember it
                f.seek(max(0, self.start - 512))
                return f'{self.path}:' + f.read(100).split(b'\0')[0].decode('utf-8', 'replace')
        except OSError:  # gone since it was opened
            return f'{self.path} at byte {self.start}'


def read_frames(path, n_frame=8, limit_pixels=64_000_000):
    """The frames of a picture (one), an animation, or a folder of frames (up to n_frame). path: of a file or a folder,
    or an Inside.

    Animations are sampled at 1 frame a second (Flamingo §3.2). A folder of frames, in natural order (2 before
    10), is taken to be at 1 frame a second already. What is longer than n_frame seconds is spread evenly.
    Returns a list of PIL RGB pictures, at least one. Raises BadItem and nothing else.
    """
    if isinstance(path, Inside):
        with only_bad_items(path):
            return read_file(path, n_frame, limit_pixels)
    path = os.fspath(path)
    with only_bad_items(path):
        if not os.path.isdir(path):
            return read_file(path, n_frame, limit_pixels)
        names = frame_names(path)
        if not names:
            raise BadItem('empty', path, 'a folder without pictures')
        names = [names[k] for k in spread(len(names), n_frame)]
        limit_pixels = min(limit_pixels, 2 * limit_pixels // len(names))  # they are in memory together
        return [read_file(os.path.join(path, name), 1, limit_pixels)[0] for name in names]


def read_file(path, n_frame, limit_pixels):
    """`read_frames` of a single file."""
    with open_picture(path, limit_pixels) as image:
        if n_frame == 1 or image.format not in ANIMATED:
            return [to_rgb(image)]
        first, milliseconds = timeline(image, path, limit_pixels)
        frames = {}
        times = sample_times(milliseconds, n_frame)
        for k in dict.fromkeys(times):  # what is shown for long is in memory once
            image.seek(first + k)
            frames[k] = to_rgb(image)
        return [frames[k] for k in times]


def open_picture(path, limit_pixels=64_000_000):
    """A PIL picture of which only the header has been read; it is not larger than limit_pixels. Raises anything."""
    file = path
    if isinstance(path, Inside):
        content = path.read()
        if not content:
            raise BadItem('empty', str(path))
        file = io.BytesIO(content)
    else:
        info = os.stat(path)
        if not stat.S_ISREG(info.st_mode):
            raise BadItem('not a file', path)  # opening a pipe would wait for ever
        if info.st_size == 0:
            raise BadItem('empty', path)
        if is_video(path):
            raise BadItem('a video', path, FFMPEG)
        if info.st_size > LIMIT_BYTES:
            raise BadItem('too large', path, f'{info.st_size} bytes')
    image = Image.open(file, formats=FORMATS)
    try:
        check_size(image, path, limit_pixels)  # as the header declares it: nothing is decoded yet
    except BadItem:
        image.close()
        raise
    return image


def check_size(image, path, limit_pixels):
    if image.width * image.height > limit_pixels:
        raise BadItem('too large', str(path), f'{image.width} x {image.height} pixels')


def timeline(image, path, limit_pixels):
    """Play an animation once. Returns the number of its first frame and a list: how long each is shown, in ms."""
    # Besides the number of frames, bound their pixels: ten thousand large frames would take hours (at 30 to 90 million a second).
    most = max(1, min(LIMIT_FRAMES, 2 * limit_pixels // (image.width * image.height)))
    first = 1 if getattr(image, 'default_image', False) else 0  # APNG: a still for viewers that cannot animate
    milliseconds = []
    for k in range(first, first + most):
        try:
            image.seek(k)
        except EOFError:  # the end; asking for n_frames instead would walk through an endless file
            break
        check_size(image, path, limit_pixels)  # a GIF frame can be larger than the file said
        image.load()  # WebP tells how long a frame lasts only after decoding it
        duration = image.info.get('duration', 0)
        milliseconds.append(duration if duration > 10 else 100)  # as browsers do: 0 means "whatever is usual"
    if not milliseconds:
        raise BadItem('truncated', str(path), 'no frames')
    return first, milliseconds


def sample_times(milliseconds, n_frame):
    """Which frames to show, given how long each lasts: a list of 1 to n_frame indices, rising."""
    ends = np.cumsum(milliseconds) / 1000
    seconds = ends[-1]
    # One frame a second would reduce a one-second GIF to a still, and motion is all there is to such a clip.
    if seconds < 2:
        return spread(len(ends), n_frame)
    n = min(n_frame, int(np.ceil(seconds)))
    times = np.arange(n) * max(1, seconds / n_frame)
    return np.searchsorted(ends, times, side='right').tolist()  # the frame on screen at each time


def spread(n, most):
    """Up to `most` indices of a list of n, evenly spread, beginning with the first."""
    return [k * n // most for k in range(most)] if n > most else list(range(n))


def frame_names(folder):
    """The pictures directly in a folder, frame2 before frame10."""
    return sorted((name for name in os.listdir(folder) if is_picture(name)), key=natural)


def is_picture(name):
    return os.path.splitext(name)[1].lower() in PICTURES and not name.startswith('.')


def is_video(name):
    return os.path.splitext(name)[1].lower() in VIDEOS


def natural(name):
    """Sort key that reads digits as numbers."""
    return [int(part) if k % 2 else part for k, part in enumerate(re.split(r'(\d+)', name))], name


def to_rgb(image):
    """Any open PIL image as 8-bit RGB: upright, transparency laid on white. Raises BadItem and nothing else."""
    with only_bad_items(getattr(image, 'filename', '') or 'picture'):
        image.load()  # damaged pixels are found here, ...
        try:
            if image.getexif().get(ORIENTATION, 1) != 1:  # else it would be copied, which takes as long as decoding it
                image = ImageOps.exif_transpose(image)
        except Exception:  # ... so what fails here is the EXIF, and a picture is worth keeping without it
            pass
        if image.mode.startswith(('I', 'F')):  # more than 8 bits; Pillow would clip, and show white
            return Image.fromarray(to_8_bits(np.asarray(image))).convert('RGB')
        if image.mode == 'La':  # grey times alpha: Pillow takes it back to RGB only by way of LA
            image = image.convert('LA')
        if image.mode in ('RGBA', 'RGBa', 'LA', 'P', 'PA') or 'transparency' in image.info:
            image = image.convert('RGBA')
            image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
        return image.convert('RGB')


def to_8_bits(x):
    """Grey levels (H, W) of any range -> uint8."""
    if x.dtype.kind != 'f' and x.min() >= 0 and x.max() < 1 << 16:
        return ((x.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 16 bits: 65535 = 257 * 255
    # Nothing says which range floats (and 32 bits) have: take the first usual one that holds them, else stretch.
    x = np.nan_to_num(x.astype(np.float32), posinf=0, neginf=0)
    low, high = x.min(), x.max()
    if low >= 0 and high <= 255:
        low, high = 0, 1 if high <= 1 else 255
    return ((x - low) * (255 / max(high - low, 1e-9)) + 0.5).astype(np.uint8)


def load_variant(path, n_frame=8, variant=0, flip=False, turn=0):
    """`read_frames`, after so many quarter turns to the left; a variant above 0 sees them from elsewhere: turned, scaled, shifted, in other light.

    The same path and variant always give the same pixels. All frames of a clip move together. flip: whether a
    variant may be a mirror image, which is wrong for letters and for "left of".
    """
    frames = read_frames(path, n_frame)
    if turn:
        frames = [frame.transpose(TURNS[turn]) for frame in frames]
    if variant == 0:
        return frames
    rng = np.random.default_rng([zlib.crc32(os.fsencode(str(path))), variant, *([turn] if turn else [])])
    angle, scale = np.radians(rng.uniform(-10, 10)), rng.uniform(0.85, 1.1)
    dx, dy = rng.uniform(-0.08, 0.08, size=2)
    gamma = rng.uniform(0.85, 1.15, size=3)  # a power keeps white white: no seam where the white filling begins
    light = [round(255 * (v / 255) ** g) for g in gamma for v in range(256)]
    mirror = -1 if flip and rng.random() < 0.5 else 1
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    out = []
    for frame in frames:
        w, h = frame.size
        u, v = w * (0.5 + dx), h * (0.5 + dy)  # where the centre goes; Pillow wants the way back, from there
        back = (mirror * cos, mirror * sin, w / 2 - mirror * (cos * u + sin * v), -sin, cos, h / 2 + sin * u - cos * v)
        moved = frame.transform(frame.size, Image.Transform.AFFINE, back, Image.Resampling.BILINEAR, fillcolor='white')
        out.append(moved.point(light))
    return out


TURNS = (None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)


def media_of(path, n_frame, variant=0, flip=False, turn=0):
    """A picture or clip as Media. path, turn: as for `load_variant`. Raises BadItem when there is no such file."""
    if isinstance(path, Inside) and path.content is not None:
        key = f'data:{hashlib.sha256(path.content).hexdigest()}:{n_frame} frames'
    elif isinstance(path, Inside):
        with only_bad_items(path.path):
            info = os.stat(path.path)
        key = f'{path.path}@{path.start}+{path.size}:{info.st_mtime_ns}:{n_frame} frames'
    else:
        with only_bad_items(path):
            info = [os.stat(path)]
            if stat.S_ISDIR(info[0].st_mode):  # a folder keeps its own date when a frame in it changes
                info = [os.stat(os.path.join(path, name)) for name in frame_names(path)] or info
        # An animation's pixels depend on how many frames are taken.
        key = f'{path}:{max(s.st_mtime_ns for s in info)}:{sum(s.st_size for s in info)}:{n_frame} frames'
    if variant:
        key += f':v{variant}' + ('f' if flip else '')
    if turn:
        key += f':{90 * turn} degrees'
    return Media(key, functools.partial(load_variant, path, n_frame, variant, flip, turn))


# ---------------------------------------------------------------------------------------------
# Pictures with captions

class Report:
    """What was left out of a source: how many items of each kind, and where the first few are.

    The same thing at the same place counts once, however many epochs come across it.
    """

    def __init__(self):
        self.count, self.where, self.seen = Counter(), {}, set()

    def add(self, bad_item):
        if (this := hash((bad_item.kind, bad_item.where))) in self.seen:
            return
        self.seen.add(this)
        self.count[bad_item.kind] += 1
        self.where[bad_item.kind] = (self.where.get(bad_item.kind, []) + [bad_item.where])[:3]

    def add_report(self, other):
        self.count += other.count
        self.seen |= other.seen
        for kind, places in other.where.items():
            self.where[kind] = (self.where.get(kind, []) + places)[:3]

    @property
    def total(self):
        return sum(self.count.values())

    def as_dict(self):
        """{kind: count}"""
        return dict(self.count)

    def lines(self):
        """['missing: 5 (a.jsonl:3, a.jsonl:8, a.jsonl:9, ...)'], the most frequent kind first."""
        return [one_line(f'{kind}: {n} ({", ".join(self.where[kind])}{", ..." if n > len(self.where[kind]) else ""})'
                         + (f'; {FFMPEG}' if kind == 'a video' else '')) for kind, n in self.count.most_common()]


class Epochs:
    """Which of n things is number i of an endless stream: each epoch runs through all of them once, in its own order.

    *Why no shuffle buffer:* things are addressed by number, so a permutation of the numbers mixes the whole source rather
    than a buffer's worth of it, a position to resume at is one number, and any split of the numbers over ranks or workers
    shows each thing once an epoch, whoever asks and in whatever order. It costs 8 bytes a thing, and reads on disk that
    jump, which only a spinning one minds.
    """

    def __init__(self, n, seed):
        self.n, self.seed = n, seed
        self.last = (-1, None)  # the last permutation, only to save time

    def __call__(self, i):
        epoch, k = divmod(i, self.n)
        if self.last[0] != epoch:
            self.last = (epoch, np.random.default_rng([self.seed, epoch]).permutation(self.n))
        return int(self.last[1][k])


@dataclass(slots=True)
class Item:
    """A picture or clip on disk (absolute path, or an Inside) and its caption. label: what makes two items the same thing;
    group: what classes belong together, the folder that a class folder lies in (None: of no class folder); turn: quarter turns to the left."""
    path: str
    text: str
    split: str = 'train'
    label: str = ''
    where: str = ''
    group: str | None = None
    turn: int = 0


class Pairs:
    """A finite list of (picture, caption), served in a new order every epoch.

    n_variant: in how many variants `document` shows each picture, 1 being the plain one only; flip: whether a
    variant may be a mirror image; report: what was left out on the way here. Raises BadInput if there are no items.
    """

    def __init__(self, items, name, n_frame=8, n_variant=1, seed=0, flip=False, report=None):
        if not items:
            raise BadInput(f'{name}: no items')
        self.items, self.name, self.n_frame, self.n_variant = items, name, n_frame, n_variant
        self.seed, self.flip, self.report = seed, flip, report or Report()
        self.order = Epochs(len(items), seed)

    def __len__(self):
        return len(self.items)

    def split_names(self):
        """The split of each item."""
        if isinstance(self.items, list):
            return [item.split or 'train' for item in self.items]
        return self.items.splits  # of kit.shards.TarItems: known without reading their captions

    @property
    def splits(self):
        """{split: number of items}"""
        return dict(Counter(self.split_names()))

    def split(self, name):
        """Pairs of the items of one split. Raises BadInput, naming the splits there are."""
        kept = [k for k, split in enumerate(self.split_names()) if split == name]
        if not kept:
            there = ', '.join(f'{split} ({n})' for split, n in self.splits.items())
            raise BadInput(f"{self.name}: no split '{name}'; there is {there}")
        items = [self.items[k] for k in kept] if isinstance(self.items, list) else self.items.take(kept)
        return Pairs(items, self.name, self.n_frame, self.n_variant, self.seed, self.flip, self.report)

    def media(self, i, variant=0):
        """Item i as Media. Raises BadItem when the file has gone since the source was opened."""
        return media_of(self.items[i].path, self.n_frame, variant, self.flip, self.items[i].turn)

    def at(self, k, variant=0):
        """Item k as a Document."""
        item = self.items[k]
        return Document([self.media(k, variant), item.text], kind='pair', where=item.where)

    def document(self, i, rng):
        """Document number i, counted over epochs; it depends on `seed` and i, its variant on rng (numpy Generator)."""
        return self.at(self.order(i), int(rng.integers(self.n_variant)))


def readable_pairs(pairs, pixels, report):
    """The Pairs whose pictures can be read; what cannot is in the report. pixels: kit.features.Pixels. Raises BadInput if there
    are none."""
    good = []
    for i, item in enumerate(pairs.items):
        try:
            pixels(pairs.media(i))
            good.append(item)
        except BadItem as e:
            report.add(e)
    if not good:
        raise BadInput(f'{pairs.name}: no picture can be read: ' + '; '.join(report.lines()))
    return Pairs(good, pairs.name, pairs.n_frame, pairs.n_variant, pairs.seed, pairs.flip, pairs.report)


# ---------------------------------------------------------------------------------------------
# Few-shot pages

COPIES = 0.3  # share of the text made of a folder that is nothing but copying


class Pages:
    """Pages on which things recur, made of a Pairs: the diet on which in-context learning grows.

    A naming page gives each of a few labels a made-up name, for this page only, and shows each label again and
    again. Knowing the world does not help; only looking at the earlier examples does. What learns from such bursts
    of things with fleeting names learns to learn in context (Chan et al. 2022, arXiv:2205.05055). The other
    pages show distinct pictures with their own captions.

    names: list of made-up names; n_image, n_way: (least, most) examples and labels on a page; naming: how often a
    page is a naming page; within: how often its labels are all of one group, which are harder to tell apart.
    captions_first: so many pages have captions only, and after as many more the others are as frequent as they will be;
    ways_rise: over so many pages the most labels on a page rise from the least. Raises BadInput when there are too few labels or names.
    """

    def __init__(self, pairs, names, n_image=(6, 12), naming=0.6, n_way=(2, 4), within=0.0, captions_first=0, ways_rise=0):
        self.pairs, self.names = pairs, sorted(set(names))
        self.n_image, self.naming, self.n_way = n_image, naming, n_way
        self.within, self.captions_first, self.ways_rise = within, captions_first, ways_rise
        self.items, groups = {}, {}  # label -> indices of its items; group -> its labels
        for k, item in enumerate(pairs.items):
            self.items.setdefault(item.label, []).append(k)
            if item.group is not None:
                groups.setdefault(item.group, {})[item.label] = True
        self.labels = list(self.items)
        self.groups = [list(labels) for labels in groups.values() if len(labels) >= n_way[0]]
        if naming > 0 and len(self.labels) < n_way[0]:
            raise BadInput(f'{pairs.name}: naming pages need {n_way[0]} different labels, and there is {len(self.labels)}')
        if naming > 0 and len(self.names) < n_way[1]:
            raise BadInput(f'{pairs.name}: naming pages need {n_way[1]} different names, and there are {len(self.names)}')

    def document(self, i, rng):
        """Page number i -> Document. rng: numpy Generator."""
        if rng.random() < self.naming * (min(1.0, i / self.captions_first - 1) if self.captions_first else 1.0):
            rise = min(1.0, i / self.ways_rise) if self.ways_rise else 1.0
            examples = [(k, variant, name) for k, variant, name in self.deal(rng, round(self.n_way[0] + rise * (self.n_way[1] - self.n_way[0])))]
        else:
            examples = [(k, int(rng.integers(self.pairs.n_variant)), self.pairs.items[k].text) for k in self.distinct(i, rng)]
        pieces, seen = [], set(self.names)  # a made-up name cannot be known at its first showing: given, not learned
        for k, variant, answer in examples:
            pieces += Example(self.pairs.media(k, variant), 'Output:', answer).pieces(learned=answer not in seen)
            seen.discard(answer)
        return Document(pieces, kind='examples', where=self.pairs.items[examples[0][0]].where)

    def text(self, i, rng):
        """The same diet without pictures, for the language model, which must learn to copy before it is frozen: words that come
        again and again; a caption, or some; and naming pages in words ("heart: dax. tram: wug. heart: dax.")."""
        if self.naming > 0 and rng.random() < COPIES:
            return self.copies(rng)
        if rng.random() < self.naming:
            return self.naming_text(rng)
        if rng.random() < 0.5:
            return self.pairs.items[self.pairs.order(i)].text
        return '\n'.join(f'Output: {self.pairs.items[k].text}' for k in self.distinct(i, rng))

    def copies(self, rng):
        """Random words in an order that comes again: nothing but copying predicts them."""
        words = [self.names[j] for j in rng.choice(len(self.names), size=min(len(self.names), int(rng.integers(3, 7))), replace=False)]
        words += [w for k in rng.integers(len(self.pairs), size=int(rng.integers(1, 5))) for w in self.pairs.items[k].text.split()[:4]]
        return ' '.join([words[j] for j in rng.permutation(len(words))] * int(rng.integers(2, 5)))

    def naming_text(self, rng):
        """Mostly a thing is told by a single word, next to its name: looking that up is the simplest copying there is, and on a
        page with pictures, where every token sees its picture, the look-up is as short."""
        deal = [(self.pairs.items[k].text.rstrip('.'), name) for k, _, name in self.deal(rng, self.n_way[1])]
        link, end = [(': ', '. '), (' ', '. '), (' ', '. '), (' ', ' '), (' ', '\n')][int(rng.integers(5))]
        told = {}  # name -> what the thing is called
        for thing, name in deal:
            words = thing.split()
            word = words[int(rng.integers(len(words)))] if rng.random() < 0.85 else thing
            told.setdefault(name, thing if word in told.values() else word)
        return ''.join(told[name] + link + name + end for _, name in deal).rstrip()

    def distinct(self, i, rng):
        """Different items for a page of captions; the first is item i of the epoch, so that each gets its turn."""
        lead = self.pairs.order(i)
        n = min(int(rng.integers(self.n_image[0], self.n_image[1] + 1)), len(self.pairs))
        others = rng.choice(len(self.pairs), size=n, replace=False).tolist()
        return [lead] + [k for k in others if k != lead][:n - 1]

    def deal(self, rng, most):
        """The plan of a naming page of at most so many labels: [(item, variant, name), ...] in the order they are shown."""
        n = int(rng.integers(self.n_image[0], self.n_image[1] + 1))
        way = int(rng.integers(self.n_way[0], most + 1))
        labels = self.labels
        if self.within and self.groups and rng.random() < self.within:
            labels = self.groups[int(rng.integers(len(self.groups)))]
        way = min(way, max(self.n_way[0], n // 2), len(labels))  # so that each can come twice
        labels = [labels[j] for j in rng.choice(len(labels), size=way, replace=False)]
        names = [self.names[j] for j in rng.choice(len(self.names), size=way, replace=False)]
        # Twice each, and whatever room is left goes to anyone.
        turns = (list(range(way)) * 2)[:n] + rng.integers(way, size=max(0, n - 2 * way)).tolist()
        views = [iter(self.views(label, turns.count(w), rng)) for w, label in enumerate(labels)]
        return [(*next(views[w]), names[w]) for w in rng.permutation(turns)]

    def views(self, label, n, rng):
        """n ways to see a label, [(item, variant), ...], no two of them the same pixels.

        They are different items as long as there are any; then the same ones come again in further variants, even
        if `n_variant` is 1: a picture repeated exactly could be recognised without seeing what is in it.
        """
        items = rng.choice(self.items[label], size=min(n, len(self.items[label])), replace=False).tolist()
        rounds = -(-n // len(items))
        variants = rng.permutation(max(rounds, self.pairs.n_variant)).tolist()
        return [(items[j % len(items)], variants[j // len(items)]) for j in range(n)]


# ---------------------------------------------------------------------------------------------
# Opening what is on disk

@dataclass
class Classes:
    """How class folders are read. depth: how many folder names make a class, its own and those before it (0: all of them); rotate:
    each class comes four times, upright and turned by 90, 180 and 270 degrees, as four classes; held: groups (folders that class
    folders lie in) that make the split `val`, several with commas."""
    depth: int = 0
    rotate: bool = False
    held: str = ''


def open_path(path, n_frame=8, seed=0, split='train', n_variant=1, flip=False, images='', classes=Classes()):
    """Whatever is at `path` -> Pairs, or WebPages where it holds pages. Raises BadInput."""
    from kit import pages
    if pages.is_pages(path):
        return pages.open_pages(path, n_frame, seed, images)
    return open_folder(path, n_frame, seed, split, n_variant=n_variant, flip=flip, images=images, classes=classes)


def open_folder(path, n_frame=8, seed=0, split='train', report=None, n_variant=1, flip=False, images='', classes=Classes()):
    """A folder, a .tar shard, a glob of shards or a COCO captions file -> Pairs of one split (every split if None). Its
    format is told by what is on disk.

    path: one of these, or a list of them that make one source; images: the folder of the pictures that a COCO file
    names. What was left out is in the `report` of the result, and added to the Report given here, if any. Raises
    BadInput when a folder is missing, empty or none of RECOGNISED, when more than half of the items are bad, and when
    there is no such split.
    """
    from kit.pages import is_pages
    from kit.shards import find_tars, read_tars
    roots = [os.fspath(root) for root in ([path] if isinstance(path, (str, os.PathLike)) else path)]
    name = ' + '.join(roots)
    here, items, pictures = Report(), [], []
    for root in roots:
        before = here.total
        if is_pages(root):
            raise BadInput(f'{root}: holds pages; pairs of a picture and its caption are wanted here')
        if found := find_metadata(root):
            for file, folder_split in found:
                items += read_metadata(file, folder_split, here)
        elif found := find_tars(root, here):
            shards = read_tars(found, here)
            items = items + list(shards) if len(roots) > 1 else shards
        elif found := find_coco(root):
            for file, file_split in found:
                items += read_coco(file, images or os.path.dirname(file), file_split, here)
        else:
            check_folder(root)
            found = find_classes(root, here)
            if not found and here.total == before:
                raise BadInput(f'{root}: nothing here that can be read; recognised are {RECOGNISED}')
            pictures += found
    # Only now: the same class may be under several roots, and two classes under different roots must not share a name.
    if pictures:
        items = items + class_items(pictures, classes)

    bad = here.total
    if bad > len(items):  # one damaged file is bad luck; most of them are a mistake, and training would hide it
        hint = '' if images or not find_coco(roots[0]) else ' (--images=DIR says where its pictures are)'
        raise BadInput(f'{name}: {bad} of {bad + len(items)} items cannot be used: ' + '; '.join(here.lines()) + hint)
    if report is not None:
        report.add_report(here)
    pairs = Pairs(items, name, n_frame, n_variant, seed, flip, here)
    return pairs if split is None else pairs.split(split)


def check_folder(path):
    """Raises BadInput unless path is a folder with something in it."""
    if not os.path.exists(path):
        raise BadInput(f'{path}: no such folder')
    if is_video(path):
        raise BadInput(f'{path}: a video; {FFMPEG}, and name them in a metadata.jsonl')
    if not os.path.isdir(path):
        raise BadInput(f'{path}: not a folder; recognised are {RECOGNISED}')
    try:
        if not os.listdir(path):
            raise BadInput(f'{path}: the folder is empty; recognised are {RECOGNISED}')
    except OSError as e:
        raise BadInput(f'{path}: {e.strerror}') from e


def locate(root, name):
    """The real path of `name` in the folder `root` (itself a real path). Raises BadItem when it is not there, or
    leads out of it: a downloaded list must not be able to show us other files of this machine."""
    path = os.path.join(root, name)
    try:
        real = os.path.realpath(path)  # links and '..' resolved
        if os.path.isabs(name) or not real.startswith(os.path.join(root, '')):
            raise BadItem('outside the folder', path)
        mode = os.stat(real).st_mode
    except (OSError, ValueError) as e:  # ValueError: names that no file can have
        raise BadItem('missing', path) from e
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise BadItem('not a file', path)
    return real


# Format 1: metadata.jsonl (Hugging Face ImageFolder)

def find_metadata(root):
    """[(metadata.jsonl, split or None)]: the folder's own, or else one in each of its split folders."""
    if os.path.basename(root) == 'metadata.jsonl':
        root = os.path.dirname(root)
    places = [(os.path.join(root, 'metadata.jsonl'), None)]
    places += [(os.path.join(root, split, 'metadata.jsonl'), split) for split in SPLITS]
    found = [place for place in places if os.path.isfile(place[0])]
    return found[:1] if found and found[0][1] is None else found


def read_metadata(file, split, report):
    """metadata.jsonl -> list of Items; bad lines go into the report. Raises BadInput if it cannot be opened."""
    items, root = [], os.path.realpath(os.path.dirname(file))
    for number, _, line in read_lines(file, report):
        where = f'{file}:{number}'
        try:
            items.append(read_line(line, root, split, where))
        except BadItem as e:
            report.add(BadItem(e.kind, where, e.message))
    return items


def read_lines(file, report):
    """(number, offset in the file, bytes) of each line that is not empty; lines too long go into the report. Raises BadInput
    if the file cannot be opened."""
    try:
        with open_file(file, LIMIT_LIST) as f:
            start = 0
            for number in itertools.count(1):
                line = f.readline(LIMIT_LINE)
                if not line:
                    return
                too_long = len(line) == LIMIT_LINE and not line.endswith(b'\n')
                while too_long and (rest := f.readline(LIMIT_LINE)) and not rest.endswith(b'\n'):
                    pass
                if too_long:
                    report.add(BadItem('line too long', f'{file}:{number}'))
                elif line.strip():
                    yield number, start, line
                start = f.tell()
    except OSError as e:
        raise BadInput(f'{file}: {e.strerror}') from e


def read_line(line, root, split, where):
    """One line of metadata.jsonl (bytes) -> Item. Raises BadItem."""
    fields = parse_json(line, where)
    name, text = fields.get('file_name'), check_caption(fields.get('text'), where)
    if not isinstance(name, str) or not name:
        raise BadItem('no file_name', where)
    in_split = fields.get('split') or split or 'train'
    if not isinstance(in_split, str):
        raise BadItem('bad split', where, repr(in_split))
    return Item(locate(root, name), text, in_split, text, where)


def parse_json(content, where):
    """bytes -> dict. Raises BadItem."""
    try:
        fields = json.loads(content.decode('utf-8-sig'))
    except UnicodeDecodeError as e:
        raise BadItem('not UTF-8', where, str(e)) from e
    except (ValueError, RecursionError) as e:
        raise BadItem('not JSON', where, str(e)) from e
    if not isinstance(fields, dict):
        raise BadItem('not JSON', where, 'not an object')
    return fields


def check_caption(text, where):
    """The caption without spaces around it. Raises BadItem where it is none."""
    if not isinstance(text, str) or not text.strip():
        raise BadItem('no text', where)
    try:
        if len(text.encode()) > LIMIT_TEXT:
            raise BadItem('text too long', where)
    except UnicodeEncodeError as e:  # JSON can spell half a character, "\ud800"
        raise BadItem('not UTF-8', where, str(e)) from e
    return text.strip()


# Format 2: class folders (torchvision ImageFolder)

def find_classes(root, report):
    """[(split, class folder as a tuple of names, picture), ...] of all pictures that lie in some folder below root.
    Raises BadInput where a metadata.jsonl lies among them."""
    root = os.path.realpath(root)
    found, folders = [], [()]
    while folders:
        parts = folders.pop()
        try:
            entries = sorted(os.scandir(os.path.join(root, *parts)), key=lambda entry: natural(entry.name))
        except OSError as e:
            report.add(BadItem('unreadable', os.path.join(root, *parts), e.strerror))
            continue
        for entry in entries:
            if entry.name.startswith('.'):
                continue
            if entry.name == 'metadata.jsonl':  # or every picture would be captioned "images"
                raise BadInput(f'{root}: the metadata.jsonl is further down; open {os.path.dirname(entry.path)} instead')
            if entry.is_dir(follow_symlinks=False):
                folders.append(parts + (entry.name,))
            elif is_picture(entry.name) or is_video(entry.name) or os.path.isdir(entry.path):  # the last is a link to a folder
                try:
                    if is_video(entry.name):
                        raise BadItem('a video', entry.path, FFMPEG)
                    if entry.is_symlink() or not entry.is_file():
                        locate(root, os.path.join(*parts, entry.name))
                    if entry.is_file():  # a folder that lies in here is read where it lies
                        found.append((parts, entry.path))
                except BadItem as e:
                    report.add(e)
    # train/ and val/ are splits if they hold class folders and stand together or alone. A 'train' between 'bus' and
    # 'tram' is a train.
    tops = {parts[0] for parts, _ in found if parts}
    splits = {top for top in tops if top in SPLITS}
    if splits != tops and len(splits) == 1 or any(parts[0] in splits for parts, _ in found if len(parts) == 1):
        splits = set()
    if splits:
        found = [(parts[0], parts[1:], path) if parts and parts[0] in splits else (None, (), path) for parts, path in found]
    else:
        found = [('train', parts, path) for parts, path in found]
    classes = [(split, parts, path) for split, parts, path in found if parts]
    for _, parts, path in found if classes else []:
        if not parts:
            report.add(BadItem('in no class folder', path))
    return classes


def class_items(pictures, classes):
    """[(split, class folder as a tuple of names, picture), ...] -> list of Items, read as `classes` says. Raises BadInput."""
    if classes.depth:
        if shallow := next((file for _, parts, file in pictures if len(parts) < classes.depth), None):
            raise BadInput(f'--class_depth={classes.depth}: {shallow} lies less deep')
        pictures = same_once([(split, parts[-classes.depth:], file) for split, parts, file in pictures])
    held = {name.strip() for name in classes.held.split(',')} - {''}
    if unknown := held - {parts[-2] for _, parts, _ in pictures if len(parts) > 1}:
        there = sorted({parts[-2] for _, parts, _ in pictures if len(parts) > 1})
        raise BadInput(f'--held_groups={classes.held}: no class folders lie in {min(unknown)!r}; there is {", ".join(there) or "nothing to hold out"}')
    captions, items = name_classes({parts for _, parts, _ in pictures}), []
    for turn in range(4 if classes.rotate else 1):
        said = f' turned {90 * turn}' if turn else ''
        for split, parts, file in pictures:
            is_held = len(parts) > 1 and parts[-2] in held
            if not (turn and (is_held or split != 'train')):  # what is asked about stands upright
                name = captions[parts] + said
                items.append(Item(file, name, 'val' if is_held else split, name, file, ' '.join(parts[:-1]) + said, turn))
    return items


def same_once(pictures):
    """Without the copies of a picture in its own class: an alphabet may have been packed twice."""
    seen, kept = {}, []
    for split, parts, file in pictures:
        twins = seen.setdefault((parts, os.path.basename(file)), [])
        if not any(filecmp.cmp(file, twin, shallow=False) for twin in twins):
            twins.append(file)
            kept.append((split, parts, file))
    return kept


def name_classes(classes):
    """{class folder (tuple of names): caption}. The caption is the folder's own name, with as many parents before
    it as it takes to tell it from another class: birds/crane and machines/crane."""
    depth = dict.fromkeys(classes, 1)
    while True:
        captions = {parts: ' '.join(spell(part) for part in parts[-n:]) for parts, n in depth.items()}
        count = Counter(captions.values())
        same = [parts for parts in classes if count[captions[parts]] > 1 and depth[parts] < len(parts)]
        if not same:
            return captions  # what still reads the same, hot_dog and hot-dog, is the same
        for parts in same:
            depth[parts] += 1


def spell(name):
    """A folder's name as words."""
    name = os.fsencode(name).decode('utf-8', 'replace')  # a name on disk need not be text
    return ' '.join(name.replace('_', ' ').replace('-', ' ').split()) or name


# Format 3: captions_*.json (COCO); format 4, .tar shards, is in kit/shards.py

def find_coco(root):
    """[(captions file, split)] of such a file, or of a folder of them: captions_train2017.json holds the training split."""
    files = [root] if root.endswith('.json') and os.path.isfile(root) else []
    if os.path.isdir(root):
        files = sorted(glob.glob(os.path.join(glob.escape(root), 'captions_*.json')))
    found = [(file, next((split for split in SPLITS if os.path.basename(file).startswith('captions_' + split)), None)) for file in files]
    return found if os.path.isdir(root) else [(file, None) for file, _ in found]


def read_coco(file, images, split, report):
    """captions_*.json -> list of Items, one a caption; several belong to the same picture. Raises BadInput."""
    if not os.path.isdir(images):
        raise BadInput(f'--images={images}: no such folder')
    # COCO keeps captions_train2017.json's pictures in train2017/, and does not say so.
    places = [os.path.realpath(images), os.path.realpath(os.path.join(images, os.path.basename(file)[:-len('.json')].removeprefix('captions_')))]
    paths, items = {}, []  # picture's id -> path, or what is wrong with it
    for entry in json_array(file, 'images'):
        number, name = (entry.get('id'), entry.get('file_name')) if isinstance(entry, dict) else (None, None)
        if isinstance(number, (int, str)) and isinstance(name, str) and name:
            for place in places:
                try:
                    paths[number] = locate(place, name)
                    break
                except BadItem as e:
                    paths.setdefault(number, e)
    for position, entry in enumerate(json_array(file, 'annotations')):
        entry = entry if isinstance(entry, dict) else {}
        where = f'{file}: annotation {entry.get("id", f"number {position}")}'
        number = entry.get('image_id')
        path = paths.get(number) if isinstance(number, (int, str)) else None
        try:
            text = check_caption(entry.get('caption'), where)
            if path is None:
                raise BadItem('no such image id', where)
            if isinstance(path, BadItem):
                raise BadItem(path.kind, path.where)
            items.append(Item(path, text, split or 'train', text, where))
        except BadItem as e:
            report.add(BadItem(e.kind, where, e.where))
    return items


def json_array(file, key):
    """The elements of the array `key` of the JSON object in a file, one after the other: COCO's captions are 90 MB, and as
    Python objects many times that. Raises BadInput."""
    decoder, text, at = json.JSONDecoder(), '', 0

    def more():
        nonlocal text, at
        chunk = f.read(1 << 20)
        text, at = text[at:] + chunk, 0
        return bool(chunk)

    def peek():  # the next character that is no space
        nonlocal at
        while True:
            at = re.compile(r'[ \t\r\n]*').match(text, at).end()
            if at < len(text) or not more():
                return text[at:at + 1]

    def take(character):
        nonlocal at
        if peek() != character:
            raise ValueError(f'{character!r} expected, found {text[at:at + 20]!r}')
        at += 1

    def value():
        nonlocal at
        peek()
        while True:
            try:
                result, end = decoder.raw_decode(text, at)
                if end < len(text) or not more():  # a number may go on in the next chunk
                    at = end
                    return result
            except ValueError:
                if len(text) - at > LIMIT_LINE or not more():
                    raise

    try:
        with open(file, encoding='utf-8-sig') as f:
            take('{')
            while peek() != '}':
                name = value()
                take(':')
                if peek() == '[':
                    take('[')
                    while peek() != ']':
                        element = value()
                        if name == key:
                            yield element
                        if peek() != ']':
                            take(',')
                    take(']')
                else:
                    value()
                if peek() != '}':
                    take(',')
    except OSError as e:
        raise BadInput(f'{file}: {e.strerror}') from e
    except (ValueError, RecursionError) as e:
        raise BadInput(f'{file}: not a captions file: {e}') from e


# ---------------------------------------------------------------------------------------------
# The four sources


class Source:
    """What one of the keys m3w, align, ltip, vtp and text stands for: one or several parts, mixed by weight.

    document(i) -> data.Document number i of an endless stream; text(i) -> str. Both depend on seed, role and i alone,
    so a position in the data is one number, and rank r of R takes the numbers that leave r when divided by R. Each part has
    numbers of its own, 0, 1, 2, ..., each of them once: of every part every item comes once in an epoch of that part.
    """

    def __init__(self, role, parts, weights, seed):
        self.role, self.parts, self.seed = role, parts, seed
        self.weights = [Fraction(str(weight)) for weight in weights]  # 0.1 is a tenth, however far the numbers go

    def whose(self, i):
        """-> (which part number i belongs to, how many of its own come before it)

        *Why not drawn by weight:* a sampled part would show some items twice and others not at all. Dealt out evenly, as a
        line is drawn in pixels, the first i numbers hold i times the share of a part, rounded, and that needs no counting. The
        numbers of a block change places, or a mix of 1:1 would deal all even numbers to the same part, and rows of texts
        (kit/run.py) begin with even numbers only.
        """
        if len(self.parts) == 1:
            return 0, i
        block, place = divmod(i, BLOCK)
        places = np.random.default_rng([self.seed, *self.role.encode(), BLOCK, block]).permutation(BLOCK)
        i, total = block * BLOCK + int(places[place]), sum(self.weights)
        for part, weight in enumerate(self.weights):  # this part against all that come after it
            before = i * weight // total
            if (i + 1) * weight // total > before:  # always so for the last one, whose weight is all that is left
                return part, before
            i, total = i - before, total - weight

    def draw(self, i):
        """-> the part, its own number, and chance for this number alone"""
        part, own = self.whose(i)
        rng = np.random.default_rng([self.seed, *self.role.encode(), i])
        rng.random()  # once chose the part; without it, the same seed would no longer give the runs that it gave
        return self.parts[part], own, rng

    def document(self, i):
        part, own, rng = self.draw(i)
        return part.document(own, rng)

    def text(self, i):
        part, own, rng = self.draw(i)
        return part.text(own, rng)


def split_spec(role, spec):
    """'dirA:3,dirB:1' -> [('dirA', 3.0), ('dirB', 1.0)]. Raises BadInput."""
    parts = []
    for entry in spec.split(','):
        path, _, weight = entry.rpartition(':')
        try:
            path, weight = path or entry, float(weight)
        except ValueError:
            path, weight = entry, 1.0  # a colon of the path's own, or none
        if not path:
            raise BadInput(f'{role}: {spec!r} names no folder before or after one of its commas')
        if not 0 < weight < float('inf'):  # a NaN is neither
            raise BadInput(f'{role}: the weight of {path} must be a number above zero')
        parts.append((path, weight))
    return parts


def open_source(role, spec, n_frame=8, seed=0, naming=0.6, flip=False, images='', classes=Classes(), n_variant=4, **pages):
    """'shapes', 'PATH', or several of them with weights, 'dirA:3,dirB:1' -> Source. Raises BadInput.

    Pairs go to align, ltip and vtp, and as few-shot pages made of them to m3w and text (`pages`: more for the Pages, which show each picture in n_variant variants); pages go
    to m3w and text.
    """
    from kit.shapes import Shapes, made_up_names
    parts, found = [], split_spec(role, spec)
    for path, weight in found:
        if path == 'shapes':
            parts.append(Shapes('m3w' if role == 'text' else role, float(Fraction(weight) / sum(Fraction(w) for _, w in found))))
            continue
        part = open_path(path, n_frame, seed, n_variant=n_variant if role == 'm3w' else 1, flip=flip, images=images, classes=classes)
        if role in ('m3w', 'text') and isinstance(part, Pairs):
            part = Pages(part, naming=naming, **{'names': made_up_names(np.random.default_rng(0), 1000), 'n_way': (2, 5), **pages})
        elif role not in ('m3w', 'text') and not isinstance(part, Pairs):
            raise BadInput(f'{role}: {path} holds pages, which go to m3w or text; {role} wants pictures with captions')
        parts.append(part)
    return Source(role, parts, [weight for _, weight in found], seed)
