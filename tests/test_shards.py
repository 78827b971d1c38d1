"""Tar shards: every whole pair is found wherever its members are, once an epoch, and damage stays where it
is."""
import gc
import io
import json
import os
import tarfile
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from kit.files import BadInput, BadItem
from kit.sources.base import Pairs
from kit.sources.decode import Inside
from kit.sources.fewshot import Pages
from kit.sources.forms import open_folder, open_path
from kit.sources.shards import expand_braces


def encoded(colour, kind='PNG', size=(8, 6)):
    file = io.BytesIO()
    Image.new('RGB', size, colour).save(file, kind)
    return file.getvalue()


def shard(path, members, **options):
    """members: [(name, bytes), ...] -> a tar, in that order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, 'w', **options) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def pair(key, text, colour=(255, 0, 0)):
    return [(f'{key}.png', encoded(colour)), (f'{key}.txt', text.encode())]


def colour_of(media):
    return media.load()[0].getpixel((0, 0))


@pytest.mark.parametrize('options', [{}, {'format': tarfile.GNU_FORMAT}, {'format': tarfile.USTAR_FORMAT}])
def test_members_in_any_order(tmp_path, options):
    """Captions before their pictures, keys that alternate, a .json beside a .txt (which counts), members that
    are neither."""
    red, blue, green = encoded((255, 0, 0)), encoded((0, 0, 255), 'GIF'), encoded((0, 255, 0))
    path = shard(tmp_path / 'a.tar', [
        ('b.txt', b' blue \n'), ('dir/a.json', json.dumps({'caption': 'from json'}).encode()), ('a.png', red),
        ('b.cls', b'3'),
        ('dir/a.seg.png', blue), ('dir/a.png', green), ('a.json',
                                                        json.dumps({'caption': 'not this'}).encode()),
                                                        ('b.GIF', blue),
        ('a.txt', '\ufeffräd'.encode()), ('__MACOSX/._a.txt', b'x')], **options)
    pairs = open_folder(path)
    found = [(item.text, colour_of(pairs.media(k)), item.where) for k, item in enumerate(pairs.items)]
    assert found == [('blue', (0, 0, 255), f'{path}:b.GIF'), ('from json', (0, 255, 0), f'{path}:dir/a.png'),
                     ('räd', (255, 0, 0), f'{path}:a.png')]
    assert pairs.report.total == 0
    document = pairs.at(0)
    assert document.kind == 'pair' and document.pieces[1] == 'blue'


def test_long_names(tmp_path):
    """Longer than the 100 bytes of a header: each tar dialect has its own way of writing them."""
    for number, form in enumerate((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT)):
        key = 'd' * 90 + '/' + 'k' * 90 if form == tarfile.USTAR_FORMAT else 'ü' * 150
        path = shard(tmp_path / f'{number}.tar', [*pair(key + '1', 'one'), *pair(key + '2', 'two')],
                     format=form)
        assert [item.text for item in open_folder(path).items] == ['one', 'two']


def test_globs_folders_and_splits(tmp_path):
    for n in (8, 9, 10):
        shard(tmp_path / 'flat' / f'p-{n:02}.tar', pair('k', f'shard {n}'))
    texts = lambda path, **options: [item.text for item in open_folder(path, **options).items]
    everything = ['shard 8', 'shard 9', 'shard 10']
    for pattern in ('', 'p-{08..10}.tar', 'p-*.tar', 'p-{08..09}.tar'):
        assert texts(tmp_path / 'flat' / pattern) == (everything if '09' not in pattern else everything[:2])
    partly = open_folder(tmp_path / 'flat' / 'p-{10..11}.tar')
    assert len(partly) == 1 and partly.report.where == {'missing': [str(tmp_path / 'flat' / 'p-11.tar')]}
    for wrong, message in (('p-{20..21}.tar', 'no such file'), ('p-{10..08}.tar', 'upwards'),
                           ('a.tar.gz', 'unpack it'), ('none.tar', 'no such file')):
        with pytest.raises(BadInput, match=message):
            open_folder(tmp_path / 'flat' / wrong)
    for split in ('train', 'val'):
        shard(tmp_path / 'split' / split / '0.tar', pair('k', split))
    assert texts(tmp_path / 'split') == ['train'] and texts(tmp_path / 'split', split='val') == ['val']
    both = open_folder(tmp_path / 'split', split=None)
    assert both.splits == {'train': 1, 'val': 1} and both.split('val').items[0].text == 'val'
    assert expand_braces('{1..2}-{01..02}') == ['1-01', '1-02', '2-01', '2-02']


def test_bad_pairs_are_counted(tmp_path):
    good = [member for k in range(9) for member in pair(f'good{k}', f'good {k}')]
    path = shard(tmp_path / 'a.tar', [
        *good, ('lonely.png', encoded((1, 1, 1))), ('mute.txt', b'no picture'),
        ('empty.png', encoded((1, 1, 1))), ('empty.txt', b' \n'),
        ('latin.png', encoded((1, 1, 1))), ('latin.txt', b'\xff\xfe'), ('deep.png', encoded((1, 1, 1))),
        ('deep.json', b'[' * 10_000),
        ('film.mp4', b'....'), ('film.txt', b'a film'), *pair('../evil', 'x'),
        ('/abs.png', encoded((1, 1, 1)))])
    pairs = open_folder(path)
    assert [item.text for item in pairs.items] == [f'good {k}' for k in range(9)]
    assert pairs.report.as_dict() == {'no text': 2, 'no picture': 1, 'not UTF-8': 1, 'not JSON': 1,
                                      'a video': 1, 'outside the folder': 3}
    assert f'{path}:empty' in pairs.report.where['no text']
    assert any('ffmpeg' in line for line in pairs.report.lines())
    with tarfile.open(tmp_path / 'links.tar', 'w') as tar:
        for name, kind in (('a.png', tarfile.SYMTYPE), ('a.txt', tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, '/etc/passwd'
            tar.addfile(info)
    with pytest.raises(BadInput, match='outside the folder: 2'):
        open_folder(tmp_path / 'links.tar')


def test_a_name_that_comes_twice_makes_no_wrong_pair(tmp_path):
    """The first picture belongs to the first caption; what comes later under the same name is counted."""
    path = shard(tmp_path / 'a.tar',
                 [*pair('a', 'red', (255, 0, 0)), *pair('b', 'blue', (0, 0, 255)),
                  *pair('a', 'green', (0, 255, 0)), ('b.jpg', b'x'), *pair('c', 'grey')])
    pairs = open_folder(path)
    assert [(item.text, colour_of(pairs.media(k)))
            for k, item in enumerate(pairs.items)][:2] == [('red', (255, 0, 0)), ('blue', (0, 0, 255))]
    assert pairs.report.where == {'the same name again': [f'{path}:a.png', f'{path}:a.txt', f'{path}:b.jpg']}


def test_a_shard_cut_short_or_damaged_keeps_what_is_whole(tmp_path):
    members = [member for k in range(8) for member in pair(f'{k}', f'text {k}')]
    whole = shard(tmp_path / 'a.tar', members).read_bytes()
    assert whole.index(b'text 1') == 2048 + 1536  # a pair is 2048 bytes: header and body of each member
    for size in (6 * 1024, 6 * 1024 + 100, 6 * 1024 + 520):  # after three pairs; in a header; in a body
        (tmp_path / 'cut.tar').write_bytes(whole[:size])
        pairs = open_folder(tmp_path / 'cut.tar')
        assert [item.text for item in pairs.items] == ['text 0', 'text 1', 'text 2']
        # no closing zeros: many tools write none
        assert pairs.report.as_dict() == ({} if size == 6 * 1024 else {'truncated': 1})
    damaged = bytearray(whole)
    damaged[8 * 1024 + 3] ^= 1
    (tmp_path / 'damaged.tar').write_bytes(damaged)
    pairs = open_folder(tmp_path / 'damaged.tar')
    assert len(pairs) == 4
    assert pairs.report.where == {'damaged': [f'{tmp_path / "damaged.tar"} at byte {8 * 1024}']}
    (tmp_path / 'no.tar').write_bytes(b'This is no tar at all.' * 100)
    with pytest.raises(BadInput, match='damaged: 1'):
        open_folder(tmp_path / 'no.tar')
    (tmp_path / 'short.tar').write_bytes(b'x' * 100)
    with pytest.raises(BadInput, match='truncated: 1 .*short.tar at byte 0'):
        open_folder(tmp_path / 'short.tar')
    # Cut after it was opened: the picture is a bad item, not a crash.
    pairs = open_folder(tmp_path / 'a.tar')
    media = pairs.media(7)
    os.truncate(tmp_path / 'a.tar', 14 * 1024 + 520)
    with pytest.raises(BadItem, match='truncated'):
        media.load()
    (tmp_path / 'a.tar').unlink()
    for gone in (media.load, lambda: pairs.media(7), lambda: pairs.at(7)):
        with pytest.raises(BadItem, match='missing'):
            gone()


def header(name, size, kind=b'0'):
    """512 bytes of a tar; size as it is to stand there."""
    block = bytearray(512)
    for at, field in ((0, name), (124, size), (156, kind), (257, b'ustar\x0000'), (148, b' ' * 8)):
        block[at:at + len(field)] = field
    block[148:156] = b'%06o\0 ' % sum(block)
    return bytes(block)


@pytest.mark.parametrize('size, kind, trouble', [
    (b'-0000001000\0', b'0', 'damaged'), (b'+1', b'0', 'damaged'), (b'1_0', b'0', 'damaged'),
    (b'9', b'0', 'damaged'), (b'\xff' * 12, b'0', 'truncated'),
    (b'77777777777', b'0', 'truncated'), (b'77777777777', b'x', 'truncated'),
    (b'77777777777', b'L', 'truncated'), (b'00020000000', b'x', 'truncated'),
    (b'77777777777', b'5', None), (b'77777777777', b'3', None), (b'0', b'K', 'damaged'), (b'0', b'S', None)])
def test_hostile_headers(tmp_path, size, kind, trouble):
    """Sizes that lead backwards, far beyond the end, or to a body that is not there."""
    good = shard(tmp_path / 'good.tar', [*pair('a', 'one'), *pair('b', 'two')]).read_bytes()[:4096]
    (tmp_path / 'a.tar').write_bytes(good + header(b'evil', size, kind) + bytes(1024))
    pairs = open_folder(tmp_path / 'a.tar')
    assert [item.text for item in pairs.items] == ['one', 'two']
    assert pairs.report.as_dict() == ({trouble: 1} if trouble else {})


def test_extended_headers_without_end(tmp_path):
    good = shard(tmp_path / 'good.tar', [*pair('a', 'one')]).read_bytes()[:2048]
    (tmp_path / 'a.tar').write_bytes(good + header(b'x', b'0', b'x') * 1000)
    assert open_folder(tmp_path / 'a.tar').report.as_dict() == {'damaged': 1}
    (tmp_path / 'b.tar').write_bytes(good + header(b'x', b'10000000', b'L') + bytes(2 << 20))
    assert open_folder(tmp_path / 'b.tar').report.as_dict() == {'damaged': 1}


def test_a_bad_picture_in_a_shard_names_it(tmp_path):
    path = shard(tmp_path / 'a.tar',
                 [('k.jpg', encoded((9, 9, 9), 'JPEG', (64, 64))[:300]), ('k.txt', b'cut'), ('n.jpg', b''),
                  ('n.txt', b'nothing')])
    pairs = open_folder(path)
    for k, kind, name in ((0, 'truncated', 'k.jpg'), (1, 'empty', 'n.jpg')):
        with pytest.raises(BadItem) as e:
            pairs.media(k).load()
        assert (e.value.kind, e.value.where) == (kind, f'{path}:{name}')


def test_every_item_once_an_epoch_over_ranks_and_workers(tmp_path):
    """Rank r of R, worker w of W takes the numbers that are r + R w modulo R W. Whatever R and W are, an
    epoch's worth of numbers is every item once; a run that resumes at any number goes on with what it would
    have seen."""
    for n in range(3):
        shard(tmp_path / f'{n}.tar', [member for k in range(7) for member in pair(f'{k}', f'{n} {k}')])
    everything = {f'{n} {k}' for n in range(3) for k in range(7)}
    rng = np.random.default_rng(0)
    first = open_path(tmp_path, seed=5)
    order = [first.document(i, rng).pieces[1] for i in range(63)]
    for ranks, workers in ((1, 1), (2, 1), (3, 2), (4, 5)):
        seen = []
        for r in range(ranks):
            for w in range(workers):
                own = open_path(tmp_path, seed=5)  # each process opens the source for itself
                seen.append({i: own.document(i, rng).pieces[1] for i in range(21, 42)
                             if i % (ranks * workers) == r + ranks * w})
        together = {i: text for part in seen for i, text in part.items()}
        assert sum(map(len, seen)) == 21 and set(together.values()) == everything
        assert [together[i] for i in range(21, 42)] == order[21:42]
    assert [open_path(tmp_path, seed=5).document(i, rng).pieces[1] for i in range(40, 63)] == order[40:]
    assert order[:21] != order[21:42] and set(order[:21]) == everything
    crossed = [text.split()[0] for text in order[:21]]
    # all shards are mixed, not one after the other
    assert sum(a != b for a, b in zip(crossed, crossed[1:])) > 7


def test_shards_serve_like_any_other_pairs(tmp_path):
    """Few-shot pages, media keys that name the pixels, pickling for workers."""
    import pickle
    path = shard(tmp_path / 'a.tar',
                 [member for k in range(6) for member in pair(f'{k}', f'thing {k}', (40 * k, 0, 0))])
    pairs = open_folder(path)
    page = Pages(pairs, ['dax', 'wug', 'fep', 'zup', 'toma'], naming=1).document(0, np.random.default_rng(0))
    assert len(page.pieces) % 3 == 0
    assert len({pairs.media(k, v).key for k in range(6) for v in range(2)}) == 12
    again = pickle.loads(pickle.dumps(pairs))
    assert isinstance(again, Pairs) and colour_of(again.media(3)) == (120, 0, 0)
    assert again.media(3).key == pairs.media(3).key


def test_little_of_a_shard_is_kept_in_memory(tmp_path):
    """40 bytes a pair, however long its caption is."""
    path = shard(tmp_path / 'a.tar',
                 [member for k in range(1000) for member in ((f'{k}.png', b'x'),
                                                             (f'{k}.txt', b'caption ' * 200))])
    open_folder(path)  # whatever is imported and cached on the way
    gc.collect()
    tracemalloc.start()
    pairs = open_folder(path)
    gc.collect()
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(pairs) == 1000 and kept < 100_000


def test_inside_is_bounded(tmp_path):
    (tmp_path / 'a').write_bytes(b'x' * 600)
    with pytest.raises(BadItem, match='too large'):
        Inside(str(tmp_path / 'a'), 512, 1 << 40).read()
    with pytest.raises(BadItem, match='truncated'):
        Inside(str(tmp_path / 'a'), 512, 89).read()
    assert Inside(str(tmp_path / 'a'), 512, 88).read() == b'x' * 88
