"""Reading what people have on disk: every odd picture gives the right pixels or one clear BadItem, never
anything else."""
import json
import os
import pickle
import re
import struct
import time
import warnings
import zlib
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from data import Document, Given, Media
from kit.files import BadInput, BadItem, read_json
from kit.sources import decode, fewshot, forms
from kit.sources.base import FolderSpec, Item, Pairs, Report
from kit.sources.decode import read_frames, to_rgb
from kit.sources.fewshot import Pages
from kit.sources.folders import name_classes
from kit.sources.forms import open_folder, open_source, split_spec
from kit.sources.source import Source

NAMES = ['dax', 'wug', 'blicket', 'fep', 'toma', 'zup']


def picture(path, colour=(255, 0, 0), size=(4, 3)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', size, colour).save(path)
    return path


def pixels(frame):
    """Rows of (r, g, b)."""
    assert frame.mode == 'RGB'
    return [[tuple(p) for p in row] for row in np.asarray(frame).tolist()]


def kind_of_failure(path, **options):
    with pytest.raises(BadItem) as e:
        read_frames(path, **options)
    assert str(path) in e.value.where
    return e.value.kind


def input_error(*arguments, **options):
    with pytest.raises(BadInput) as e:
        open_folder(*arguments, **options)
    assert '\n' not in str(e.value)
    return str(e.value)


# ---------------------------------------------------------------------------------------------
# Pixels

def palette_picture():
    image = Image.new('P', (2, 1))
    image.putpalette([9, 9, 9, 10, 20, 30])
    image.putdata([0, 1])
    return image


@pytest.mark.parametrize('name, image, options, expected', [
    ('a.png', Image.new('RGBA', (1, 1), (255, 0, 0, 128)), {}, [(255, 127, 127)]),
    # 255 * (1 - 128/255) = 127
    ('a.png', Image.new('RGBA', (1, 1), (7, 7, 7, 0)), {}, [(255, 255, 255)]),
    ('a.png', Image.new('LA', (1, 1), (0, 128)), {}, [(127, 127, 127)]),
    ('a.png', palette_picture(), {}, [(9, 9, 9), (10, 20, 30)]),
    ('a.png', palette_picture(), {'transparency': 0}, [(255, 255, 255), (10, 20, 30)]),
    ('a.gif', palette_picture(), {'transparency': 1}, [(9, 9, 9), (255, 255, 255)]),
    ('a.png', Image.new('RGB', (1, 1), (1, 2, 3)), {'transparency': (1, 2, 3)}, [(255, 255, 255)]),
    ('a.png', Image.fromarray(np.array([[0, 257 * 77, 65535]], np.uint16)), {},
     [(0,) * 3, (77,) * 3, (255,) * 3]),
    ('a.tif', Image.fromarray(np.array([[257 * 200]], np.uint16)), {}, [(200,) * 3]),
    ('a.tif', Image.new('CMYK', (1, 1), (0, 255, 255, 0)), {}, [(255, 0, 0)]),
    ('a.tif', Image.new('CMYK', (1, 1), (0, 0, 0, 155)), {}, [(100, 100, 100)]),
    ('a.tif', Image.fromarray(np.array([[0, 1, 0.4]], np.float32)), {}, [(0,) * 3, (255,) * 3, (102,) * 3]),
    ('a.tif', Image.fromarray(np.array([[0, 200, np.nan]], np.float32)), {},
     [(0,) * 3, (200,) * 3, (0,) * 3]),
    ('a.png', Image.fromarray(np.array([[True, False]])), {}, [(255,) * 3, (0,) * 3]),
    ('a.png', Image.new('L', (1, 1), 42), {}, [(42,) * 3]),
])
def test_every_mode_becomes_rgb(tmp_path, name, image, options, expected):
    image.save(tmp_path / name, **options)
    frames = read_frames(tmp_path / name)
    assert len(frames) == 1 and pixels(frames[0]) == [expected]


@pytest.mark.parametrize('mode', ['La', 'RGBa'])
def test_alpha_already_multiplied(mode):
    """Half-transparent black, as a resize leaves it in memory."""
    image = Image.new(mode[:-1] + 'A', (1, 1), (0, 128) if mode == 'La' else (0, 0, 0, 128)).convert(mode)
    assert pixels(to_rgb(image)) == [[(127, 127, 127)]]


def test_exif_orientation(tmp_path):
    image = Image.new('RGB', (2, 1))
    image.putdata([(255, 0, 0), (0, 0, 255)])
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn me a quarter clockwise": what is left comes to the top
    image.save(tmp_path / 'a.png', exif=exif)
    assert pixels(read_frames(tmp_path / 'a.png')[0]) == [[(255, 0, 0)], [(0, 0, 255)]]
    image.save(tmp_path / 'b.png', exif=b'Exif\0\0garbage that is no TIFF')
    assert pixels(read_frames(tmp_path / 'b.png')[0]) == [[(255, 0, 0), (0, 0, 255)]]


# ---------------------------------------------------------------------------------------------
# Clips

def animation(path, milliseconds, **options):
    """Frame k is grey of level 10 k."""
    frames = [Image.new('RGB', (6, 6), (10 * k,) * 3) for k in range(len(milliseconds))]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=milliseconds, **options)
    return path


def shown(frames):
    """Which frames of `animation` these are."""
    return [frame.getpixel((3, 3))[0] // 10 for frame in frames]


@pytest.mark.parametrize('name, options', [('a.gif', {}), ('a.png', {}), ('a.webp', {'lossless': True})])
def test_animations_are_sampled_by_time(tmp_path, name, options):
    uneven = animation(tmp_path / name, [1000, 3000, 500], **options)
    assert shown(read_frames(uneven)) == [0, 1, 1, 1, 2]  # at 0, 1, 2, 3 and 4 seconds
    assert shown(read_frames(uneven, n_frame=2)) == [0, 1]  # at 0 and 2.25
    assert shown(read_frames(uneven, n_frame=1)) == [0]
    long = animation(tmp_path / name, [500] * 20, **options)
    assert shown(read_frames(long, n_frame=4)) == [0, 5, 10, 15]
    assert shown(read_frames(long, n_frame=16)) == list(range(0, 20, 2))
    # Shorter than two seconds: its own frames, or nothing would move.
    short = animation(tmp_path / name, [50] * 10, **options)
    assert shown(read_frames(short, n_frame=4)) == [0, 2, 5, 7]
    assert shown(read_frames(short, n_frame=32)) == list(range(10))


def test_animation_oddities(tmp_path, monkeypatch):
    hurried = animation(tmp_path / 'a.gif', [0] * 25)  # browsers play this at ten frames a second
    assert shown(read_frames(hurried)) == [0, 10, 20]
    # frame 0 is not part of the clip
    still_first = animation(tmp_path / 'b.png', [1000] * 4, default_image=True)
    assert shown(read_frames(still_first)) == [1, 2, 3]
    # However long it goes on, only the beginning is looked at: so many pixels, and so many frames.
    endless = animation(tmp_path / 'c.gif', [1000] * 25)
    assert shown(read_frames(endless, n_frame=32, limit_pixels=5 * 6 * 6)) == list(range(10))
    monkeypatch.setattr(decode, 'LIMIT_FRAMES', 5)
    assert shown(read_frames(endless)) == [0, 1, 2, 3, 4]


def test_later_pages_of_a_tiff_are_no_clip(tmp_path):
    assert shown(read_frames(animation(tmp_path / 'a.tif', [1000] * 3))) == [0]


def test_folder_of_frames(tmp_path):
    for k in (1, 2, 10):
        picture(tmp_path / 'clip' / f'frame{k}.png', (10 * k,) * 3, (6, 6))
    (tmp_path / 'clip' / 'notes.txt').write_text('not a frame')
    (tmp_path / 'clip' / '.hidden.png').write_text('nor this')
    assert shown(read_frames(tmp_path / 'clip')) == [1, 2, 10]
    assert shown(read_frames(tmp_path / 'clip', n_frame=2)) == [1, 2]
    (tmp_path / 'clip' / 'frame2.png').write_bytes(b'')
    assert kind_of_failure(tmp_path / 'clip') == 'empty'
    (tmp_path / 'none').mkdir()
    assert kind_of_failure(tmp_path / 'none') == 'empty'


# ---------------------------------------------------------------------------------------------
# Damage

def png_declaring(width, height):
    def chunk(name, body):
        return struct.pack('>I', len(body)) + name + body + struct.pack('>I', zlib.crc32(name + body))
    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', pixels) + chunk(b'IEND', b'')


# above our limit, where Pillow warns, where Pillow refuses
@pytest.mark.parametrize('side', [8_500, 10_000, 100_000])
def test_declared_size(tmp_path, side):
    path = tmp_path / 'a.png'
    path.write_bytes(png_declaring(side, side))
    start = time.monotonic()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter('always')
        assert kind_of_failure(path) == 'too large'
    assert not heard and time.monotonic() - start < 1


def test_limit_pixels(tmp_path):
    path = picture(tmp_path / 'a.png', size=(10, 10))
    assert len(read_frames(path, limit_pixels=100)) == 1
    assert kind_of_failure(path, limit_pixels=99) == 'too large'
    assert read_frames(picture(tmp_path / 'b.png', size=(1, 1)))[0].size == (1, 1)


def test_not_a_picture(tmp_path):
    assert kind_of_failure(tmp_path / 'none.png') == 'missing'
    (tmp_path / 'a.png').write_bytes(b'')
    assert kind_of_failure(tmp_path / 'a.png') == 'empty'
    (tmp_path / 'b.png').write_text('<html>404</html>')
    assert kind_of_failure(tmp_path / 'b.png') == 'not a picture'
    # a program
    (tmp_path / 'c.png').write_bytes(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n')
    assert kind_of_failure(tmp_path / 'c.png') == 'not a picture'
    with open(tmp_path / 'd.png', 'wb') as f:
        f.truncate(decode.LIMIT_BYTES + 1)
    assert kind_of_failure(tmp_path / 'd.png') == 'too large'
    with pytest.raises(BadItem):
        read_frames('a\0b.png')


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='no pipes here')
def test_pipes_and_devices_do_not_hang(tmp_path):
    os.mkfifo(tmp_path / 'a.png')
    assert kind_of_failure(tmp_path / 'a.png') == 'not a file'
    assert kind_of_failure('/dev/zero') == 'not a file'


@pytest.mark.parametrize('name', ['a.png', 'a.jpg', 'a.gif', 'a.webp', 'a.bmp', 'a.tif'])
def test_truncated(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    path = tmp_path / name
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    assert kind_of_failure(path) in ('truncated', 'damaged', 'not a picture')


@pytest.mark.parametrize('name', ['a.gif', 'a.png', 'a.webp', 'a.jpg', 'a.tif'])
def test_nothing_but_bad_items_comes_out(tmp_path, name):
    """Cut anywhere, or with any byte changed, a file gives frames or a BadItem, and no warning."""
    whole = animation(tmp_path / name, [100, 900, 2000]) if name != 'a.jpg' else picture(tmp_path / name)
    content, rng = whole.read_bytes(), np.random.default_rng(0)
    cut = [content[:k] for k in np.linspace(0, len(content), 60).astype(int)]
    changed = []
    for _ in range(120):
        k = rng.integers(len(content))
        changed.append(content[:k] + bytes([rng.integers(256)]) + content[k + 1:])
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter('always')
        for damaged in cut + changed:
            whole.write_bytes(damaged)
            try:
                frames = read_frames(whole, limit_pixels=1_000_000)
            except BadItem as e:
                assert e.where == str(whole)
            else:
                assert 1 <= len(frames) <= 8 and all(frame.mode == 'RGB' for frame in frames)
    assert not heard


# ---------------------------------------------------------------------------------------------
# metadata.jsonl

def metadata(folder, *lines):
    folder.mkdir(parents=True, exist_ok=True)
    lines = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    (folder / 'metadata.jsonl').write_bytes(b'\n'.join(lines) + b'\n')
    return folder


def test_metadata(tmp_path):
    picture(tmp_path / 'images' / 'a.png')
    animation(tmp_path / 'b.gif', [1000] * 3)
    picture(tmp_path / 'clip' / '1.png'), picture(tmp_path / 'clip' / '2.png')
    metadata(tmp_path, '\ufeff{"file_name": "images/a.png", "text": " a räd ring "}\r'.encode(), b'',
             {'file_name': 'b.gif', 'text': 'a clip', 'split': 'train', 'tags': ['x']},
             {'file_name': 'clip', 'text': 'frames', 'split': None},
             {'file_name': 'images/../b.gif', 'text': 'held out', 'split': 'val'})
    pairs = open_folder(tmp_path)
    assert [(item.text, item.label, item.split) for item in pairs.items] == [
        ('a räd ring', 'a räd ring', 'train'), ('a clip', 'a clip', 'train'), ('frames', 'frames', 'train')]
    assert [len(pairs.media(i).load()) for i in range(3)] == [1, 3, 2]
    assert pairs.items[1].where == f'{tmp_path / "metadata.jsonl"}:3'
    assert pairs.report.total == 0
    assert [item.text for item in open_folder(tmp_path, split='val').items] == ['held out']
    everything = open_folder(tmp_path, split=None)
    assert len(everything) == 4 and everything.splits == {'train': 3, 'val': 1}
    assert input_error(tmp_path, split='test').endswith("no split 'test'; there is train (3), val (1)")


def test_metadata_in_split_folders(tmp_path):
    for split in ('train', 'test'):
        picture(tmp_path / split / 'a.png')
        metadata(tmp_path / split, {'file_name': 'a.png', 'text': f'{split} picture'})
    assert [item.text for item in open_folder(tmp_path).items] == ['train picture']
    assert [item.text for item in open_folder(tmp_path, split='test').items] == ['test picture']


def test_bad_lines_are_counted(tmp_path):
    root = tmp_path / 'data'
    good = {'file_name': 'a.png', 'text': 'good'}
    bad = [(b'{"file_name": ', 'not JSON'), (b'[1]', 'not JSON'), (b'[' * 100_000, 'not JSON'),
           (b'{"file_name": "a.png", "text": "\xff"}', 'not UTF-8'),
           (b'{"file_name": "a.png", "text": "\\ud800"}', 'not UTF-8'),
           ({'text': 'x'}, 'no file_name'), ({'file_name': '', 'text': 'x'}, 'no file_name'),
           ({'file_name': ['a.png'], 'text': 'x'}, 'no file_name'),
           ({'file_name': 'a.png'}, 'no text'), ({'file_name': 'a.png', 'text': ' \n'}, 'no text'),
           ({'file_name': 'a.png', 'text': 3}, 'no text'),
           ({'file_name': 'a.png', 'text': 'x' * (1 << 20) + 'x'}, 'text too long'),
           (b'{"file_name": "a.png", "text": "' + b'x' * (9 << 20) + b'"}', 'line too long'),
           ({**good, 'split': 7}, 'bad split'),
           ({**good, 'file_name': 'gone.png'}, 'missing'), ({**good, 'file_name': 'a\0.png'}, 'missing'),
           ({**good, 'file_name': 'x' * 5000}, 'missing'), ({**good, 'file_name': '\ud800'}, 'missing'),
           ({**good, 'file_name': '../secret.png'}, 'outside the folder'),
           ({**good, 'file_name': '.'}, 'outside the folder'),
           ({**good, 'file_name': str(tmp_path / 'secret.png')}, 'outside the folder'),
           ({**good, 'file_name': str(root / 'a.png')}, 'outside the folder'),
           ({**good, 'file_name': 'link.png'}, 'outside the folder'),
           ({**good, 'file_name': 'folder/secret.png'}, 'outside the folder')]
    picture(root / 'a.png'), picture(tmp_path / 'secret.png')
    (root / 'link.png').symlink_to(tmp_path / 'secret.png')
    (root / 'folder').symlink_to(tmp_path)
    metadata(root, *[line for line, _ in bad], *[good] * len(bad))
    pairs = open_folder(root)
    assert len(pairs) == len(bad) and {item.text for item in pairs.items} == {'good'}
    assert pairs.report.as_dict() == Counter(kind for _, kind in bad)
    # and the lines after it still count right
    assert pairs.report.where['line too long'] == [f'{root / "metadata.jsonl"}:13']
    # One good line less, and most of it is bad: then something is wrong with all of it.
    metadata(root, *[line for line, _ in bad], *[good] * (len(bad) - 1))
    message = f'{len(bad)} of {2 * len(bad) - 1} items cannot be used: outside the folder: 6 ('
    assert message in input_error(root)
    metadata(root, b'nonsense')
    assert 'not JSON: 1 (' in input_error(root)
    metadata(root)
    assert 'no items' in input_error(root)


def test_scanning_decodes_nothing(tmp_path, monkeypatch):
    (tmp_path / 'a.png').write_text('broken')
    metadata(tmp_path, {'file_name': 'a.png', 'text': 'x'})
    monkeypatch.setattr(Image, 'open', None)
    pairs = open_folder(tmp_path)
    monkeypatch.undo()
    with pytest.raises(BadItem):
        pairs.media(0).load()
    os.remove(tmp_path / 'a.png')
    with pytest.raises(BadItem):
        pairs.media(0)


# ---------------------------------------------------------------------------------------------
# Class folders

def test_class_folders(tmp_path):
    for name in ('red_heart/1.png', 'red_heart/2.JPG', 'hot-air_balloon/a.png', 'birds/crane/a.png',
                 'machines/crane/a.png'):
        picture(tmp_path / name)
    (tmp_path / 'red_heart' / 'notes.txt').write_text('')
    (tmp_path / 'empty').mkdir()
    picture(tmp_path / '.cache' / 'a.png'), picture(tmp_path / 'loose.png')
    pairs = open_folder(tmp_path)
    assert Counter(item.text for item in pairs.items) == {
        'red heart': 2, 'hot air balloon': 1, 'birds crane': 1, 'machines crane': 1}
    assert all(item.label == item.text and item.split == 'train' for item in pairs.items)
    assert pairs.report.as_dict() == {'in no class folder': 1, 'a .txt file': 1}


def test_names_get_only_the_parents_they_need():
    assert name_classes({('a', 'x', 'cat'), ('b', 'x', 'cat'), ('x', 'dog'), ('dog',), ('x_dog',)}) == {
        ('a', 'x', 'cat'): 'a x cat', ('b', 'x', 'cat'): 'b x cat', ('x', 'dog'): 'x dog', ('dog',): 'dog',
        ('x_dog',): 'x dog'}


def test_class_folders_with_splits(tmp_path):
    for name in ('train/cat/1.png', 'train/dog/1.png', 'train/big/cat/1.png', 'val/cat/2.png'):
        picture(tmp_path / 'a' / name)
    assert sorted(item.text for item in open_folder(tmp_path / 'a').items) == ['big cat', 'cat', 'dog']
    assert [item.text for item in open_folder(tmp_path / 'a', split='val').items] == ['cat']
    for name in ('train/1.png', 'bus/1.png', 'tram/old/1.png'):
        picture(tmp_path / 'b' / name)
    assert sorted(item.text for item in open_folder(tmp_path / 'b').items) == ['bus', 'old', 'train']


def test_two_names_make_a_class(tmp_path):
    """An alphabet that lies in two packages is one alphabet, and a drawing that was packed twice is one
    drawing."""
    for name, colour in (('one/Greek/c1/a.png', 'red'), ('two/Greek/c1/a.png', 'red'),
                         ('two/Greek/c1/b.png', 'blue'), ('one/Latin/c1/a.png', 'green'),
                         ('two/Latin/c1/a.png', 'white')):
        picture(tmp_path / name, colour)
    pairs = open_folder(tmp_path, spec=FolderSpec(class_depth=2))
    assert Counter((item.text, item.group)
                   for item in pairs.items) == {('Greek c1', 'Greek'): 2, ('Latin c1', 'Latin'): 2}
    assert len(open_folder(tmp_path).items) == 5
    assert {item.group for item in open_folder(tmp_path).items} >= {'one Greek', 'two Latin'}
    with pytest.raises(BadInput, match='less deep'):
        open_folder(tmp_path, spec=FolderSpec(class_depth=4))


def test_turned_classes_and_groups_held_out(tmp_path):
    for name in ('Greek/c1/a.png', 'Korean/c1/a.png'):
        (tmp_path / name).parent.mkdir(parents=True)
        image = Image.new('RGB', (3, 2), 'white')
        image.putpixel((0, 0), (255, 0, 0))
        image.save(tmp_path / name)
    spec = FolderSpec(class_depth=2, rotate=True, held_groups='Korean')
    pairs, held = open_folder(tmp_path, spec=spec), open_folder(tmp_path, split='val', spec=spec)
    assert [item.text for item in held.items] == ['Korean c1']  # upright only
    assert [(item.text, item.group)
            for item in pairs.items] == [('Greek c1',
                                          'Greek')] + [(f'Greek c1 turned {d}', f'Greek turned {d}')
                                                       for d in (90, 180, 270)]
    corners = [(0, 0), (0, 2), (2, 1), (1, 0)]  # of the red pixel, as the picture turns to the left
    for k, corner in enumerate(corners):
        [frame] = pairs.media(k).load()
        assert frame.size == ((2, 3) if k % 2 else (3, 2)) and frame.getpixel(corner) == (255, 0, 0)
    assert len({pairs.media(k, v).key for k in range(4) for v in (0, 1)}) == 8
    with pytest.raises(BadInput, match="'Klingon'; there is Greek, Korean"):
        open_folder(tmp_path, spec=FolderSpec(held_groups='Korean, Klingon'))


def test_several_folders_are_one_source(tmp_path):
    for name in ('a/cat/1.png', 'b/cat/2.png', 'b/toys/cat/3.png'):
        picture(tmp_path / name)
    pairs = open_folder([tmp_path / 'a', tmp_path / 'b'])
    assert Counter(item.text for item in pairs.items) == {'cat': 2, 'toys cat': 1}
    picture(tmp_path / 'c' / 'x.png')
    metadata(tmp_path / 'c', {'file_name': 'x.png', 'text': 'a cat'}, b'nonsense')
    total = Report()
    assert len(open_folder([tmp_path / 'a', tmp_path / 'c'], report=total)) == 2
    assert open_folder(tmp_path / 'c', report=total).report.total == 1 and total.as_dict() == {'not JSON': 2}
    picture(tmp_path / 'loose' / 'x.png')
    assert 'loose: nothing here' in input_error([tmp_path / 'c', tmp_path / 'loose'])


def test_links_in_class_folders(tmp_path):
    picture(tmp_path / 'elsewhere' / 'secret.png')
    root = tmp_path / 'data'
    for name in ('cat/1.png', 'cat/2.png', 'cat/3.png'):
        picture(root / name)
    (root / 'cat' / 'loop').symlink_to(root / 'cat')
    (root / 'cat' / 'link.png').symlink_to(tmp_path / 'elsewhere' / 'secret.png')
    (root / 'dog').symlink_to(tmp_path / 'elsewhere')
    (root / 'cat' / 'gone.png').symlink_to(root / 'nothing.png')
    (tmp_path / 'alias').symlink_to(root)  # the folder itself may be a link
    for path in (root, tmp_path / 'alias'):
        pairs = open_folder(path)
        assert [item.text for item in pairs.items] == ['cat'] * 3
        assert pairs.report.as_dict() == {'outside the folder': 2, 'missing': 1}


def test_not_a_source(tmp_path):
    assert 'no such folder' in input_error(tmp_path / 'none')
    (tmp_path / 'empty').mkdir()
    assert 'empty' in input_error(tmp_path / 'empty')
    picture(tmp_path / 'outer' / 'inner' / 'images' / 'a.png')
    metadata(tmp_path / 'outer' / 'inner', {'file_name': 'images/a.png', 'text': 'x'})
    assert f'open {tmp_path / "outer" / "inner"} instead' in input_error(tmp_path / 'outer')
    loose = picture(tmp_path / 'loose' / 'a.png')
    for path in (loose, loose.parent):
        assert str(path) in input_error(path) and 'metadata.jsonl' in input_error(path)
        assert 'class folders' in input_error(path)


# ---------------------------------------------------------------------------------------------
# COCO captions

def coco(path, annotations, images, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({'info': {'year': 2017, 'nested': [[1, {}]]}, 'annotations': annotations,
                                'licenses': [], 'images': images, **more}))
    return path


def test_coco(tmp_path):
    """Five captions are five pairs of one picture; annotations may come before the images they speak of."""
    picture(tmp_path / 'photos' / '1.jpg')
    picture(tmp_path / 'photos' / '2.jpg')
    picture(tmp_path / 'secret.jpg')
    image = lambda number, name: {'id': number, 'file_name': name, 'height': 3}
    said = lambda number, picture, text: {'id': number, 'image_id': picture, 'caption': text}
    file = coco(tmp_path / 'captions_x.json',
                [said(11, 1, 'A dog.\n'), said(12, 2, 'A cat.'), said(13, 1, 'One dog.'),
                 said(14, 9, 'nothing'),
                                               said(15, 3, 'gone'), said(16, 1, ' '), said(17, 4, 'secret'),
                                               7, *[said(k, 2, 'A cat.') for k in range(20, 30)]],
                [image(1, '1.jpg'), image(2, '2.jpg'), image(3, 'gone.jpg'), image(4, '../secret.jpg'),
                 'nonsense', {'id': [], 'file_name': 'x'}])
    pairs = open_folder(file, spec=FolderSpec(str(tmp_path / 'photos')))
    assert [(item.text, os.path.basename(item.path))
            for item in pairs.items][:3] == [('A dog.', '1.jpg'), ('A cat.', '2.jpg'), ('One dog.', '1.jpg')]
    assert len(pairs) == 13 and pairs.items[2].where == f'{file}: annotation 13'
    assert pairs.at(0).pieces[1] == 'A dog.'
    assert pairs.report.as_dict() == {'no such image id': 1, 'missing': 1, 'no text': 2,
                                      'outside the folder': 1}
    assert f'{file}: annotation 15' in pairs.report.where['missing']
    assert '--images=DIR' in input_error(coco(tmp_path / 'captions_y.json', [said(1, 1, 'A dog.')],
                                              [image(1, '9.jpg')]))
    assert 'no such folder' in input_error(file, spec=FolderSpec(str(tmp_path / 'none')))


def test_a_coco_file_beside_its_pictures_in_the_folder_at_hand(tmp_path, monkeypatch):
    picture(tmp_path / '1.jpg')
    coco(tmp_path / 'captions_x.json', [{'id': 1, 'image_id': 1, 'caption': 'a dog'}],
         [{'id': 1, 'file_name': '1.jpg'}])
    monkeypatch.chdir(tmp_path)
    assert [item.text for item in open_folder('captions_x.json').items] == ['a dog']


def test_a_folder_of_coco_files(tmp_path):
    """As COCO comes: annotations/captions_train2017.json beside train2017/, and the other files there mean
    nothing to us."""
    for split in ('train', 'val'):
        picture(tmp_path / f'{split}2017' / '1.jpg')
        coco(tmp_path / 'annotations' / f'captions_{split}2017.json',
             [{'id': 1, 'image_id': 1, 'caption': split}], [{'id': 1, 'file_name': '1.jpg'}])
    (tmp_path / 'annotations' / 'instances_train2017.json').write_text('not even JSON')
    pairs = open_folder(tmp_path / 'annotations', spec=FolderSpec(str(tmp_path)), split=None)
    assert pairs.splits == {'train': 1, 'val': 1} and 'val2017' in pairs.split('val').items[0].path


def test_damaged_json_is_one_line(tmp_path):
    elements = [{'k': k, 'text': 'ä猫' * (k % 50), 'nested': {'list': [k, [None, 1.5e3]]}}
                for k in range(20_000)]
    file = tmp_path / 'captions_a.json'
    file.write_text('\ufeff ' + json.dumps({'images': elements, 'last': {}}, ensure_ascii=False) + '\n',
                    encoding='utf-8')
    assert read_json(file, 1 << 30) == {'images': elements, 'last': {}}
    whole = file.read_text(encoding='utf-8-sig')
    for damaged in ('', whole[:-100], whole[:2 << 20], '{"images": [1 2]}', '{"images" 3}',
                    '{"images": [' + '[' * 100_000,
                    '{"a": "' + 'x' * (20 << 20)):
        file.write_text(damaged, encoding='utf-8')
        assert f'{file}: not JSON' in input_error(file)
    for other in ('[1]', '[]', '{}', 'null', '{"images": 3, "annotations": 4}'):
        file.write_text(other, encoding='utf-8')
        message = input_error(file)
        assert any(said in message for said in ('not a captions file', 'cannot be used', 'no items'))
    file.write_bytes(b'{"images": ["\xff"]}')
    assert f'{file}: not JSON' in input_error(file)


# ---------------------------------------------------------------------------------------------
# Videos

def test_videos_get_the_command_that_makes_frames(tmp_path):
    """Pillow opens none; the user is told once how frames are made of them."""
    metadata(tmp_path / 'a', {'file_name': 'x.mp4', 'text': 'a film'},
             {'file_name': 'a.png', 'text': 'a picture'})
    (tmp_path / 'a' / 'x.mp4').write_bytes(b'\0\0\0\x18ftypmp42'), picture(tmp_path / 'a' / 'a.png')
    pairs = open_folder(tmp_path / 'a')
    with pytest.raises(BadItem, match='ffmpeg -i clip.mp4 -vf fps=1') as e:
        pairs.media(0).load()
    report = Report()
    report.add(e.value)
    assert report.lines() == [f'a video: 1 ({tmp_path / "a" / "x.mp4"}); {decode.FFMPEG}']
    picture(tmp_path / 'b' / 'cat' / 'a.png'), (tmp_path / 'b' / 'cat' / 'b.MOV').write_bytes(b'x')
    assert open_folder(tmp_path / 'b').report.as_dict() == {'a video': 1}
    (tmp_path / 'c' / 'cat').mkdir(parents=True), (tmp_path / 'c' / 'cat' / 'b.webm').write_bytes(b'x')
    assert 'ffmpeg' in input_error(tmp_path / 'c')
    assert 'ffmpeg' in input_error(tmp_path / 'c' / 'cat' / 'b.webm')


# ---------------------------------------------------------------------------------------------
# Serving

def items(tmp_path, *labels):
    return [Item(str(picture(tmp_path / f'{k}.png', (20 * k, 0, 0), (32, 32))), f'text {k}', 'train', label,
                 f'list:{k}')
            for k, label in enumerate(labels)]


def test_each_epoch_shows_everything_once(tmp_path):
    pairs = Pairs(items(tmp_path, *'abcdefghij'), 'one', seed=3)
    rng = np.random.default_rng(0)
    epochs = [[pairs.document(i, rng).pieces[1] for i in range(10 * e, 10 * e + 10)] for e in range(3)]
    assert all(sorted(epoch) == sorted(item.text for item in pairs.items) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    # Stateless: document 17 is document 17, whoever asks, whatever came before, and whatever the source is
    # called.
    assert Pairs(pairs.items, 'another name', seed=3).document(17, rng).pieces[1] == epochs[1][7]
    assert [Pairs(pairs.items, 'one', seed=4).document(i, rng).pieces[1] for i in range(10)] != epochs[0]
    document = pairs.document(0, rng)
    assert document.kind == 'pair' and document.where.startswith('list:')
    assert isinstance(document.pieces[0], Media)


def test_media_keys_name_pixels(tmp_path):
    pairs = Pairs(items(tmp_path, 'a', 'b'), 'x', n_frame=4)
    path, info = pairs.items[0].path, os.stat(pairs.items[0].path)
    assert pairs.media(0).key.startswith(f'{path}:{info.st_mtime_ns}:{info.st_size}')
    keys = {pairs.media(0).key, pairs.media(1).key, pairs.media(0, 1).key, pairs.media(0, 2).key,
            Pairs(pairs.items, 'x', n_frame=8).media(0).key,
            Pairs(pairs.items, 'x', n_frame=4, flip=True).media(0, 1).key}
    assert len(keys) == 6 and Pairs(pairs.items, 'y', n_frame=4).media(0).key in keys
    os.utime(path, (1, 1))
    assert pairs.media(0).key not in keys
    # A folder's own date does not tell that a frame was replaced.
    frame = picture(tmp_path / 'clip' / '1.png')
    clip = Pairs([Item(str(tmp_path / 'clip'), 'clip')], 'x')
    before = clip.media(0).key
    os.utime(frame, (1, 1))
    assert clip.media(0).key != before
    assert len(pickle.loads(pickle.dumps(clip.media(0))).load()) == 1


def test_variants(tmp_path):
    """A black square in the middle of white: where it goes and how large it is, measured from the pixels."""
    image = Image.new('RGB', (100, 100), 'white')
    image.paste((0, 0, 0), (30, 30, 70, 70))
    image.save(tmp_path / 'a.png')
    pairs = Pairs([Item(str(tmp_path / 'a.png'), 'square')], 'x')
    assert pixels(pairs.media(0).load()[0]) == pixels(image)
    seen = set()
    for k in range(1, 25):
        frame = pairs.media(0, k).load()[0]
        assert pixels(frame) == pixels(pairs.media(0, k).load()[0])
        black = 1 - np.asarray(frame)[:, :, 0] / 255
        y, x = (np.average(index, weights=black) for index in np.indices(black.shape))
        assert 0.85 ** 2 * 1600 - 20 < black.sum() < 1.1 ** 2 * 1600 + 20
        assert abs(x - 49.5) < 8.2 and abs(y - 49.5) < 8.2
        # what moved into sight is white
        assert np.asarray(frame)[[0, 0, -1, -1], [0, -1, 0, -1]].min() == 255
        seen.add(frame.tobytes())
    assert len(seen) == 24


def test_mirror_images_only_where_allowed(tmp_path):
    image = Image.new('RGB', (60, 60), 'white')
    image.paste((0, 0, 0), (0, 0, 30, 60))
    image.save(tmp_path / 'a.png')

    def mirrored(flip):
        pairs = Pairs([Item(str(tmp_path / 'a.png'), 'left')], 'x', flip=flip)
        return [pairs.media(0, k).load()[0].getpixel((10, 30))[0] > 128 for k in range(40)]
    assert not any(mirrored(False))
    assert not mirrored(True)[0] and 5 < sum(mirrored(True)) < 35


def test_frames_of_a_clip_move_together(tmp_path):
    for k in range(2):
        image = Image.new('RGB', (40, 40), 'white')
        image.paste((0, 0, 0), (10, 10, 30, 30))
        (tmp_path / 'clip').mkdir(exist_ok=True)
        image.save(tmp_path / 'clip' / f'{k}.png')
    first, second = Pairs([Item(str(tmp_path / 'clip'), 'clip')], 'x').media(0, 1).load()
    assert pixels(first) == pixels(second)


# ---------------------------------------------------------------------------------------------
# Pages

def read_page(document):
    """[(key of the Media, answer), ...]"""
    media, output, answers = document.pieces[::3], document.pieces[1::3], document.pieces[2::3]
    assert all(isinstance(m, Media) for m in media)
    assert all(isinstance(o, Given) and o == 'Output:' for o in output)
    shown = set()
    # a made-up name cannot be known at its first showing, so it is given there; all else is learned
    for a in answers:
        assert a[0] == ' ' and isinstance(a, Given) == (a[1:] in NAMES and a not in shown)
        shown.add(a)
    return [(m.key, a[1:]) for m, a in zip(media, answers, strict=True)]


def test_naming_pages(tmp_path):
    pairs = Pairs(items(tmp_path, *'aaabbccdef'), 'x')  # some labels have several items, some only one
    label = {item.path: item.label for item in pairs.items}
    pages = Pages(pairs, NAMES, naming=1)
    given = {}
    for i in range(200):
        document = pages.document(i, np.random.default_rng(i))
        examples = read_page(document)
        assert document.kind == 'examples' and 6 <= len(examples) <= 12
        assert len({key for key, _ in examples}) == len(examples)  # never the same pixels twice
        names = {}
        for key, name in examples:
            names.setdefault(label[key.split(':')[0]], set()).add(name)
        assert 2 <= len(names) <= 4
        # one to one
        assert all(len(n) == 1 for n in names.values()) and len(set.union(*names.values())) == len(names)
        assert min(Counter(name for _, name in examples).values()) >= 2
        for what, (name,) in names.items():
            given.setdefault(what, set()).add(name)
    # named anew on every page
    assert all(names == set(NAMES) for names in given.values()) and len(given) == 6


def test_mirrored_labels_are_mirrored_throughout_a_page(tmp_path):
    """About half of the names on naming pages, all pictures of each or none; captions stay as they are; the
    pixels are those of the mirror image."""
    pairs = Pairs(items(tmp_path, *'aaabbbcccddd'), 'x')
    pages, shares = Pages(pairs, NAMES, n_way=(2, 4), mirrored=0.5, naming=1), []
    for i in range(60):
        document = pages.document(i, np.random.default_rng(i))
        of_name = {}
        for key, name in read_page(document):
            of_name.setdefault(name, set()).add(key.endswith('mirrored'))
        assert all(len(kinds) == 1 for kinds in of_name.values())
        shares += [kinds == {True} for kinds in of_name.values()]
    assert 0.35 < np.mean(shares) < 0.65
    captions = Pages(pairs, NAMES, mirrored=1.0, naming=0).document(0, np.random.default_rng(0))
    assert not any(media.key.endswith('mirrored') for media in captions.media)
    plain, mirror = (np.asarray(pairs.media(0, 0, mirrored).load()[0]) for mirrored in (False, True))
    assert (mirror == plain[:, ::-1]).all()


def test_plain_pictures_come_first(tmp_path):
    """With enough items no variant is needed; with too few, variants make up for them."""
    many = Pages(Pairs(items(tmp_path, *'aaaaaabbbbbb'), 'x'), NAMES, n_image=(6, 6), n_way=(2, 2), naming=1)
    assert not any(':v' in key for key, _ in read_page(many.document(0, np.random.default_rng(0))))
    few = Pages(Pairs(items(tmp_path, 'a', 'b'), 'x'), NAMES, n_image=(6, 6), n_way=(2, 2), naming=1)
    assert sum(':v' in key for key, _ in read_page(few.document(0, np.random.default_rng(0)))) == 4


def test_caption_pages(tmp_path):
    pairs = Pairs(items(tmp_path, *'abcdefgh'), 'x')
    pages = Pages(pairs, NAMES, n_image=(3, 5), naming=0)
    text = {item.path: item.text for item in pairs.items}
    firsts = []
    for i in range(8):
        examples = read_page(pages.document(i, np.random.default_rng(i)))
        assert 3 <= len(examples) <= 5 and len({key for key, _ in examples}) == len(examples)
        assert all(text[key.split(':')[0]] == answer for key, answer in examples)
        firsts.append(examples[0][1])
    assert len(set(firsts)) == 8  # everything leads a page once an epoch
    mixed = Pages(pairs, NAMES, naming=0.6)
    naming = sum(read_page(mixed.document(i, np.random.default_rng(i)))[0][1] in NAMES for i in range(500))
    assert 250 < naming < 350


def test_a_caption_of_nothing_but_dots_is_a_word(tmp_path):
    pairs = Pairs(items(tmp_path, '...', 'tram', 'heart'), 'x')
    for item in pairs.items:
        item.text = item.label
    said = ' '.join(Pages(pairs, NAMES, naming=1).text(i, np.random.default_rng(i)) for i in range(100))
    assert '...: ' in said and 'tram: ' in said


def test_text_pages(tmp_path, monkeypatch):
    pairs = Pairs(items(tmp_path, 'red heart', 'tram', 'a big dog.'), 'x')
    for item in pairs.items:
        item.text = item.label
    texts = lambda pages, n=60: [pages.text(i, np.random.default_rng(i)) for i in range(n)]
    monkeypatch.setattr(fewshot, 'COPIES', 0.0)
    things = ('red heart', 'red', 'heart', 'tram', 'a big dog', 'a', 'big', 'dog')
    for text in texts(Pages(pairs, NAMES, naming=1)):
        told = {}
        for name, before in re.findall(r'(?=\b(' + '|'.join(NAMES) + r')\b)(?<=(.{12}))', ' ' * 12 + text,
                                       re.S):
            told.setdefault(name,
                            set()).add(max((t for t in things if before.rstrip(': ').endswith(t)), key=len))
        # a thing is told in one way on a page, ...
        assert len(told) >= 2 and all(len(t) == 1 for t in told.values())
        # ... and no other in the same
        assert len(set.union(*told.values())) == len(told)
    said = set(texts(Pages(pairs, NAMES, naming=0)))
    assert {t for t in said if 'Output' not in t} == {'red heart', 'tram', 'a big dog.'}
    assert any(t.startswith('Output: ') and t.count('\nOutput: ') == 2 for t in said)
    monkeypatch.setattr(fewshot, 'COPIES', 1.0)
    for text in texts(Pages(pairs, NAMES, naming=1)):
        words = text.split()
        assert any(len(words) % n == 0 and words == words[:len(words) // n] * n for n in (2, 3, 4))
        assert set(words) & set(NAMES) and set(words) & set('red heart tram a big dog.'.split())
    for item in pairs.items:  # classes may be called by other words later on
        item.text = 'Ba ' + item.text[:2]
    assert all('Ba' in text for text in texts(Pages(pairs, NAMES, naming=1)))


def test_pages_within_a_group(tmp_path):
    """Some naming pages, or all, stay within one parent folder; a group too small for a page is left out."""
    for group, n in (('north', 5), ('south', 4), ('east', 1)):
        for k in range(n):
            picture(tmp_path / group / f'{group}{k}' / '1.png', (40 * k, 0, n))
            picture(tmp_path / group / f'{group}{k}' / '2.png', (40 * k, n, 9))
    pairs = open_folder(tmp_path)
    group_of = {item.path: item.group for item in pairs.items}

    def groups(within):
        pages = Pages(pairs, NAMES, n_image=(8, 8), n_way=(4, 4), naming=1, within=within)
        return [{group_of[key.split(':')[0]]
                 for key, _ in read_page(pages.document(i, np.random.default_rng(i)))} for i in range(60)]

    assert sorted(map(sorted, {frozenset(g) for g in groups(1.0)})) == [['north'], ['south']]
    assert 15 < sum(len(g) == 1 for g in groups(0.5)) < 45
    assert sum(len(g) == 1 for g in groups(0.0)) < 10


def test_captions_come_first_and_ways_rise(tmp_path):
    pages = Pages(Pairs(items(tmp_path, *'abcdefgh'), 'x'), NAMES, n_image=(10, 10), naming=1, n_way=(2, 5),
                  captions_first=50, ways_rise=200)
    answers = [[a for _, a in read_page(pages.document(i, np.random.default_rng(i)))] for i in range(300)]
    named = [a[0] in NAMES for a in answers]
    assert not any(named[:50]) and 10 < sum(named[50:100]) < 40 and all(named[100:])
    ways = [len(set(a)) for a in answers]
    assert max(ways[100:120]) <= 4 and set(ways[200:]) == {2, 3, 4, 5}


def test_pages_need_labels_and_names(tmp_path):
    pairs = Pairs(items(tmp_path, 'a', 'a'), 'x')
    with pytest.raises(BadInput, match='2 different labels'):
        Pages(pairs, NAMES)
    Pages(pairs, [], naming=0).document(0, np.random.default_rng(0))
    with pytest.raises(BadInput, match='4 different names'):
        Pages(Pairs(items(tmp_path, 'a', 'b'), 'x'), ['dax', 'wug', 'fep', 'dax'])


def test_report_lines():
    report = Report()
    for k in range(5):
        report.add(BadItem('missing', f'list:{k}'))
    report.add(BadItem('no text', 'list:9'))
    assert report.total == 6 and report.as_dict() == {'missing': 5, 'no text': 1}
    assert report.lines() == ['missing: 5 (list:0, list:1, list:2, ...)', 'no text: 1 (list:9)']
    for _ in range(3):  # every epoch comes across the same damage
        report.add(BadItem('no text', 'list:9'))
    assert report.total == 6


# ---------------------------------------------------------------------------------------------
# Mixtures

def test_of_every_part_every_item_comes_once_an_epoch(tmp_path):
    """Three parts of 5, 7 and 4 items at 1 : 2.5 : 0.1. Whoever reads which numbers, and however long it goes
    on: of each part the first epoch is all of its items, then comes the second; and each has its share of all
    documents, at any time."""
    sizes, weights = (5, 7, 4), (1, 2.5, 0.1)
    parts = [Pairs([Item(str(picture(tmp_path / f'{p}' / f'{k}.png')), f'{p}.{k}') for k in range(n)],
                   f'part {p}', seed=2) for p, n in enumerate(sizes)]
    alone = [[pairs.document(k, np.random.default_rng(0)).pieces[1] for k in range(576)] for pairs in parts]
    said = [Source('align', parts, weights, seed=2).document(i).pieces[1] for i in range(576)]
    for p, (n, weight) in enumerate(zip(sizes, weights)):
        mine = [text for text in said if text[0] == str(p)]
        # 160, 400 and 16: as if it were alone
        assert len(mine) == round(576 * weight / 3.6) and Counter(mine) == Counter(alone[p][:len(mine)])
        shares = [sum(text[0] == str(p) for text in said[:i]) / i for i in range(60, 576)]
        assert max(abs(share - weight / 3.6) for share in shares) < 0.1
    assert len(set(zip(said[::2], said[1::2]))) > 60 and said[:64] != said[64:128]  # in no fixed order
    for ranks in (2, 3):  # stateless: each process asks for its own numbers, and another starts in the middle
        own = [Source('align', parts, weights, seed=2) for _ in range(ranks)]
        assert [own[i % ranks].document(i).pieces[1] for i in range(300, 420)] == said[300:420]
    far = Source('align', parts, weights, seed=2)
    assert sorted(far.whose((1 << 60) + i)
                  for i in range(64)) == sorted((p, k)
                                                for p, k in (far.whose((1 << 60) + 63 - i)
                                                             for i in range(64)))
    assert [Source('ltip', parts, weights, seed=2).document(i).pieces[1] for i in range(64)] != said[:64]


def test_a_part_by_itself_is_not_changed_by_its_weight(tmp_path):
    pairs = Pairs(items(tmp_path, *'abcdefg'), 'x', n_variant=4, seed=1)
    alone, heavy = (Source('align', [pairs], [weight], seed=1) for weight in (1, 1e300))
    assert [alone.document(i).pieces[0].key
            for i in range(21)] == [heavy.document(i).pieces[0].key for i in range(21)]
    assert [alone.document(i).pieces[1]
            for i in range(21)] == [pairs.document(i, np.random.default_rng(0)).pieces[1] for i in range(21)]
    both = Source('align', [pairs, pairs], [1e308, 1e308], seed=1)  # more than a float holds, together
    assert Counter(both.whose(i)[0] for i in range(640)) == {0: 320, 1: 320}


def test_specs():
    assert split_spec('align', 'a:3,b:0.5') == [('a', 3.0), ('b', 0.5)]
    assert split_spec('align', 'C:\\data') == [('C:\\data', 1.0)]
    assert split_spec('align', 'p-{00..12}.tar') == [('p-{00..12}.tar', 1.0)]
    for weight in ('0', '-1', 'nan', 'inf'):
        with pytest.raises(BadInput, match='weight of a'):
            split_spec('align', f'a:{weight}')


def test_a_drawn_world_of_ones_own_feeds_every_source(monkeypatch):
    """A row of FORMS is enough: the interface is document(i, rng) and text(i, rng)."""
    class World:
        name, report = 'dots', Report()

        def document(self, i, rng):
            return Document([Media('dot', lambda: [Image.new('RGB', (4, 4))]), f' dot {i}'], 'pair')

        def text(self, i, rng):
            return f'dot {i}'

    dots = forms.Form('dots', lambda place: [place.path] * (place.path == 'dots'),
                      lambda found, place: World(), 'a drawn world')
    monkeypatch.setattr(forms, 'FORMS', (dots, *forms.FORMS))
    for role in ('m3w', 'align', 'ltip', 'vtp'):
        assert open_source(role, 'dots').document(3).pieces[1] == ' dot 3'
    assert open_source('text', 'dots').text(3) == 'dot 3'
