"""The vision encoder against the published counts and formulas, and the contrastive training around it."""
import math

import numpy as np
import pytest
import torch
from torch import nn

from kit.contrastive import PlainWords
from kit.weights.published import Classifier
from rounding import assert_near
from kit.agc import adaptive_gradient_clip
from vision import (
    Contrastive, contrastive_loss, GAMMA, NFBlock, NFNet, SIZES, SqueezeExcite,
    TextTower, WSConv2d)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


# ---------------------------------------------------------------------------------------------
# Slow references, float64


def slow_conv(x, conv, kernel, stride, groups):
    """x (C,H,W). Weights standardised by the formula, padded as TensorFlow's SAME: ⌈H/stride⌉ outputs, an
    odd pixel right and below."""
    w, bias, gain = (p.detach().numpy() for p in (conv.weight, conv.bias, conv.gain))
    fan_in = kernel * kernel * len(x) // groups
    w = np.stack([g * (u - u.mean()) / math.sqrt(max(fan_in * ((u - u.mean()) ** 2).mean(), 1e-4))
                  for u, g in zip(w, gain)])
    size = [-(-n // stride) for n in x.shape[1:]]
    before = [max((o - 1) * stride + kernel - n, 0) // 2 for o, n in zip(size, x.shape[1:])]
    out = np.zeros((len(w), *size))
    for o, i, j in np.ndindex(*out.shape):
        out[o, i, j] = bias[o]
        group = o // (len(w) // groups)
        for c, di, dj in np.ndindex(*w.shape[1:]):
            y, z = i * stride + di - before[0], j * stride + dj - before[1]
            if 0 <= y < x.shape[1] and 0 <= z < x.shape[2]:
                out[o, i, j] += w[o, c, di, dj] * x[group * w.shape[1] + c, y, z]
    return out


def slow_gelu(x):
    """x·Φ(x), rescaled by the published constant (1.70150435)."""
    return 1.70150435 * x * np.vectorize(lambda z: 0.5 * (1 + math.erf(z / math.sqrt(2))))(x)


def slow_block(block, x, group, stride):
    """The fact sheet's steps for one picture x (C,H,W) in training's absence."""
    o = slow_gelu(x) * block.beta
    if stride == 2:
        half = [-(-n // 2) for n in x.shape[1:]]
        pooled = np.zeros((len(o), *half))
        for i, j in np.ndindex(*half):  # at an odd border: the mean of the pixels that are there
            pooled[:, i, j] = o[:, 2 * i:2 * i + 2, 2 * j:2 * j + 2].mean((1, 2))
        shortcut = slow_conv(pooled, block.shortcut, 1, 1, 1)
    else:
        shortcut = x if block.shortcut is None else slow_conv(o, block.shortcut, 1, 1, 1)
    h = slow_conv(o, block.conv1, 1, 1, 1)
    groups = len(h) // group
    h = slow_conv(slow_gelu(h), block.conv2, 3, stride, groups)
    h = slow_conv(slow_gelu(h), block.conv2b, 3, 1, groups)
    h = slow_conv(slow_gelu(h), block.conv3, 1, 1, 1)
    fc1, fc2 = block.squeeze_excite.fc1, block.squeeze_excite.fc2
    z = np.maximum(fc1.weight.detach().numpy() @ h.mean((1, 2)) + fc1.bias.detach().numpy(), 0)
    z = fc2.weight.detach().numpy() @ z + fc2.bias.detach().numpy()
    h = h * (2 / (1 + np.exp(-z)))[:, None, None]
    return shortcut + block.alpha * block.skip_gain.item() * h


def randomise(module, std=0.6):
    with torch.no_grad():
        for p in module.parameters():
            p.normal_(std=std)
    return module.double()


# ---------------------------------------------------------------------------------------------
# Sizes


@pytest.mark.parametrize('size, millions',
                         [('F0', 71.5), ('F1', 132.6), ('F2', 193.8), ('F3', 254.9), ('F4', 316.1),
                          ('F5', 377.2), ('F6', 438.4)])
def test_published_parameter_counts(size, millions):
    """With the 1000-way head; and the 435 M that the paper gives its F6 is the network without that head."""
    with torch.device('meta'):
        model = Classifier(NFNet(size))
    n = sum(p.numel() for p in model.parameters())
    assert round(n / 1e6, 1) == millions
    if size == 'F6':
        assert round((n - sum(p.numel() for p in model.head.parameters())) / 1e6) == 435


def test_unknown_size_is_refused_and_named():
    with pytest.raises(ValueError, match=r"F9.*nano.*F6"):
        NFNet('F9')


@pytest.mark.parametrize('height, width', [(320, 320), (288, 288), (480, 480), (33, 64), (65, 31), (1, 97)])
@pytest.mark.parametrize('size, pixels', [('F0', 32), ('nano', 16)])
def test_number_of_positions(size, pixels, height, width):
    """⌈H/32⌉·⌈W/32⌉ (the paper's 320 px: 100 features, 288: 81, 480: 225; nano: 16), odd and non-square
    pictures too."""
    with torch.device('meta'):
        net = NFNet(size)
        features = net(torch.empty(2, 3, height, width))
    assert features.shape == (2, math.ceil(height / pixels) * math.ceil(width / pixels), net.dim)
    assert size == 'nano' or net.dim == 3072


@pytest.mark.parametrize('rows, columns', [(3, 3), (2, 5), (1, 4)])
def test_positions_stand_in_reading_order(rows, columns):
    """Row by row: a patch that changes is felt most at its own place in the list."""
    net = randomised_gains(NFNet('nano'))
    picture = torch.randn(1, 3, rows * 16, columns * 16)
    with torch.no_grad():
        before = net(picture)
        for y, x in np.ndindex(rows, columns):
            changed = picture.clone()
            changed[:, :, y * 16 + 4:y * 16 + 12, x * 16 + 4:x * 16 + 12] += 10 * torch.randn(3, 1, 1)
            assert (net(changed) - before).square().sum(-1).argmax() == y * columns + x


def randomised_gains(net):
    """The network as after some training: no branch silent."""
    with torch.no_grad():
        for block in net.blocks:
            block.skip_gain.uniform_(0.2, 0.5)
    return net


# ---------------------------------------------------------------------------------------------
# Convolution


@pytest.mark.parametrize('height, width', [(4, 4), (5, 5), (6, 7), (3, 8), (1, 2)])
@pytest.mark.parametrize('kernel, stride, groups', [(3, 2, 1), (3, 2, 2), (3, 1, 2), (1, 1, 1), (1, 2, 1)])
def test_convolution_equals_the_slow_loop(kernel, stride, groups, height, width):
    """Standardised weights (fan-in counts a group's channels only), gain, bias, and SAME padding at odd and
    even sizes."""
    conv = randomise(WSConv2d(4, 6, kernel, stride, groups))
    x = torch.randn(2, 4, height, width, dtype=torch.float64)
    expected = np.stack([slow_conv(picture, conv, kernel, stride, groups) for picture in x.numpy()])
    np.testing.assert_allclose(conv(x).detach(), expected, rtol=1e-9, atol=1e-9)


def test_same_padding_by_hand():
    """Four pixels, kernel 3, stride 2: windows 0–2 and 2–4, where 4 is padding. (PyTorch's padding=1 would
    take −1–1 and 1–3.)"""
    conv = WSConv2d(1, 1, 3, 2).double()
    left, middle, right = conv.standardised_weight()[0, 0, 1]
    out = conv(torch.tensor([[[[1.0, 10, 100, 1000]]]], dtype=torch.float64))[0, 0, 0]
    torch.testing.assert_close(out,
                               torch.stack([left + 10 * middle + 100 * right, 100 * left + 1000 * middle]))


def test_raw_scale_of_a_weight_does_not_matter():
    """Only the direction of the raw weight counts: unit variance in, unit variance out. A constant weight
    gives zero, not NaN."""
    conv = WSConv2d(64, 256, 3)
    x = torch.randn(8, 64, 12, 12)
    out = conv(x)
    assert out[:, :, 1:-1, 1:-1].std().item() == pytest.approx(1, rel=0.03)  # away from the zeros outside
    with torch.no_grad():
        conv.weight.mul_(50).add_(torch.randn(256, 1, 1, 1))
    torch.testing.assert_close(conv(x), out, rtol=1e-3, atol=1e-3)
    nn.init.constant_(conv.weight, 0.25)
    assert (conv(x) == 0).all()


def test_gamma_is_the_inverse_std_of_gelu():
    """Against the integral over a standard Gaussian. (The published value is itself a sampled one, off by
    0.0006.)"""
    x = np.linspace(-10, 10, 20001)
    p = np.exp(-x * x / 2)
    p /= p.sum()
    y = slow_gelu(x) / 1.70150435
    assert GAMMA == pytest.approx(1 / math.sqrt(p @ y ** 2 - (p @ y) ** 2), abs=1e-3)
    assert GAMMA == pytest.approx(1.70150435, abs=1e-8)


# ---------------------------------------------------------------------------------------------
# Blocks and the variance rule


@pytest.mark.parametrize('n_in, n_out, stride', [(8, 8, 1), (4, 8, 1), (4, 8, 2), (8, 8, 2)])
def test_block_equals_the_slow_loop(n_in, n_out, stride):
    """The fact sheet's six steps at an odd size: pooled shortcut, β, grouped pair, squeeze-excite, skip
    gain, α."""
    block = randomise(NFBlock(n_in, n_out, 2, stride, alpha=0.3, beta=0.7, drop_path=0.5)).eval()
    x = torch.randn(2, n_in, 5, 4, dtype=torch.float64)
    expected = np.stack([slow_block(block, picture, 2, stride) for picture in x.numpy()])
    np.testing.assert_allclose(block(x).detach(), expected, rtol=1e-7, atol=1e-7)


def test_beta_and_stochastic_depth_of_f0_by_hand():
    """β = 1/(predicted std): α = 0.2 adds 0.04 to the variance per block; a stage's first block still
    divides by the stage before. Stochastic depth rises with depth: 0.25·i/12."""
    with torch.device('meta'):
        blocks = NFNet('F0').blocks
    variance = [1, 1.04, 1.04, 1.08, 1.04, 1.08, 1.12, 1.16, 1.20, 1.24, 1.04, 1.08]  # stages of 1, 2, 6, 3
    assert [block.beta for block in blocks] == pytest.approx([v ** -0.5 for v in variance])
    assert [block.drop_path for block in blocks] == pytest.approx([0.25 * i / 12 for i in range(12)])
    assert [block.shortcut is not None for block in blocks] == [i in (0, 1, 3, 9) for i in range(12)]


@pytest.mark.parametrize('alpha', [0.5, 1.0])
def test_variance_follows_the_prediction(monkeypatch, alpha):
    """White noise through fresh blocks with open gains: variance grows by α² a block, and every transition
    brings it back to one.

    The 2x2 mean of a transition's shortcut would quarter the variance of noise without neighbours (a
    picture's pixels resemble theirs): here it takes every second pixel instead.
    """
    monkeypatch.setitem(SIZES, 'test',
                        dict(stem=(8, 8, 8, 48), widths=(64, 128, 128), depths=(3, 2, 1), group=16,
                             alpha=alpha,
                             drop_path=0.0))
    x = torch.randn(2, 48, 96, 96)
    with torch.no_grad():
        for block, variance in zip(NFNet('test').blocks, [1 + i * alpha ** 2 for i in (1, 2, 3, 1, 2, 1)]):
            block.skip_gain.fill_(1)
            if isinstance(block.pool, nn.AvgPool2d):
                block.pool = nn.MaxPool2d(1, 2)
            # Away from the zeros outside.
            assert 1 / block.beta == pytest.approx(x[:, :, 6:-6, 6:-6].std().item(), rel=0.1)
            x = block(x)
            assert x[:, :, 6:-6, 6:-6].std().item() == pytest.approx(variance ** 0.5, rel=0.1)


def test_blocks_start_silent_and_can_wake():
    """SkipInit: at the start a block is its shortcut alone, to the bit; its gain gets a gradient."""
    x = torch.randn(2, 8, 6, 6)
    for block in NFNet('nano').blocks:
        assert block.skip_gain.item() == 0
    same, transition = NFBlock(8, 8, 4, 1, 0.2, 0.9, 0.0), NFBlock(8, 16, 4, 2, 0.2, 0.9, 0.0)
    assert torch.equal(same(x), x)
    out = transition(x)
    out.square().sum().backward()
    assert transition.skip_gain.grad != 0
    nn.init.normal_(transition.conv3.weight)
    assert torch.equal(transition(x), out)


def test_squeeze_excite_with_zero_weights_is_the_identity():
    """2·σ(0) = 1: without the factor 2 every block would halve its branch."""
    module = SqueezeExcite(6)
    for p in module.parameters():
        nn.init.zeros_(p)
    x = torch.randn(2, 6, 3, 4)
    assert torch.equal(module(x), torch.ones(2, 6, 1, 1))


def test_stochastic_depth():
    """In training each picture keeps its branch, unscaled, or loses it; in eval all keep it."""
    block = NFBlock(4, 4, 2, 1, alpha=1.0, beta=1.0, drop_path=0.25)
    nn.init.ones_(block.skip_gain)
    x = torch.randn(1, 4, 3, 3).expand(400, -1, -1, -1)  # one picture, many times
    with torch.no_grad():
        full = block.eval()(x)
        assert torch.equal(block(x), full)
        out = block.train()(x)
    kept = (out - full).abs().amax((1, 2, 3)) < 1e-5
    lost = (out == x).flatten(1).all(1)
    assert (kept ^ lost).all()
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.08)


def test_a_picture_does_not_depend_on_its_batch():
    """Why there is no batch norm: a contrastive loss must not leak between the pictures it compares."""
    net = randomised_gains(NFNet('nano', dim_embed=8)).train()
    pictures = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        before = net.embed(pictures)[0]
        pictures[1:] = 50 * torch.rand(2, 3, 32, 32)
        assert_near(net.embed(pictures)[0], before, 1000)  # 20 sums of about 1,000 numbers each: 20 · √1000
        assert_near(net.embed(pictures[:1])[0], before, 1000)


def test_each_picture_normalised_by_its_own_mean_and_deviation():
    pixels = torch.randint(0, 256, (3, 3, 5, 7), dtype=torch.uint8)
    pixels[1] = pixels[1] // 4 + 20  # dark, of little contrast
    pixels[2] = 77                   # of one colour
    x = NFNet('nano', per_image=True).normalise(pixels)
    p = pixels.double()
    for i in range(2):
        torch.testing.assert_close(x[i].double(), (p[i] - p[i].mean()) / p[i].std(correction=0), rtol=1e-5,
                                   atol=1e-5)
    assert not x[2].any()


def test_normalise_known_values():
    """Black and white in ImageNet's statistics, channel by channel: the values any published pipeline
    gives."""
    pixels = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 1, 2)
    black, white = NFNet('nano').normalise(pixels)[..., 0, 0]
    torch.testing.assert_close(black, torch.tensor([-2.1179, -2.0357, -1.8044]), rtol=0, atol=1e-4)
    torch.testing.assert_close(white, torch.tensor([2.2489, 2.4286, 2.6400]), rtol=0, atol=1e-4)


# ---------------------------------------------------------------------------------------------
# Contrastive training


def losses(pair, images, texts):
    """What the vision stage makes of a Contrastive. texts: (tokens, mask, which picture each describes)"""
    v, captions, beta = pair(images, [text[:2] for text in texts])
    return [contrastive_loss(v[shows], l, beta) for l, (_, _, shows) in zip(captions, texts)]


def text_tower():
    return TextTower(n_vocab=20, dim=16, n_layer=2, n_head=2, n_context=12, dim_embed=6)


def test_embeddings_have_length_one():
    """Cosine similarity, whatever the projection's scale; a picture's is the mean over space, projected."""
    net, text = randomised_gains(NFNet('nano', dim_embed=6)), text_tower()
    with torch.no_grad():
        net.projection.weight.mul_(40)
        text.projection.weight.mul_(0.01)
        pictures, tokens = torch.randn(3, 3, 32, 48), torch.randint(20, (3, 5))
        v, l = net.embed(pictures), text.embed(tokens, torch.ones(3, 5, dtype=torch.bool))
        for e in (v, l):
            torch.testing.assert_close(e.norm(dim=1), torch.ones(3))
        mean = sum(net.grid(pictures)[:, :, i, j] for i, j in np.ndindex(2, 3)) / 6 @ net.projection.weight.T
        # 20 sums of about 1,000 numbers each: 20 · √1000
        assert_near(v * mean.norm(dim=1, keepdim=True), mean, 1000)


@pytest.mark.parametrize('training', [True, False])
def test_text_tower_ignores_padding(training):
    """Neither what stands in the padding nor how long it is reaches a text: not by attention, not by the
    mean."""
    tower = text_tower().train(training)
    tokens = torch.randint(20, (3, 9))
    length = torch.tensor([9, 4, 1])
    mask = torch.arange(9) < length[:, None]
    with torch.no_grad():
        together = tower.embed(tokens, mask)
        padded = tower.embed(tokens.where(mask, (tokens + 7) % 20), mask)
        torch.testing.assert_close(padded, together, rtol=0, atol=0)
        for i, n in enumerate(length):
            alone = tower.embed(tokens[i:i + 1, :n], torch.ones(1, n, dtype=torch.bool))
            torch.testing.assert_close(together[i:i + 1], alone, rtol=1e-5, atol=1e-5)
        # While real tokens do.
        assert (tower.embed((tokens + 7) % 20, mask) - together).abs().amax(1).min() > 0.01


def test_text_tower_reads_both_ways_and_in_order():
    """Bidirectional: the first position's mean sees the last token; and word order matters."""
    tower = text_tower()
    tokens = torch.tensor([[3, 5, 7, 9]])
    mask = torch.ones(1, 4, dtype=torch.bool)
    first = []
    tower.layers[-1].register_forward_hook(lambda module, args, out: first.append(out[0, 0]))
    with torch.no_grad():
        nn.init.normal_(tower.position.weight)
        a, b, c = (tower.embed(t, mask) for t in (tokens, torch.tensor([[3, 5, 7, 8]]), tokens.flip(1)))
    assert (first[0] - first[1]).abs().max() > 1e-3
    assert (a - c).abs().max() > 0.01


def test_without_layers_it_is_a_bag_of_words():
    """What a text says is the sum of what its words say, each by itself, before it is brought to length
    one."""
    tower = TextTower(12, 8, 0, 2, 6, 5)
    with torch.no_grad():
        words = [tower.projection(tower.norm(tower.token.weight[t] + tower.position.weight[i]))
                 for i, t in enumerate((3, 5, 7))]
        whole = tower.embed(torch.tensor([[3, 5, 7, 0]]), torch.tensor([[True, True, True, False]]))
    torch.testing.assert_close(whole[0], nn.functional.normalize(sum(words), dim=0))


def test_plain_words_have_no_order_and_a_weight_of_their_own():
    """The same words in another order are the same text; a word whose vector is short hardly changes what
    the others say."""
    tower = PlainWords(12, 8, 6, 5)
    nn.init.normal_(tower.token.weight)
    embed = lambda *tokens: tower.embed(torch.tensor([tokens]),
                                        torch.ones(1, len(tokens), dtype=torch.bool))[0]
    with torch.no_grad():
        torch.testing.assert_close(embed(3, 5, 7), embed(7, 3, 5))
        tower.norm.weight.normal_()
        mean = torch.stack([tower.token.weight[t] for t in (3, 5, 7)]).mean(0)
        expected = tower.projection.weight @ ((mean - mean.mean()) / (mean.var(correction=0) + 1e-5).sqrt()
                                              * tower.norm.weight + tower.norm.bias)
        torch.testing.assert_close(embed(3, 5, 7), nn.functional.normalize(expected, dim=0))
        loud = (embed(3, 5, 9) - embed(3, 5)).norm()
        tower.token.weight[9] *= 1e-3
        assert (embed(3, 5, 9) - embed(3, 5)).norm() < 0.02 < loud


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
@pytest.mark.parametrize('n', [1, 2, 5])
def test_contrastive_loss_equals_the_slow_loop(n, smoothing):
    """Both terms of appendix B.1 in float64: the target is 1−ε on the pair plus ε spread over all N.
    Summed, not averaged as in CLIP."""
    v, l = (nn.functional.normalize(torch.randn(n, 4, dtype=torch.float64), dim=1) for _ in range(2))
    beta, expected = 3.7, 0.0
    for rows, columns in ((l, v), (v, l)):
        for i in range(n):
            total = sum(math.exp(beta * rows[i] @ columns[j]) for j in range(n))
            for j in range(n):
                target = smoothing / n + (1 - smoothing) * (i == j)
                expected -= target * math.log(math.exp(beta * rows[i] @ columns[j]) / total) / n
    loss = contrastive_loss(v, l, beta, label_smoothing=smoothing).item()
    assert loss == pytest.approx(expected, rel=1e-10, abs=1e-12)
    torch.testing.assert_close(contrastive_loss(l, v, beta, label_smoothing=smoothing),
                               contrastive_loss(v, l, beta, label_smoothing=smoothing))


def test_contrastive_loss_by_hand():
    """Two orthogonal pairs at β = ln 3: each right answer has probability 3/4. Smoothed by 0.1, the target
    is 0.95 and 0.05."""
    pairs, beta = torch.eye(2, dtype=torch.float64), math.log(3)
    plain = contrastive_loss(pairs, pairs, beta, label_smoothing=0).item()
    assert plain == pytest.approx(2 * math.log(4 / 3))
    smoothed = contrastive_loss(pairs, pairs, beta).item()
    assert smoothed == pytest.approx(-2 * (0.95 * math.log(0.75) + 0.05 * math.log(0.25)))
    swapped = contrastive_loss(pairs, pairs.flip(0), beta, label_smoothing=0).item()
    assert swapped == pytest.approx(2 * math.log(4))


@pytest.mark.parametrize('log_beta, beta',
                         [(None, 1 / 0.07), (math.log(20), 20), (math.log(101), 100), (10.0, 100)])
def test_beta_starts_at_clips_and_stops_at_100(log_beta, beta):
    """The inverse temperature is learned as its logarithm; beyond 100 training becomes unstable, so it
    counts as 100."""
    class Fixed(nn.Module):
        def __init__(self, e):
            super().__init__()
            self.e = e

        def embed(self, *_):
            return self.e

    v, l = (nn.functional.normalize(torch.randn(4, 3), dim=1) for _ in range(2))
    pair = Contrastive(Fixed(v), Fixed(l))
    if log_beta is not None:
        nn.init.constant_(pair.log_beta, log_beta)
    [loss] = losses(pair, None, [(None, None, torch.arange(4))])
    torch.testing.assert_close(loss, contrastive_loss(v, l, beta))


def test_a_picture_with_several_captions_is_encoded_once_and_counts_for_each():
    """Two sources, three captions each, of four pictures: losses and gradients are those of a picture
    encoded for each caption."""
    pair = Contrastive(randomised_gains(NFNet('nano', dim_embed=6)), text_tower()).double()
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    encoded = []
    pair.vision.stem[0].register_forward_hook(lambda module, args, out: encoded.append(len(out)))
    mask = torch.ones(3, 5, dtype=torch.bool)
    texts = [(torch.randint(20, (3, 5)), mask, torch.tensor(shows)) for shows in ([0, 1, 2], [2, 3, 2])]
    together = losses(pair, images, texts)
    assert encoded == [4]
    apart = [losses(pair, images[shows], [(tokens, mask, torch.arange(3))])[0]
             for tokens, mask, shows in texts]
    torch.testing.assert_close(together, apart)
    parameters = list(pair.parameters())
    gradients = (torch.autograd.grad(sum(loss), parameters, allow_unused=True) for loss in (together, apart))
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b)


# ---------------------------------------------------------------------------------------------
# Adaptive gradient clipping


def units(p):
    """The parts of a parameter that are clipped on their own: output channels or features; a vector or
    scalar is one part."""
    return list(p) if p.ndim > 1 else [p]


def test_agc_equals_the_slow_loop_and_never_lengthens():
    """Convolutions, matrices, vectors, a scalar, a zero weight and a zero gradient, units within the limit
    and beyond it."""
    torch.manual_seed(1)
    parameters = [nn.Parameter(torch.randn(shape, dtype=torch.float64))
                  for shape in [(6, 2, 3, 3), (5, 4), (7,), (), (3, 2), (4,), (2, 2)]]
    for p in parameters:
        scale = 0.001
        if p.ndim > 1:
            scale = torch.tensor(10.0) ** -torch.randint(0, 5, (len(p),) + (1,) * (p.ndim - 1))
        p.grad = torch.randn_like(p) * scale
    with torch.no_grad():
        parameters[4].zero_()  # eps keeps a unit of zeros alive
    parameters[5].grad.mul_(1000)
    parameters[6].grad.zero_()
    parameters.append(nn.Parameter(torch.ones(3)))  # no gradient at all
    before = [None if p.grad is None else p.grad.clone() for p in parameters]

    adaptive_gradient_clip(parameters, clip=0.05, eps=1e-3)

    shortened = untouched = 0
    for p, old in zip(parameters, before):
        if old is None:
            assert p.grad is None
            continue
        for weight, gradient, now in zip(units(p.detach()), units(old), units(p.grad)):
            longest = 0.05 * max(weight.square().sum().sqrt().item(), 1e-3)
            length = gradient.square().sum().sqrt().item()
            expected = gradient * longest / length if length > longest else gradient
            torch.testing.assert_close(now, expected, rtol=1e-10, atol=0)
            assert now.norm() <= gradient.norm() * (1 + 1e-12)
            shortened, untouched = shortened + (length > longest), untouched + (length <= longest)
    assert shortened >= 5 and untouched >= 5  # both happened


def test_agc_by_hand():
    """Rows [3,4] (length 5) and [0,0.1]: at clip 0.01 gradients may be 0.05 and 0.001 long."""
    p = nn.Parameter(torch.tensor([[3.0, 4.0], [0.0, 0.1]]))
    p.grad = torch.tensor([[0.6, -0.8], [0.0003, 0.0004]])
    adaptive_gradient_clip([p])
    torch.testing.assert_close(p.grad, torch.tensor([[0.03, -0.04], [0.0003, 0.0004]]))
