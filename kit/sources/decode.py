"""One picture or clip on disk, in whatever state it is: checked before it is decoded, and turned into RGB
frames.

    path or Inside (bytes of a larger file)  ──►  media_of  ──►  Media  ──load──►  read_frames, or a variant

A stranger's file holds anything. Whatever is wrong with it leaves here as a BadItem of one kind ('truncated',
'too large', …), never as a decoder's own exception, and never after taking all memory.
"""
import contextlib
import functools
import hashlib
import io
import os
import re
import stat
import warnings
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from data import Media
from kit.files import BadItem


VIDEOS = '.mp4 .m4v .mov .avi .mkv .webm .mpg .mpeg .wmv .flv .ogv .ts .3gp'.split()
# One frame a second (§2.1).
FFMPEG = 'make a folder of frames of each: ffmpeg -i clip.mp4 -vf fps=1 clip/%05d.jpg'

PICTURES = ('.png .apng .jpg .jpeg .jfif .gif .webp .avif .bmp .tif .tiff .ppm .pgm .pbm .pnm .pfm .jp2 '
            '.ico').split()

# Pillow's decoders that we use. Not all of them: EPS, for one, would run Ghostscript on a stranger's program.
Image.init()
FORMATS = [f for f in 'PNG JPEG MPO GIF WEBP AVIF BMP TIFF PPM JPEG2000 ICO'.split() if f in Image.OPEN]
# Texts and colour profiles in a PNG, unpacked: a workflow or a camera's profile is more than the 1 MiB that
# Pillow allows.
PngImagePlugin.MAX_TEXT_CHUNK = 64 << 20
ANIMATED = ('GIF', 'WEBP', 'PNG', 'AVIF')  # not TIFF and MPO: those hold pages, or a second view of a scene

ORIENTATION = 0x0112  # the EXIF tag: which way the camera was held

# Bounds, so that no file can fill the memory or be read without end.
LIMIT_BYTES = 1 << 30   # of one picture file (some decoders read it whole)
LIMIT_FRAMES = 10_000   # looked at in one animation


@contextlib.contextmanager
def only_bad_items(where):
    """Whatever goes wrong inside leaves as a BadItem; warnings do not leave at all. where: anything; it is
    spelt out only then.

    Python keeps one list of warnings to ignore for the whole process: decode in worker processes, not in
    threads.
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
    except Exception as e:  # damaged files make decoders raise nearly anything: SyntaxError, KeyError, ...
        cut_short = isinstance(e, EOFError) or 'truncated' in str(e).lower()
        raise BadItem('truncated' if cut_short else 'damaged', str(where), f'{type(e).__name__}: {e}') from e


@dataclass(frozen=True)
class Inside:
    """A picture inside another file: `size` bytes of `path` from `start` on (a member of a tar), or, where a
    page carries its picture in itself (a data: address), `content`."""
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
            with open(self.path, 'rb') as f:  # its name stands in the 512 bytes before it, and is not kept
                f.seek(max(0, self.start - 512))
                return f'{self.path}:' + f.read(100).split(b'\0')[0].decode('utf-8', 'replace')
        except OSError:  # gone since it was opened
            return f'{self.path} at byte {self.start}'


def read_frames(path, n_frame=8, limit_pixels=64_000_000, fps=1.0):
    """The frames of a picture (one), an animation, or a folder of frames (up to n_frame). path: of a file or
    a folder, or an Inside.

    Animations are sampled at `fps` frames a second (the paper: 1 in training, §2.1; 3 when a trained model
    is asked). A folder of frames, in natural order (2 before 10), is taken to have that rate already. What is
    longer than n_frame / fps seconds is spread evenly. Returns a list of PIL RGB pictures, at least one.
    Raises BadItem and nothing else.
    """
    if isinstance(path, Inside):
        with only_bad_items(path):
            return read_file(path, n_frame, limit_pixels, fps)
    path = os.fspath(path)
    with only_bad_items(path):
        if not os.path.isdir(path):
            return read_file(path, n_frame, limit_pixels, fps)
        names = frame_names(path)
        if not names:
            raise BadItem('empty', path, 'a folder without pictures')
        names = [names[k] for k in spread(len(names), n_frame)]
        limit_pixels = min(limit_pixels, 2 * limit_pixels // len(names))  # they are in memory together
        return [read_file(os.path.join(path, name), 1, limit_pixels)[0] for name in names]


def read_file(path, n_frame, limit_pixels, fps=1.0):
    """`read_frames` of a single file."""
    with open_picture(path, limit_pixels) as image:
        if n_frame == 1 or image.format not in ANIMATED:
            return [to_rgb(image)]
        first, milliseconds = timeline(image, path, limit_pixels)
        frames = {}
        times = sample_times(milliseconds, n_frame, fps)
        for k in dict.fromkeys(times):  # what is shown for long is in memory once
            image.seek(first + k)
            frames[k] = to_rgb(image)
        return [frames[k] for k in times]


def open_picture(path, limit_pixels=64_000_000):
    """A PIL picture of which only the header has been read; it is not larger than limit_pixels. Raises
    anything."""
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
    """Play an animation once. Returns the number of its first frame and a list: how long each is shown, in
    ms."""
    # Besides the number of frames, bound their pixels: ten thousand large frames would take hours.
    most = max(1, min(LIMIT_FRAMES, 2 * limit_pixels // (image.width * image.height)))
    first = 1 if getattr(image, 'default_image', False) else 0  # APNG: a still for those that cannot animate
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


def sample_times(milliseconds, n_frame, fps=1.0):
    """Which frames to show, given how long each lasts: a list of 1 to n_frame indices, rising."""
    ends = np.cumsum(milliseconds) / 1000
    seconds = ends[-1]
    # One frame a second would reduce a one-second GIF to a still, and motion is all there is to such a clip.
    if seconds * fps < 2:
        return spread(len(ends), n_frame)
    n = min(n_frame, int(np.ceil(seconds * fps)))
    times = np.arange(n) * max(1 / fps, seconds / n_frame)
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
    """Any open PIL image as 8-bit RGB: upright, transparency laid on white. Raises BadItem and nothing
    else."""
    with only_bad_items(getattr(image, 'filename', '') or 'picture'):
        image.load()  # damaged pixels are found here, ...
        try:
            if image.getexif().get(ORIENTATION, 1) != 1:  # else a copy, which takes as long as decoding it
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
    # Nothing says which range floats (and 32 bits) have: take the first usual one that holds them, else
    # stretch.
    x = np.nan_to_num(x.astype(np.float32), posinf=0, neginf=0)
    low, high = x.min(), x.max()
    if low >= 0 and high <= 255:
        low, high = 0, 1 if high <= 1 else 255
    return ((x - low) * (255 / max(high - low, 1e-9)) + 0.5).astype(np.uint8)


def load_variant(path, n_frame=8, variant=0, flip=False, turn=0, fps=1.0, mirrored=False):
    """`read_frames`, mirrored or not, after this many quarter turns to the left; a variant above 0 sees them
    from elsewhere: turned, scaled, shifted, in other light.

    The same path and variant always give the same pixels. All frames of a clip move together. flip: whether a
    variant may be a mirror image, which is wrong for letters and for "left of".
    """
    frames = read_frames(path, n_frame, fps=fps)
    if mirrored:
        frames = [ImageOps.mirror(frame) for frame in frames]
    if turn:
        frames = [frame.transpose(TURNS[turn]) for frame in frames]
    if variant == 0:
        return frames
    rng = np.random.default_rng([zlib.crc32(os.fsencode(str(path))), variant, *([turn] if turn else [])])
    angle, scale = np.radians(rng.uniform(-10, 10)), rng.uniform(0.85, 1.1)
    dx, dy = rng.uniform(-0.08, 0.08, size=2)
    gamma = rng.uniform(0.85, 1.15, size=3)  # a power keeps white white: no seam where the filling begins
    light = [round(255 * (v / 255) ** g) for g in gamma for v in range(256)]
    mirror = -1 if flip and rng.random() < 0.5 else 1
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    out = []
    for frame in frames:
        w, h = frame.size
        u, v = w * (0.5 + dx), h * (0.5 + dy)  # where the centre goes; Pillow wants the way back, from there
        back = (mirror * cos, mirror * sin, w / 2 - mirror * (cos * u + sin * v),
                -sin, cos, h / 2 + sin * u - cos * v)
        affine, smooth = Image.Transform.AFFINE, Image.Resampling.BILINEAR
        moved = frame.transform(frame.size, affine, back, smooth, fillcolor='white')
        out.append(moved.point(light))
    return out


TURNS = (None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)


def media_of(path, n_frame, variant=0, flip=False, turn=0, fps=1.0, mirrored=False):
    """A picture or clip as Media. path, turn, fps, mirrored: as for `load_variant`. Raises BadItem when there
    is no such file."""
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
    if mirrored:
        key += ':mirrored'
    if fps != 1:
        key += f':{fps} a second'
    return Media(key, functools.partial(load_variant, path, n_frame, variant, flip, turn, fps=fps,
                                        mirrored=mirrored))
