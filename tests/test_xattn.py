"""Gated cross-attention: the mask against a loop over the equation, the gates, and what the Route
promises."""
import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gates import open_gates
from kit.fast.kept import with_kept
from kit.fast.routing import one_image_per_token, route_tokens, routed_attention
from xattn import gate, GatedCrossAttention, masked_attention, SEES, sees

MODES = list(SEES)
D, D_V, R = 8, 6, 2  # widths of text and visual tokens, visual tokens per image


def gated_layer(attend='last', dtype=torch.float64, head_dim=3):
    """Every parameter random and large, gates open: nothing can hide behind an initial zero or one."""
    torch.manual_seed(0)
    layer = GatedCrossAttention(D, D_V, n_head=2, head_dim=head_dim, attend=attend).to(dtype)
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_(std=0.6)
    open_gates(layer, 0.6, 0.4)
    return layer


def inputs(b, t, n, seed=1, dtype=torch.float64, r=R):
    torch.manual_seed(seed)
    return torch.randn(b, t, D, dtype=dtype), torch.randn(b, n, r, D_V, dtype=dtype)


def grown(out, toward, leaves):
    """-> the gradients of (out · toward) by the leaves, zeros where there are none"""
    return torch.autograd.grad((out * toward).sum(), leaves, allow_unused=True, materialize_grads=True)


def slow_layer(layer, y, visual, image_index):
    """§2.2 and §2.3 for one token, one head, one key at a time; only what a token sees is ever
    touched."""
    def norm(x, ln):
        return (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt() * ln.weight + ln.bias

    n_head, d = layer.n_head, layer.head_dim
    w_k, w_v = layer.to_kv.weight.split(n_head * d)
    n_image = 0 if visual is None else visual.shape[1]
    gate_x, gate_d = layer.gates()
    out = []
    for b, t in itertools.product(*map(range, image_index.shape)):
        x, phi = y[b, t], int(image_index[b, t])
        images = [i for i in range(1, n_image + 1) if (i == phi if layer.attend == 'last' else i <= phi)]
        keys = [norm(token, layer.norm_visual) for i in images for token in visual[b, i - 1]]
        if keys:
            heads = []
            for h in range(n_head):
                rows = slice(h * d, (h + 1) * d)
                q = layer.to_q.weight[rows] @ norm(x, layer.norm)
                weight = [torch.exp(q @ (w_k[rows] @ key) / math.sqrt(d)) for key in keys]
                heads.append(sum(p / sum(weight) * (w_v[rows] @ key) for p, key in zip(weight, keys)))
            x = x + gate_x * (layer.to_out.weight @ torch.cat(heads))
        hidden = torch.relu(layer.feed_forward.up.weight @ norm(x, layer.feed_forward.norm)) ** 2
        out.append(x + gate_d * (layer.feed_forward.down.weight @ hidden))
    return torch.stack(out).view_as(y)


# What a page can look like: name -> (number of images N, image_index). Several rows are a padded batch.
PAGES = {
    'text before the first image': (3, [[0, 0, 1, 1, 2, 2, 3]]),
    'very uneven text': (4, [[1, 2, 3, 3, 3, 3, 3, 3, 3, 4]]),
    'all the text with the last image': (4, [[4, 4, 4, 4, 4]]),
    'more tags than images': (2, [[0, 1, 2, 3, 3, 4, 9]]),
    'not monotone': (3, [[1, 3, 2, 2, 1, 0, 3, 1]]),
    'one image': (1, [[0, 1, 1, 1, 1]]),
    'one image, and tags beyond it': (1, [[0, 1, 2, 1, 3]]),
    'one token': (3, [[2]]),
    'fewer tokens than images': (5, [[0, 5]]),
    'nobody sees anything': (2, [[0, 0, 0], [0, 3, 0]]),
    'padded batch': (3, [[0, 1, 1, 2, 3, 3], [0, 0, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0], [3, 2, 5, 0, 1, 1]]),
}


# ---------------------------------------------------------------------------------------------
# The equation


@pytest.mark.parametrize('attend', MODES)
@pytest.mark.parametrize('page', PAGES)
def test_equals_the_slow_loop(page, attend):
    """Values, and the gradients of both inputs and of every parameter."""
    n_image, index = PAGES[page]
    index = torch.tensor(index)
    layer = gated_layer(attend)
    y, visual = inputs(*index.shape, n_image)
    leaves = [y.requires_grad_(), visual.requires_grad_(), *layer.parameters()]
    toward = torch.randn(y.shape, dtype=y.dtype)
    fast, slow = layer(y, visual, index), slow_layer(layer, y, visual, index)
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(*(grown(out, toward, leaves) for out in (fast, slow)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('page', PAGES)
def test_routed_attention_is_masked_attention(page):
    """kit.fast.routing against the definition: values, and gradients of queries, keys and values."""
    n_image, index = PAGES[page]
    index = torch.tensor(index)
    b, t = index.shape
    torch.manual_seed(0)
    leaves = [torch.randn(*shape, dtype=torch.float64, requires_grad=True)
              for shape in [(b, t, 2, 3)] + 2 * [(b, n_image, 2, R, 3)]]
    toward = torch.randn(b, t, 2, 3, dtype=torch.float64)
    plain = masked_attention(*leaves, sees(index, n_image, 'last'))
    gradients = grown(plain, toward, leaves)
    fast = routed_attention(*leaves, sees(index, n_image, 'last'))
    torch.testing.assert_close(fast, plain, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grown(fast, toward, leaves), gradients, rtol=1e-11, atol=1e-11)


def test_what_a_token_sees_by_hand():
    """Before the first image nothing; of index 2 the second, or the first two; of a tag that came without
    its picture nothing, or all there are."""
    index = torch.tensor([[0, 2, 4]])
    assert sees(index, 3, 'last').tolist() == [[[False] * 3, [False, True, False], [False] * 3]]
    assert sees(index, 3, 'all_previous').tolist() == [[[False] * 3, [True, True, False], [True] * 3]]
    assert one_image_per_token(SEES['last']) and not one_image_per_token(SEES['all_previous'])


@pytest.mark.parametrize('rule, same', [
    (lambda image, index: index == image, True),
    (lambda image, index: (image == index) | (image == index - 1), False),
    (lambda image, index: (image == index) | (image == index - 20), False),
    (lambda image, index: image < index, False)])
def test_an_edited_rule_is_obeyed(rule, same, monkeypatch):
    """The faster form takes the place of the plain one only where the rule is the paper's, by any name."""
    plain = gated_layer('last')
    monkeypatch.setitem(SEES, 'last', rule)
    torch.manual_seed(0)
    layer, index = gated_layer('last'), torch.tensor([[0, 1, 1, 2, 3]])
    layer.load_state_dict(plain.state_dict())
    y, visual = torch.randn(1, 5, D).double(), torch.randn(1, 3, R, D_V).double()
    q, (k, v) = layer.queries(y), layer.keys_values(visual)
    seen = rule(torch.arange(1, 4), index.unsqueeze(-1))
    expected = layer.to_out(masked_attention(q, k, v, seen).flatten(2))
    torch.testing.assert_close(layer.cross_attention(y, visual, index), expected, rtol=1e-12, atol=1e-12)
    assert one_image_per_token(SEES['last']) == same
    assert layer.attention is (routed_attention if same else masked_attention)


@pytest.mark.parametrize('attend', MODES)
@pytest.mark.parametrize('how', ['None', 'empty'])
def test_no_image_at_all(attend, how):
    """Pure text, tags without pictures included: no attention, and the gated feed-forward still applies."""
    layer = gated_layer(attend)
    index = torch.tensor([[0, 0, 1, 2]])
    y, visual = inputs(1, 4, 0)
    out = layer(y, {'None': None, 'empty': visual}[how], index)
    torch.testing.assert_close(out, slow_layer(layer, y, None, index), rtol=1e-10, atol=1e-10)


def test_another_attend_is_refused():
    with pytest.raises(ValueError, match='first'):
        GatedCrossAttention(D, attend='first')


# ---------------------------------------------------------------------------------------------
# Leaks


@pytest.mark.parametrize('attend', MODES)
def test_a_token_that_sees_nothing_gets_exactly_zero(attend):
    """A softmax over a fully masked row is uniform: such a token would get a mixture of all images, later
    ones too."""
    layer = gated_layer(attend)
    # N = 3: 4 and 5 came without a picture
    index = torch.tensor([[0, 0, 1, 2, 0, 3, 0], [0, 1, 4, 2, 5, 1, 0]])
    y, visual = inputs(2, 7, 3)
    attended = layer.cross_attention(y, visual, index)
    blind = (index == 0) | (index > 3) if attend == 'last' else index == 0
    assert (attended[blind] == 0).all()
    assert (attended[~blind].abs().amax(-1) > 0.01).all()


@pytest.mark.parametrize('attend', MODES)
def test_changing_an_image_reaches_its_own_tokens_only(attend):
    """Bit for bit, and across the rows of a batch. ('all_previous': the tokens of this and later images.)"""
    layer = gated_layer(attend)
    index = torch.tensor([[0, 1, 1, 2, 3, 3, 3, 3, 4], [2, 2, 1, 4, 4, 0, 3, 5, 1]])
    y, visual = inputs(2, 9, 4)
    before = layer(y, visual, index)
    for b, k in itertools.product(range(2), range(1, 5)):
        changed = visual.clone()
        changed[b, k - 1] = torch.randn(R, D_V, dtype=visual.dtype) * 100
        reached = (layer(y, changed, index) != before).any(-1)
        expected = torch.zeros_like(reached)
        expected[b] = index[b] == k if attend == 'last' else index[b] >= k
        assert torch.equal(reached, expected), f'row {b}, image {k}'


@pytest.mark.parametrize('index', [[[0, 0, 1, 2]], [[0, 0, 0, 0]]])
@pytest.mark.parametrize('attend', MODES)
def test_backward_is_free_of_nan(attend, index):
    """Blind rows: masking all of a softmax gives NaN, and zeroing the output afterwards does not keep it
    out of the gradient."""
    layer = gated_layer(attend, torch.float32)
    y, visual = inputs(1, 4, 2, dtype=torch.float32)
    y.requires_grad_(), visual.requires_grad_()
    with torch.autograd.set_detect_anomaly(True):
        layer(y, visual, torch.tensor(index)).square().sum().backward()
    for x in (y, visual, *layer.parameters()):
        assert x.grad is None or x.grad.isfinite().all()


# ---------------------------------------------------------------------------------------------
# Gates


@pytest.mark.parametrize('attend', MODES)
def test_gates_start_shut_and_can_open(attend):
    """A new layer changes no bit of the language model's stream, yet both gates get a gradient (and, until
    they open, nothing else)."""
    torch.manual_seed(0)
    layer = GatedCrossAttention(D, D_V, n_head=2, head_dim=3, attend=attend)
    y, visual = inputs(2, 5, 3, dtype=torch.float32)
    out = layer(y, visual, torch.tensor([[0, 1, 2, 3, 3], [1, 1, 4, 2, 2]]))
    assert torch.equal(out, y)
    (out * torch.randn_like(out)).sum().backward()
    moved = {name for name, p in layer.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert moved == {'alpha_x', 'alpha_d'}


def test_a_gate_is_the_papers_tanh():
    layer = GatedCrossAttention(D)
    with torch.no_grad():
        layer.alpha_x.fill_(0.5), layer.alpha_d.fill_(-2.0)
    assert [g.item() for g in layer.gates()] == pytest.approx([math.tanh(0.5), math.tanh(-2.0)])
    assert gate(torch.zeros(())) == 0


@pytest.mark.parametrize('attend', MODES)
@pytest.mark.parametrize('n_image', [0, 3])
def test_gates_keep_a_bf16_stream_bf16(attend, n_image):
    """Weights in float32 under autocast: a gate of shape (1,) would turn the whole stream after it into
    float32."""
    layer = gated_layer(attend, torch.float32)
    y, visual = inputs(1, 5, n_image, dtype=torch.bfloat16)
    with torch.autocast('cpu', torch.bfloat16):
        assert layer(y, visual, torch.tensor([[0, 1, 2, 3, 3]])).dtype == torch.bfloat16
        layer.alpha_x, layer.alpha_d = nn.Parameter(layer.alpha_x[None]), nn.Parameter(layer.alpha_d[None])
        assert layer(y, visual, torch.tensor([[0, 1, 2, 3, 3]])).dtype == torch.float32  # the trap is real


# ---------------------------------------------------------------------------------------------
# What is computed once and kept


@pytest.mark.parametrize('attend', MODES)
def test_kept_keys_and_values_give_the_same(attend):
    """They are made once and shared by all steps; token by token, as in generation, is the same."""
    layer = gated_layer(attend)
    index = torch.tensor([[0, 1, 1, 3, 3, 2, 4], [1, 0, 2, 2, 2, 2, 3]])
    y, visual = inputs(2, 7, 3)
    out = layer(y, visual, index)
    kept = with_kept(layer, visual)
    assert torch.equal(kept(y, visual, index), out)
    with torch.no_grad():
        layer.to_kv.weight.zero_()
    steps = [kept(y[:, t:t + 1], visual, index[:, t:t + 1]) for t in range(7)]
    torch.testing.assert_close(torch.cat(steps, 1), out, rtol=1e-10, atol=1e-10)


# ---------------------------------------------------------------------------------------------
# The route


def random_page(generator, b, t, n):
    """(B,T) indices: evenly random, one image with nearly all of the text, or a page that rises as it is
    read."""
    index = torch.randint(0, n + 2, (b, t), generator=generator)
    kind = int(torch.randint(3, (), generator=generator))
    if kind == 1:
        index[torch.rand(b, t, generator=generator) < 0.9] = n
    return index.sort(1).values if kind == 2 else index


@pytest.mark.parametrize('seed', range(60))
def test_route_reaches_every_seeing_token_and_wastes_little(seed):
    """Each seeing token has a place of its own, in a chunk of its image. And however the text is spread, a
    sequence has at most 2N chunks and 2T places, each meeting R visual tokens: 2T·R scores at most, where a
    full mask needs T·N·R."""
    g = torch.Generator().manual_seed(seed)
    b, t, n = (int(torch.randint(1, high, (), generator=g)) for high in (4, 60, 33))
    index = random_page(g, b, t, n)
    route = route_tokens(sees(index, n, 'last'))
    seen = (index >= 1) & (index <= n)
    assert torch.equal(route.seen, seen)

    places = []
    for i, (row, position) in enumerate(itertools.product(range(b), range(t))):
        if seen[row, position]:
            place = int(route.place[i])
            assert route.token[place] == i
            assert route.image[place // route.chunk] == row * n + index[row, position] - 1
            places.append(place)
    assert len(set(places)) == len(places)

    assert len(route.token) == len(route.image) * route.chunk
    for row in range(b):
        chunks = int((route.image // n == row).sum())
        assert chunks <= 2 * n and chunks * route.chunk <= 2 * t or not seen.any()


def test_work_does_not_grow_with_the_number_of_images():
    """The product of queries and keys, counted where it is computed: 32 images cost at most twice what one
    does."""
    scores = {}
    for n in (1, 32):
        q, kv = torch.randn(1, 64, 2, 3), torch.randn(2, 1, n, 2, R, 3)
        index = torch.arange(64)[None] * n // 64 + 1
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            routed_attention(q, *kv, sees(index, n, 'last'))
        scores[n] = counter.get_total_flops()
    assert 0 < scores[32] <= 2 * scores[1]
