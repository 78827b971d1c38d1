"""Perceiver Resampler: the paper's loop, and that padding, clip length and frame order do what they
should."""
import numpy as np
import pytest
import torch

from kit.fast.attention import attention, BLOCK
from kit.fast.ragged import for_each_clip
from resampler import PerceiverResampler

JUNK = 1e4  # what padding holds in these tests: nothing may depend on it


def resampler(seed=0, **options):
    """A float64 resampler in which every parameter is random and large, so that none of them can hide."""
    torch.manual_seed(seed)
    options = dict(dim=8, n_latent=3, n_layer=2, n_head=2, n_frame=4) | options
    model = PerceiverResampler(**options).double()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.6)
    return model


def first_frames(*rows):
    """Numbers of real frames, (B,N) -> frame_mask (B,N,F)"""
    count = torch.tensor(rows)
    return torch.arange(int(count.max())) < count.unsqueeze(-1)


def interpolated(embedding, n):
    """n frames over a table of embeddings (n_trained,D): as they are, or stretched over a longer clip, one
    dimension at a time."""
    n_trained = len(embedding)
    if n <= n_trained:
        return embedding[:n]
    moments = [f * (n_trained - 1) / (n - 1) for f in range(n)]
    return np.stack([np.interp(moments, range(n_trained), column) for column in embedding.T], axis=1)


# float64 and float32: of the largest, some 40 roundings of the sums. bfloat16: of each, what it is rounded
# to at the end.
@pytest.mark.parametrize('dtype, rounding',
                         [(torch.float64, 40 * 2 ** -52), (torch.float32, 40 * 2 ** -23),
                          (torch.bfloat16, 2 ** -8)])
@pytest.mark.parametrize('kind', ['all', 'causal', 'bool', 'added', 'causal bool', 'causal added'])
def test_attention_rounds_no_more_than_its_output(dtype, rounding, kind, monkeypatch):
    """softmax(q kᵀ / √d) v in float64, and its gradient, are met as nearly as dtype can say them: also in
    bfloat16, under autocast; and where a causal mask is computed in blocks, of two queries here."""
    torch.manual_seed(0)
    monkeypatch.setitem(BLOCK, 'cpu', 2)
    q, k, v = (torch.randn(2, 3, 5, 4, dtype=dtype, requires_grad=True) for _ in range(3))
    some = torch.rand(2, 1, 5, 5) < 0.6
    seen = {'all': torch.ones(5, 5), 'causal': torch.ones(5, 5)}.get(kind, some).bool()
    seen = seen | torch.eye(5).bool()
    if 'causal' in kind:
        seen = seen.tril()
    added = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, -torch.inf)
    mask = {'bool': seen, 'added': added}.get(kind.split()[-1])
    with torch.autocast('cpu', torch.bfloat16, enabled=dtype is torch.bfloat16):
        out = attention(q, k, v, mask, causal='causal' in kind)
    assert out.dtype == dtype
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    score = (exact[0] @ exact[1].transpose(-1, -2) / 4 ** 0.5).masked_fill(~seen, -torch.inf)
    expected = score.softmax(-1) @ exact[2]

    def near(x, e):
        largest = max(1.0, e.abs().max().item())
        torch.testing.assert_close(x.double(), e, rtol=rounding, atol=rounding / 8 * largest)
    near(out, expected)
    weight = torch.randn(out.shape).to(dtype)  # what comes back is rounded, too
    gradients = torch.autograd.grad(out, (q, k, v), weight)
    for g, e in zip(gradients, torch.autograd.grad(expected, exact, weight.double())):
        near(g, e)


def slow_resampler(model, media, frame_mask):
    """Figure 5 of the paper in loops, float64: one clip, one latent, one head at a time. Padded frames are
    left out, not masked."""
    w = {name: p.detach().numpy() for name, p in model.named_parameters()}

    def norm(x, name):
        return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * w[name + '.weight'] + w[name + '.bias']

    out = np.zeros((*media.shape[:2], *w['latents'].shape))
    for b, n in np.ndindex(*media.shape[:2]):
        clip = media[b, n][frame_mask[b, n]].numpy()                         # (F,S,D_in), real frames only
        x_f = []
        for frame, time in zip(clip, interpolated(w['time_embedding'], len(clip))):
            x_f += [(w['project.weight'] @ patch if 'project.weight' in w else patch) + time
                    for patch in frame]
        x = list(w['latents'])
        for i, layer in enumerate(model.layers):
            name, d = f'layers.{i}.', layer.head_dim
            w_k, w_v = np.split(w[name + 'to_kv.weight'], 2)
            latents = [norm(z, name + 'norm_latents') for z in x]
            source = [norm(z, name + 'norm_media') for z in x_f] + latents
            attended = []
            for z in latents:
                heads = []
                for h in range(layer.n_head):
                    rows = slice(h * d, (h + 1) * d)
                    q = w[name + 'to_q.weight'][rows] @ z
                    weight = np.exp([q @ (w_k[rows] @ s) / np.sqrt(d) for s in source])
                    heads.append(sum(p * (w_v[rows] @ s) for p, s in zip(weight / weight.sum(), source)))
                attended.append(w[name + 'to_out.weight'] @ np.concatenate(heads))
            x = [z + a for z, a in zip(x, attended)]
            for r, z in enumerate(x):
                hidden = w[name + 'feed_forward.up.weight'] @ norm(z, name + 'feed_forward.norm')
                hidden = np.maximum(hidden, 0) ** 2
                x[r] = z + w[name + 'feed_forward.down.weight'] @ hidden
        out[b, n] = [norm(z, 'norm') for z in x]
    return torch.from_numpy(out)


# ---------------------------------------------------------------------------------------------
# The equations


@pytest.mark.parametrize('options',
                         [{}, dict(dim_media=6), dict(head_dim=5, n_layer=1),
                          dict(dim_media=12, head_dim=3, n_head=3)])
def test_equals_the_slow_loop(options):
    """Clips of 1 to 6 frames, some longer than training's 4: the latents among the keys, the squared ReLU,
    every norm."""
    model = resampler(**options)
    mask = first_frames([1, 3], [6, 4])
    media = torch.randn(2, 2, 6, 2, options.get('dim_media', 8), dtype=torch.float64)
    torch.testing.assert_close(model(media, mask), slow_resampler(model, media, mask), rtol=1e-5, atol=1e-5)
    short = torch.ones(2, 2, 3, dtype=torch.bool)  # no stretched frame, no mask: equal to rounding
    torch.testing.assert_close(model(media[:, :, :3]), slow_resampler(model, media[:, :, :3], short),
                               rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('options', [{}, dict(dim_media=6)])
@pytest.mark.parametrize('frozen', [True, False])
def test_gradients_are_those_of_the_slow_loop(options, frozen):
    """Of all weights, the moments among them, by differences of the slow loop; and of the features, where
    the encoder is trained too."""
    model = resampler(n_layer=1, **options)
    mask = first_frames([1, 3], [6, 3])
    media = torch.randn(2, 2, 6, 2, options.get('dim_media', 8), dtype=torch.float64,
                        requires_grad=not frozen)
    weight = torch.randn(2, 2, 3, 8, dtype=torch.float64)
    (model(media, mask) * weight).sum().backward()
    assert (media.grad is None) == frozen
    for name, p in (*model.named_parameters(), *([] if frozen else [('media', media)])):
        direction, step = torch.randn_like(p), 1e-4
        with torch.no_grad():
            value = []
            for sign in (1, -2, 1):
                p.add_(direction, alpha=sign * step)
                value.append((slow_resampler(model, media, mask) * weight).sum().item())
        slope = (value[0] - value[1]) / (2 * step)
        assert (p.grad * direction).sum().item() == pytest.approx(slope, rel=1e-3, abs=1e-4), name


def test_the_papers_parameter_count():
    """194 M (Table 5) comes out with heads of 128 and a projection from the NFNet's 3072, not with the 96
    of Table 4."""
    def millions(head_dim):
        with torch.device('meta'):
            model = PerceiverResampler(1536, 3072, n_latent=64, n_layer=6, n_head=16, head_dim=head_dim)
        return sum(p.numel() for p in model.parameters()) / 1e6
    assert millions(128) == pytest.approx(194, rel=0.01)
    assert millions(None) < 180  # D / n_head = 96


def test_projects_only_where_widths_differ():
    """Same width: the features go in as they are. Another width: through one matrix, without a bias."""
    assert not [name for name in resampler().state_dict() if name.startswith('project')]
    assert not [name for name in resampler(dim_media=8).state_dict() if name.startswith('project')]
    narrow = resampler(dim_media=5)
    assert [name for name in narrow.state_dict() if name.startswith('project')] == ['project.weight']
    plain = resampler()
    plain.load_state_dict({name: p for name, p in narrow.state_dict().items() if name != 'project.weight'})
    media = torch.randn(1, 2, 3, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(narrow(media), plain(media @ narrow.project.weight.T))


# ---------------------------------------------------------------------------------------------
# Time


@pytest.mark.parametrize('n_frame', [1, 2, 8])
def test_first_and_last_frame_are_exact_at_any_length(n_frame):
    """However long the clip, it starts at the first learned moment and ends at the last, to the bit, and
    never runs past it."""
    model = PerceiverResampler(4, n_latent=1, n_layer=1, n_head=1, n_frame=n_frame)
    learned = model.time_embedding
    for n in range(n_frame + 1, 300):
        time = model.time(n)
        assert torch.equal(time[0], learned[0]) and torch.equal(time[-1], learned[-1]), f'{n} frames'


def test_thirty_frames_over_eight_learned_ones():
    """The paper trains on 8 frames and reads 30 by interpolating (appendix A.1.1): against np.interp, also
    through the whole module."""
    model = resampler(n_frame=8)
    time = interpolated(model.time_embedding.detach().numpy(), 30)
    # A moment of up to 7 is float32, and so off by 7 ε; the embeddings of two moments differ by up to 4.
    np.testing.assert_allclose(model.time(30).detach(), time, rtol=0, atol=7 * 4 * 2 ** -23)
    # 70/29 = 2 + 12/29
    np.testing.assert_allclose(time[10],
                               (model.time_embedding[2] * 17 + model.time_embedding[3] * 12).detach() / 29)

    media = torch.randn(1, 1, 30, 2, 8, dtype=torch.float64)
    out = model(media)
    with torch.no_grad():
        model.time_embedding.zero_()
    torch.testing.assert_close(out, model(media + torch.from_numpy(time)[:, None]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('n_real', [1, 2, 4])
def test_short_clips_use_the_first_embeddings_only(n_real):
    """A picture uses the very first moment alone, a clip of n frames the first n: nothing is stretched
    below training's length."""
    model = resampler(n_frame=4)
    model(torch.randn(2, 2, n_real, 3, 8, dtype=torch.float64)).square().sum().backward()
    used = model.time_embedding.grad.abs().sum(1) > 0
    assert used.tolist() == [f < n_real for f in range(4)]


def test_frame_order_matters_and_place_does_not():
    """Embeddings are per frame, none per position (a trap: added per image, order in time would be lost)."""
    model = resampler()
    media = torch.randn(1, 2, 4, 5, 8, dtype=torch.float64)
    out = model(media)
    torch.testing.assert_close(model(media[:, :, :, torch.randperm(5)]), out, rtol=1e-9, atol=1e-9)
    assert (model(media.flip(2)) - out).abs().amax(dim=(2, 3)).min() > 0.01


# ---------------------------------------------------------------------------------------------
# Padding


def test_padded_frames_have_no_influence():
    """What stands in a frame that is not real changes no bit and gets no gradient."""
    model = resampler()
    mask = first_frames([1, 3], [5, 2])
    media = torch.randn(2, 2, 5, 3, 8, dtype=torch.float64, requires_grad=True)
    out = model(media, mask)
    junk = torch.where(mask[..., None, None], media, JUNK * torch.randn_like(media))
    assert torch.equal(model(junk, mask), out)
    out.square().sum().backward()
    assert torch.equal(media.grad.abs().sum((3, 4)) > 0, mask)


def test_clips_padded_together_equal_the_same_clips_alone():
    """Interpolation too counts a clip's own frames: a neighbour of 30 frames must not stretch the time of
    one with 12."""
    model = resampler(n_frame=8)
    lengths = [[1, 30, 8], [12, 3, 9]]
    media = JUNK * torch.randn(2, 3, 30, 2, 8, dtype=torch.float64)
    clips = {}
    for b, n in np.ndindex(2, 3):
        clips[b, n] = torch.randn(lengths[b][n], 2, 8, dtype=torch.float64)
        media[b, n, :lengths[b][n]] = clips[b, n]
    together = model(media, first_frames(*lengths))
    for (b, n), clip in clips.items():
        torch.testing.assert_close(together[b, n], model(clip[None, None])[0, 0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('n_frame', [1, 3])
def test_padded_images_have_no_influence_on_others(n_frame):
    """A sequence with fewer images is filled up with junk: no NaN comes out of it, and nothing reaches the
    real images."""
    model = resampler()
    media = torch.randn(2, 3, n_frame, 2, 8, dtype=torch.float64)
    alone = [model(media[:1]), model(media[1:, :1])]
    mask = torch.ones(2, 3, n_frame, dtype=torch.bool)
    mask[1, 1:] = False
    media[1, 1:] *= JUNK
    out = model(media, mask)
    assert out.isfinite().all()
    torch.testing.assert_close(out[:1], alone[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(out[1:, :1], alone[1], rtol=1e-9, atol=1e-9)


# ---------------------------------------------------------------------------------------------
# The same, faster


@pytest.mark.parametrize('lengths', [[2, 2, 2], [1, 3, 0, 1, 2], [0, 0], [5]])
def test_clips_of_one_length_together_are_the_same_clips_one_by_one(lengths):
    """kit.fast.ragged, forward and gradients: a function that is not the same for all, of frames in their
    order."""
    torch.manual_seed(0)
    frames = torch.randn(sum(lengths), 4, 6, dtype=torch.float64, requires_grad=True)
    empty = torch.full((2, 6), 7.0, dtype=torch.float64)

    def function(clips):  # (m,F,S,D) -> (m,2,D)
        moment = torch.arange(1.0, 1 + clips.shape[1], dtype=torch.float64)
        return torch.einsum('mfsd,f->md', clips, moment).unsqueeze(1).expand(-1, 2, -1).sin()

    fast = for_each_clip(function, frames, torch.tensor(lengths), empty)
    plain = torch.stack([function(clip.unsqueeze(0))[0] if len(clip) else empty
                         for clip in frames.split(lengths)])
    torch.testing.assert_close(fast, plain, rtol=1e-12, atol=1e-12)
    if sum(lengths):
        toward = torch.randn_like(plain)
        torch.testing.assert_close(*(torch.autograd.grad((y * toward).sum(), frames)[0]
                                     for y in (fast, plain)), rtol=1e-12, atol=1e-12)
