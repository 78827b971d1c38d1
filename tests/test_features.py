"""What is kept from the frozen encoder is what it says, is computed once, and does not depend on what it
was computed with."""
import numpy as np
import pytest
import torch
from PIL import Image

from data import Media
from kit.features import FrozenFeatures, Kept, Pixels
from kit.files import BadItem
from rounding import assert_near
from vision import NFNet

ROUNDINGS = 1000  # of a frame alone and in a batch: 20 layers of sums of about 1,000 numbers, 20 · √1000

SIZE = 32


def media(key, n_frame=1, seed=None, loads=None):
    """A picture or clip of its own; `loads` notes each time it is decoded."""
    rng = np.random.default_rng(seed if seed is not None else list(key.encode()))
    frames = [Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)) for _ in range(n_frame)]

    def load():
        if loads is not None:
            loads.append(key)
        return frames

    return Media(key, load)


def frozen(**options):
    """-> features of a small encoder, and a list that notes how many frames it is called with."""
    torch.manual_seed(0)
    vision = NFNet('nano').eval()
    calls = []
    vision.register_forward_hook(lambda _, inputs, output: calls.append(len(inputs[0])))
    return FrozenFeatures(vision, Pixels(SIZE, 4), **options), calls


def directly(features, m):
    """The encoder on each frame by itself. (F,S,D)"""
    frames = torch.stack([torch.from_numpy(np.asarray(f).transpose(2, 0, 1).copy()) for f in m.load()])
    with torch.no_grad():
        return torch.cat([features.vision(features.vision.normalise(f[None])) for f in frames])


def test_features_are_those_of_the_encoder():
    """Pictures and clips, in rows of different lengths, more frames than one chunk holds; one after the
    other, without padding."""
    features, _ = frozen()
    rows = [[media(f'{row}-{i}', n_frame, seed=10 * row + i) for i, n_frame in enumerate(sizes)]
            for row, sizes in enumerate([(1, 4, 2), (), (3,), (1,) * 9, (4, 4, 4, 4, 4)])]
    found, mask = features(rows)
    assert found.dtype == torch.float32 and not found.requires_grad
    assert mask.shape == (5, 9, 4)
    for b, row in enumerate(rows):
        for n in range(9):
            real = len(row[n].load()) if n < len(row) else 0
            assert mask[b, n].tolist() == [f < real for f in range(4)]
    assert_near(found, torch.cat([directly(features, m) for row in rows for m in row]), ROUNDINGS)


def test_rows_without_any_picture_have_no_features():
    features, calls = frozen()
    assert features([[], []]) == (None, None) and calls == []


def test_a_picture_is_decoded_and_encoded_once():
    """Also where one page shows it twice, and where another Media with the same key stands for it."""
    features, calls = frozen()
    loads = []
    a, b = media('a', loads=loads), media('b', n_frame=2, loads=loads)
    first, _ = features([[a, b], [a]])
    assert len(calls) == 1 and sorted(loads) == ['a', 'b']
    again, _ = features([[media('a', loads=loads)], [b]])
    assert len(calls) == 1 and sorted(loads) == ['a', 'b']
    assert torch.equal(again[0], first[3]) and torch.equal(again[1:], first[1:3])
    features([[a, media('c', loads=loads)]])
    assert len(calls) == 2 and sorted(loads) == ['a', 'b', 'c']


def test_a_picture_without_a_key_is_not_kept():
    """Nobody knows whether it will look the same again (an augmented one will not). Two of them are not
    confused."""
    features, calls = frozen()
    shown = [media('', seed=1), media('', seed=2)]
    for _ in range(2):
        found, _ = features([shown])
        assert_near(found, torch.cat([directly(features, m) for m in shown]), ROUNDINGS)
        calls.clear()
    features([shown])
    assert calls and not features.kept and not features.pixels.kept


def test_what_a_picture_is_encoded_with_changes_no_bit_of_it():
    """A resumed run finds its pictures together with others than the run that was never interrupted, and
    must go on exactly like it."""
    pictures = [media(str(i), seed=i) for i in range(40)]
    alone, _ = frozen()[0]([[pictures[7]]])
    together, _ = frozen()[0]([pictures])
    backwards, _ = frozen()[0]([pictures[5:20][::-1]])
    assert torch.equal(together[7], alone[0]) and torch.equal(backwards[12], alone[0])


def test_a_damaged_picture_is_reported_and_spoils_no_other():
    features, _ = frozen()
    good = media('good', seed=1)

    def fail():
        raise BadItem('truncated', 'bad.png')

    with pytest.raises(BadItem, match='bad.png'):
        features([[good, Media('bad', fail)]])
    found, _ = features([[good]])
    assert_near(found, directly(features, good), ROUNDINGS)


def test_the_oldest_go_when_there_is_no_room():
    """Three tensors of 400 bytes in 1000: the first one goes. One that is too large for all is kept alone."""
    kept = Kept(1000)
    for name in 'abc':
        kept.keep(name, torch.zeros(100))
    assert list(kept) == ['b', 'c'] and kept.size == 800
    kept.keep('d', torch.zeros(50))
    assert list(kept) == ['b', 'c', 'd'] and kept.size == 1000
    kept.keep('huge', torch.zeros(1000))
    assert list(kept) == ['huge'] and kept.size == 4000


def test_features_are_right_when_almost_nothing_can_be_kept():
    """A batch may hold more than there is room for: what is asked for now is there all the same."""
    features, calls = frozen(limit=1)
    pictures = [media(str(i), seed=i) for i in range(5)]
    for _ in range(2):
        found, _ = features([pictures])
        assert_near(found, torch.cat([directly(features, m) for m in pictures]), ROUNDINGS)
    assert len(features.kept) == 1
