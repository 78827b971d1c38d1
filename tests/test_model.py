"""The whole tower: frozen parts stay as they were, pictures reach their own text and nothing else, and
answers are what a slow loop over the plain forward pass says they are."""
import itertools
import math
import types

import pytest
import torch
import torch.nn.functional as F

from gates import open_gates
from kit import answers
from kit.answers import generate, log_likelihoods, score
from kit.copying import wire_copying
from kit.fast.routing import one_image_per_token
from model import Flamingo, FlamingoConfig, GPT, PRESETS
from rounding import EPS, assert_near, near_log_p
from sample import greedy
from vision import NFNet
from xattn import SEES

PIXELS = 32  # the nano encoder makes a 2x2 grid of it
SMALL = dict(n_vocab=14, bos=12, pad=13, lm_layer=3, lm_dim=16, lm_head=2, n_context=40, xattn_head=2,
             xattn_head_dim=8, resampler_layer=1,
             resampler_dim=24, resampler_head=2, resampler_head_dim=8, n_latent=3, n_frame=3,
             image_size=PIXELS, dim_embed=8)


def flamingo(seed=0, opened=True, eoc=0.8, **changes):
    """A small Flamingo. `opened` draws gates that are not 0, or no picture could matter; the language model
    is drawn with large weights, or all of its words would be equally likely; `eoc` is how much its row
    stands out: some answers shall end."""
    config = FlamingoConfig(**{**SMALL, **changes})
    torch.manual_seed(seed)
    vision, lm = NFNet(config.vision, config.dim_embed), GPT.from_config(config)
    torch.manual_seed(seed)
    model = Flamingo(config, vision, lm)
    with torch.no_grad():
        for name, p in lm.named_parameters():
            p.copy_(torch.randn_like(p) * 0.3 + ('ln_' in name and name.endswith('weight')))
        model.new_rows.copy_(torch.randn(2, 16) * torch.tensor([[0.4], [eoc]]))
        for layer in model.gated if opened else []:
            open_gates(layer, *(torch.rand(2) * 0.4 + torch.tensor([0.5, 0.3])).tolist())
    return model.eval()


def read(model, *rows):
    """Rows such as '^12#34$#5' (^ <BOS>, # <image>, $ <EOC>, a digit or a, b: that word) -> tokens,
    image_index (B,T), padded on the right, and length (B,): what generate and score call their prompts."""
    ids = {'^': model.config.bos, '#': model.image,
           '$': model.eoc} | {c: i for i, c in enumerate('0123456789ab')}
    tokens = torch.full((len(rows), max(map(len, rows))), model.config.pad)
    for b, row in enumerate(rows):
        tokens[b, :len(row)] = torch.tensor([ids[c] for c in row])
    index = (tokens == model.image).cumsum(1).masked_fill(tokens == model.config.pad, 0)
    return dict(tokens=tokens, image_index=index, length=torch.tensor([len(row) for row in rows]))


def pictures(b, n, f=1, seed=1):
    """(B,N,F,3,H,W) uint8: a colour each, and noise on it. Noise alone would look the same to the encoder
    everywhere."""
    generator = torch.Generator().manual_seed(seed)
    colour, noise = (torch.randint(0, 128, (b, n, f, 3, *size), dtype=torch.uint8, generator=generator)
                     for size in ((1, 1), (PIXELS, PIXELS)))
    return colour + noise


def logits_of(model, prompts, *media, **more):
    with torch.no_grad():
        return model(prompts['tokens'], prompts['image_index'], *media, **more)[0]


def alone(prompts, b):
    """Row b without its padding."""
    n = int(prompts['length'][b])
    return dict(tokens=prompts['tokens'][b:b + 1, :n], image_index=prompts['image_index'][b:b + 1, :n],
                length=prompts['length'][b:b + 1])


# ---------------------------------------------------------------------------------------------
# The language model alone


@pytest.mark.parametrize('qk_norm', [False, True])
def test_gpt_is_the_slow_sum_over_earlier_tokens(qk_norm):
    """One number at a time, in float64, from GPT-2's equations: pre-norm, causal softmax, tanh GELU, tied
    head; or with cosines for scores, each head's times its own e^log_s."""
    torch.manual_seed(0)
    gpt = GPT(n_vocab=11, n_layer=2, dim=8, n_head=2, n_context=7, qk_norm=qk_norm).double()
    with torch.no_grad():
        for p in gpt.parameters():
            p.add_(torch.randn_like(p) * 0.4)
    w = dict(gpt.named_parameters())
    tokens = torch.randint(0, 11, (2, 7))

    def norm(x, name):
        centred = x - x.mean()
        return centred / (centred.square().mean() + 1e-5).sqrt() * w[name + '.weight'] + w[name + '.bias']

    def linear(x, name):
        return w[name + '.weight'] @ x + w[name + '.bias']

    def slow_gelu(x):
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)))

    expected = torch.zeros(2, 7, 11, dtype=torch.float64)
    for b in range(2):
        stream = [w['wte.weight'][tokens[b, t]] + w['wpe.weight'][t] for t in range(7)]
        for layer in range(2):
            qkv = [linear(norm(x, f'h.{layer}.ln_1'), f'h.{layer}.attn.c_attn') for x in stream]
            for t in range(7):
                heads = []
                for h in range(2):
                    at = slice(4 * h, 4 * h + 4)
                    q = qkv[t][:8][at]
                    scores = [q @ qkv[s][8:16][at] / math.sqrt(4) for s in range(t + 1)]
                    if qk_norm:
                        sharp = w[f'h.{layer}.attn.log_s'][h].exp()
                        scores = [sharp * (q @ k) / ((q @ q) * (k @ k)).sqrt()
                                  for k in (qkv[s][8:16][at] for s in range(t + 1))]
                    share = torch.stack(scores).exp()
                    heads.append(sum(share[s] * qkv[s][16:][at] for s in range(t + 1)) / share.sum())
                x = stream[t] + linear(torch.cat(heads), f'h.{layer}.attn.c_proj')
                stream[t] = x + linear(slow_gelu(linear(norm(x, f'h.{layer}.ln_2'), f'h.{layer}.mlp.c_fc')),
                                       f'h.{layer}.mlp.c_proj')
        for t in range(7):
            expected[b, t] = w['wte.weight'] @ norm(stream[t], 'ln_f')
    torch.testing.assert_close(gpt(tokens)[0], expected, rtol=1e-10, atol=1e-10)

    targets = torch.randint(0, 11, (2, 7))
    targets[0, 2:] = -100
    log_p = expected - expected.exp().sum(-1, keepdim=True).log()
    wanted = [-log_p[b, t, targets[b, t]] for b in range(2) for t in range(7) if targets[b, t] != -100]
    loss = (sum(wanted) / len(wanted)).float()  # a loss is float32 whatever the weights are
    torch.testing.assert_close(gpt(tokens, targets)[1], loss)


@pytest.mark.parametrize('qk_norm', [False, True])
def test_a_fresh_language_model_copies(qk_norm):
    """Random tokens that come again and again, in the same order: after the first time two in five are
    right, where chance is one in a thousand."""
    torch.manual_seed(0)
    lm = wire_copying(GPT(1024, 4, 128, 4, 512, qk_norm=qk_norm))
    tokens = torch.stack([torch.randperm(1000)[:12].repeat(5) for _ in range(16)])
    position = torch.arange(16)[:, None] * 12 + torch.arange(tokens.shape[1] - 1)
    logits, _ = lm(tokens[:, :-1], position=position)
    right = logits.argmax(-1) == tokens[:, 1:]
    assert right[:, 12:].float().mean() > 0.4
    assert right[:, :11].float().mean() < 0.02


@pytest.mark.parametrize('qk_norm', [False, True])
def test_a_fresh_language_model_copies_by_two_tokens(qk_norm):
    """Lists in which each token stands twice, before different others: by it alone, half would be right."""
    torch.manual_seed(0)
    lm, right = wire_copying(GPT(1024, 4, 128, 4, 512, qk_norm=qk_norm)), []
    for _ in range(16):
        some = torch.randperm(1000)[:16]
        # a f b g c h …: f again, later, before k
        once = torch.stack([some, some.roll(-5)], 1).flatten()
        tokens = once.repeat(3)
        guess = lm(tokens[None, :-1])[0].argmax(-1)[0]
        right.append((guess == tokens[1:])[len(once) + 1:].float().mean())
    assert torch.stack(right).mean() > 0.6


def test_a_row_may_start_at_a_later_position():
    """As if the table of positions had been moved by as much."""
    torch.manual_seed(0)
    gpt, moved = (GPT(n_vocab=11, n_layer=1, dim=8, n_head=2, n_context=9) for _ in range(2))
    moved.load_state_dict(gpt.state_dict())
    with torch.no_grad():
        moved.wpe.weight.copy_(gpt.wpe.weight.roll(-3, 0))
    tokens, position = torch.randint(0, 11, (2, 5)), torch.tensor([[3], [0]]) + torch.arange(5)
    (found, _), (plain, _), (there, _) = gpt(tokens, position=position), gpt(tokens), moved(tokens)
    torch.testing.assert_close(found, torch.stack([there[0], plain[1]]))
    assert not torch.allclose(found[0], plain[0])


# ---------------------------------------------------------------------------------------------
# With the gates shut: the language model, to the last bit


@pytest.mark.parametrize('attend', ['last', 'all_previous'])
@pytest.mark.parametrize('n_image, n_frame', [(None, 1), (0, 1), (1, 1), (2, 1), (5, 1), (2, 3)])
def test_a_fresh_flamingo_says_exactly_what_its_language_model_says(n_image, n_frame, attend):
    """Whatever it is shown: nothing, fewer pictures than tags, just as many, more, or clips. A word of the
    language model is lent to the tag, which it would not know otherwise."""
    model = flamingo(opened=False, attend=attend)
    with torch.no_grad():
        model.new_rows[0] = model.lm.wte.weight[7]
    prompts = read(model, '^12#345#6', '^#8#901', '^23')
    media = None if n_image is None else pictures(3, n_image, n_frame)
    words = prompts['tokens'].masked_fill(prompts['tokens'] == model.image, 7)
    assert torch.equal(logits_of(model, prompts, media)[..., :14], model.lm(words)[0])


# ---------------------------------------------------------------------------------------------
# With the gates open: who sees what


@pytest.mark.parametrize('attend', ['last', 'all_previous'])
@pytest.mark.parametrize('n_frame', [1, 3])
def test_a_picture_changes_its_text_and_nothing_before_its_tag(attend, n_frame):
    model = flamingo(attend=attend)
    prompts = read(model, '^12#345$#67$8#9ab$')
    tags = (prompts['tokens'][0] == model.image).nonzero().flatten().tolist()
    media, other = pictures(1, 3, n_frame), pictures(1, 3, n_frame, seed=2)
    before = logits_of(model, prompts, media)
    for k, tag in enumerate(tags):
        changed = media.clone()
        changed[:, k] = other[:, k]
        after = logits_of(model, prompts, changed)
        assert torch.equal(after[:, :tag], before[:, :tag])
        # Itself, its own text, and through the LM what follows.
        assert ((after - before).abs().amax(-1)[0, tag:] > 1e-4).all()


def test_one_gated_layer_shows_a_picture_to_its_own_text_only():
    """Up to the next tag, and no further: what follows hears of it through the language model alone."""
    model = flamingo()
    prompts = read(model, '^12#345$#67$8#9ab$')
    y, index = torch.randn(1, prompts['tokens'].shape[1], 16), prompts['image_index']
    media = pictures(1, 3)
    for k in 1, 2, 3:
        changed = media.clone()
        changed[:, k - 1] = pictures(1, 1, seed=2)[:, 0]
        with torch.no_grad():
            one, two = (model.gated[0](y, model.resample(*model.see(m)), index) for m in (media, changed))
        assert torch.equal((one != two).any(-1), index == k)


def test_tags_without_pictures_see_nothing():
    """Three tags, one picture: what the other two lead is as if there were no picture for it at all."""
    model = flamingo()
    prompts = read(model, '^#12#34#56')
    y = torch.randn(1, 10, 16)
    blind = prompts['image_index'].clamp(max=1) * (prompts['image_index'] == 1)
    with torch.no_grad():
        seen = model.resample(*model.see(pictures(1, 1)))
        assert torch.equal(model.gated[0](y, seen, prompts['image_index']), model.gated[0](y, seen, blind))
        nothing = model.gated[0](y, None, prompts['image_index'])
        assert torch.equal(model.gated[0](y, seen, prompts['image_index'])[:, 4:], nothing[:, 4:])


@pytest.mark.parametrize('attend', ['last', 'all_previous'])
def test_padding_has_no_influence(attend):
    """Garbage where tokens, pictures and frames are only padding: every real logit stays the same, and is
    what the row says when it is alone, with no padding at all."""
    model = flamingo(attend=attend).double()
    prompts = read(model, '^12#345$#67$8#9', '^#12', '^345$6')
    real = torch.zeros(3, 3, 3, dtype=torch.bool)
    for b, frames in enumerate([(1, 3, 2), (2,), ()]):
        for n, f in enumerate(frames):
            real[b, n, :f] = True
    media = pictures(3, 3, 3)
    logits = logits_of(model, prompts, media, frame_mask=real)

    garbage = media.clone()
    garbage[~real] = pictures(1, int((~real).sum()), seed=3)[0, :, 0]
    noisy = dict(prompts, tokens=prompts['tokens'].clone(), image_index=prompts['image_index'].clone())
    for b, n in enumerate(prompts['length']):
        noisy['tokens'][b, n:] = torch.randint(0, 12, noisy['tokens'][b, n:].shape)
    again = logits_of(model, noisy, garbage, frame_mask=real)

    for b, n in enumerate(prompts['length'].tolist()):
        torch.testing.assert_close(again[b, :n], logits[b, :n], rtol=1e-9, atol=1e-9)
        n_image, n_frame = int(real[b].any(-1).sum()), int(real[b].sum(-1).max())
        own = media[b:b + 1, :n_image, :n_frame], real[b:b + 1, :n_image, :n_frame]
        shown = dict(media=own[0], frame_mask=own[1]) if n_image else {}
        single = logits_of(model, alone(prompts, b), **shown)
        torch.testing.assert_close(logits[b, :n], single[0], rtol=1e-9, atol=1e-9)


def test_documents_that_share_a_row_do_not_see_each_other():
    """'^1#23$#45' and '^12#34' in one row say what each says alone."""
    model = flamingo().double()
    media, texts = pictures(1, 3), ('^1#23$#45', '^12#34')
    prompts = read(model, texts[0] + texts[1])
    prompts['image_index'][:, 9:12] = 0  # before its own picture the second sees none
    one = logits_of(model, prompts, media, position=torch.tensor([[*range(9), *range(6)]]),
                    sequence=torch.tensor([[1] * 9 + [2] * 6]))[0]
    for part, text, shown in ((one[:9], texts[0], media[:, :2]), (one[9:], texts[1], media[:, 2:])):
        torch.testing.assert_close(part, logits_of(model, read(model, text), shown)[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('attend', [*SEES, 'last_two'])
def test_rows_are_shared_only_where_nothing_leaks(monkeypatch, attend):
    """Two documents in one row, their pictures counted on: does another picture in the first change a word
    of the second?"""
    monkeypatch.setitem(SEES, 'last_two', lambda image, index: (image == index) | (image == index - 1))
    model, media = flamingo(attend=attend), pictures(1, 3)
    prompts = read(model, '^1#23$#45' + '^12#34')
    prompts['image_index'][:, 9:12] = 0
    changed = media.clone()
    changed[:, :2] = pictures(1, 2, seed=2)
    row = dict(position=torch.tensor([[*range(9), *range(6)]]), sequence=torch.tensor([[1] * 9 + [2] * 6]))
    before, after = (logits_of(model, prompts, m, **row)[0, 9:] for m in (media, changed))
    assert torch.equal(before, after) == one_image_per_token(SEES[attend]) == (attend == 'last')


def test_a_page_may_stand_anywhere_in_the_context():
    """As if the table of positions had been moved by as much."""
    model, media = flamingo().double(), pictures(1, 2)
    prompts = read(model, '^1#23$#45')
    later = logits_of(model, prompts, media, position=torch.arange(5, 14)[None])
    model.lm.wpe.weight.data = model.lm.wpe.weight.data.roll(-5, 0)
    torch.testing.assert_close(later, logits_of(model, prompts, media), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('attend', ['last', 'all_previous'])
def test_a_row_does_not_depend_on_its_neighbours(attend):
    """The same row beside others, in another place, with other pictures around it."""
    model = flamingo(attend=attend).double()
    media, others = pictures(3, 2), pictures(3, 2, seed=2)
    others[2] = media[0]
    one = logits_of(model, read(model, '^1#23$#45', '^#12#3456', '^1234567'), media)[0]
    two = logits_of(model, read(model, '^1234#56', '^12345678', '^1#23$#45'), others)[2]
    torch.testing.assert_close(one[:9], two[:9], rtol=1e-9, atol=1e-9)


def test_kept_features_say_the_same_as_their_pixels():
    """Training hands over the frozen encoder's features instead of pictures."""
    model = flamingo()
    prompts = read(model, '^#12$#34', '^1#2')
    media = pictures(2, 2, 2)
    real = torch.tensor([[[True, True], [True, False]], [[True, False], [False, False]]])
    with torch.no_grad():
        features, _ = model.see(media, real)
    assert len(features) == real.sum()                                             # padding is not there
    for frame, grid in zip(media[real], features):
        assert_near(grid, model.vision(model.vision.normalise(frame[None]))[0], 1000)
    logits = logits_of(model, prompts, media, frame_mask=real)
    assert torch.equal(logits_of(model, prompts, features=features, frame_mask=real), logits)
    # Floats are taken as normalised.
    assert torch.equal(logits_of(model, prompts, model.vision.normalise(media), frame_mask=real), logits)


def test_gated_layers_stand_before_every_kth_block():
    """xattn_every=2 over three blocks: gates before blocks 0 and 2. With only the second one open, pictures
    reach what goes into block 2 and no block before it."""
    model = flamingo(opened=False, xattn_every=2)
    assert len(model.gated) == 2
    prompts, streams = read(model, '^#12'), []
    for block in model.lm.h:
        block.register_forward_pre_hook(lambda _, inputs: streams.append(inputs[0]))

    def reached(opened):
        with torch.no_grad():
            for i, layer in enumerate(model.gated):
                open_gates(layer, 0.8 * (i == opened), 0.0)
        streams.clear()
        logits_of(model, prompts, pictures(1, 1))
        logits_of(model, prompts, pictures(1, 1, seed=2))
        return [not torch.equal(one, two) for one, two in zip(streams[:3], streams[3:])]

    assert reached(0) == [True, True, True]
    assert reached(1) == [False, False, True]


# ---------------------------------------------------------------------------------------------
# Learning


def batch(model):
    prompts = read(model, '^#12$#345$', '^12#67$')
    targets = prompts['tokens'].roll(-1, 1)
    targets[(targets >= 12) & (targets != model.eoc)] = -100
    targets[:, -1] = -100
    return prompts['tokens'], prompts['image_index'], pictures(2, 2, 2), targets


def test_the_loss_is_the_mean_over_what_there_is_to_learn():
    model = flamingo().double()
    tokens, index, media, targets = batch(model)
    logits = logits_of(model, dict(tokens=tokens, image_index=index), media)
    terms = []
    for b, t in itertools.product(range(tokens.shape[0]), range(tokens.shape[1])):
        if targets[b, t] != -100:
            row = logits[b, t]
            terms.append(row.exp().sum().log() - row[targets[b, t]])
    assert len(terms) == 12  # words and <EOC>s, not <BOS>, <image> or padding
    # The loss is a float32 mean of 12.
    torch.testing.assert_close(model(tokens, index, media, targets)[1], sum(terms) / len(terms),
                               check_dtype=False, rtol=16 * EPS, atol=0)


def test_nothing_to_learn_is_a_loss_of_zero_and_no_nan():
    """A window may hold <image> tags and given text only. A mean over nothing would be NaN, and ruin the
    run."""
    model = flamingo()
    tokens, index, media, targets = batch(model)
    _, loss = model(tokens, index, media, torch.full_like(targets, -100))
    loss.backward()
    assert loss.item() == 0
    for p in model.parameters():
        assert p.grad is None or (p.grad == 0).all()


def test_training_moves_what_is_trained_and_not_one_bit_of_what_is_frozen():
    """From shut gates, with weight decay, over several steps. Every trained parameter gets somewhere: the
    rows of <image> and <EOC> among them, which others left at random."""
    model = flamingo(opened=False).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2,
                                  weight_decay=0.1)
    tokens, index, media, targets = batch(model)
    for _ in range(4):
        optimizer.zero_grad()
        model(tokens, index, media, targets)[1].backward()
        optimizer.step()
    for name, p in model.named_parameters():
        if name.startswith(('lm.', 'vision.')):
            assert torch.equal(p, before[name]) and p.grad is None, name
        else:
            assert not torch.equal(p, before[name]) and p.grad.abs().sum() > 0, name
    assert all(torch.equal(b, buffers[name]) for name, b in model.named_buffers())
    assert all(not torch.equal(p, q) for p, q in zip(model.new_rows, before['new_rows']))


def test_training_from_shut_gates_learns_to_tell_pictures_apart():
    """The same prompt under two pictures, with two answers: only the picture can say which."""
    model = flamingo(1, opened=False).train()
    prompts = read(model, '^#0', '^#0')
    features, targets = grids(model, 2, 1), torch.tensor([[-100, -100, 3], [-100, -100, 5]])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = model(prompts['tokens'], prompts['image_index'], None, targets, features=features)[1]
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5 * math.log(2)  # without the picture, log 2 is the best there is


def test_frozen_parts_stay_in_eval_mode():
    """`model.train()` would otherwise switch dropout and stochastic depth on in what must not change."""
    with torch.device('meta'):
        model = flamingo(opened=False, vision='F0').train()
    assert not any(m.training for part in (model.lm, model.vision) for m in part.modules())
    assert all(m.training for part in (model.resampler, model.gated) for m in part.modules())
    model.freeze(vision=False)
    assert not any(m.training for m in model.lm.modules())
    assert all(m.training for m in model.vision.modules())
    assert not any(m.training for m in model.eval().modules())
    model.freeze().train()
    assert not any(m.training for m in model.vision.modules())


def test_an_unfrozen_encoder_learns_through_padding_too():
    """freeze(vision=False) is for fine-tuning: its gradient is that of the same pictures without padding
    among them."""
    model = flamingo().double()
    model.freeze(vision=False)
    prompts = read(model, '^#12$#34')
    targets = torch.tensor([[-100, 1, 2, -100, -100, 3, 4, -100]])
    media = pictures(1, 2, 2)
    real = torch.tensor([[[True, False], [True, False]]])

    def gradients(media, frame_mask):
        model.zero_grad()
        model(prompts['tokens'], prompts['image_index'], media, targets, frame_mask=frame_mask)[1].backward()
        return {name: p.grad for name, p in model.vision.named_parameters() if p.grad is not None}

    plain, padded = gradients(media[:, :, :1], None), gradients(media, real)
    assert {'stem.0.weight', 'blocks.2.shortcut.weight', 'final_conv.weight'} <= plain.keys() == padded.keys()
    assert plain['stem.0.weight'].abs().max() > 1e-8
    for name, grad in plain.items():
        torch.testing.assert_close(padded[name], grad, rtol=1e-7, atol=1e-10)
    assert all(p.grad is None for p in model.lm.parameters())


# ---------------------------------------------------------------------------------------------
# Answers, against a loop that reads everything again for each word

PROMPTS = ('^#12$#34$#5', '^12#34', '^#1', '^1234')  # different lengths, 3, 1, 1 and 0 pictures
ROW_IMAGES = (3, 1, 1, 0)


def grids(model, *shape):
    """Features (B,N,F,S,D_v) of `pictures` of this shape."""
    media = pictures(*shape)
    features, frame_mask = model.see(media)
    assert frame_mask.all()
    return features.detach().unflatten(0, media.shape[:3])


def shown_to(b, **seen):
    """What row b sees of media, features and frame_mask, without padding."""
    return {name: value[b:b + 1, :ROW_IMAGES[b]] for name, value in seen.items()} if ROW_IMAGES[b] else {}


def next_log_p(model, prompt, words, shown, allowed=True):
    """log p of the next word (V+2,), after one prompt and the answer so far; of what an answer may hold, or
    of all."""
    tokens = torch.cat([prompt['tokens'], torch.tensor([words], dtype=torch.long)], 1)
    logits = logits_of(model, dict(tokens=tokens, image_index=(tokens == model.image).cumsum(1)),
                       **shown)[0, -1]
    if allowed:
        logits[[model.image, model.config.bos, model.config.pad]] = -torch.inf
    return F.log_softmax(logits, -1)


def slow_greedy(model, prompt, n_new, shown):
    words, total = [], 0.0
    for _ in range(n_new):
        best, word = next_log_p(model, prompt, words, shown).max(-1)
        total += best.item()
        if word == model.eoc:
            break
        words.append(word.item())
    return words, total


def slow_beam(model, prompt, n_new, shown, k):
    """Beam search over plain Python lists: (words, log p, finished)."""
    beams = [([], 0.0, False)]
    for _ in range(n_new):
        longer = [beam for beam in beams if beam[2]]
        for words, total, finished in beams:
            if not finished:
                log_p = next_log_p(model, prompt, words, shown)
                longer += [(words + ([] if w == model.eoc else [w]), total + log_p[w].item(), w == model.eoc)
                           for w in range(len(log_p)) if log_p[w] > -torch.inf]
        beams = sorted(longer, key=lambda beam: -beam[1])[:k]
    return beams[0][:2]


def assert_answers(found, wanted):
    assert [words for words, _ in found] == [words for words, _ in wanted]
    for (words, p), (_, expected) in zip(found, wanted):
        assert p == near_log_p(expected, len(words) + 1)


@pytest.mark.parametrize('attend, xattn_every, qk_norm', [
    ('last', 1, False), ('last', 1, True), ('last', 2, False), ('all_previous', 1, False)])
@pytest.mark.parametrize('shown', [True, False])
def test_greedy_answers_are_those_of_the_plain_forward_pass(attend, xattn_every, qk_norm, shown):
    """Prompts of different lengths and numbers of pictures in one batch, with everything cached; and text
    alone."""
    stopped = set()
    for seed in range(3):
        model = flamingo(seed, attend=attend, xattn_every=xattn_every, lm_qk_norm=qk_norm)
        prompts, seen = read(model, *PROMPTS), dict(media=pictures(4, 3)) if shown else {}
        wanted = [slow_greedy(model, alone(prompts, b), 6, shown_to(b, **seen)) for b in range(4)]
        assert_answers(generate(model, **prompts, max_new_tokens=6, beam_size=1, **seen), wanted)
        stopped |= {len(words) for words, _ in wanted}
    assert len(stopped) > 2  # some stopped by themselves, at different places, beside others that went on


def test_answers_about_clips_of_different_lengths():
    for seed in range(3):
        model = flamingo(seed)
        prompts, n_frame = read(model, *PROMPTS), torch.tensor([[1, 3, 2], [3, 0, 0], [2, 0, 0], [0, 0, 0]])
        seen = dict(media=pictures(4, 3, 3), frame_mask=torch.arange(3) < n_frame.unsqueeze(-1))
        wanted = [slow_greedy(model, alone(prompts, b), 5, shown_to(b, **seen)) for b in range(4)]
        assert_answers(generate(model, **prompts, max_new_tokens=5, beam_size=1, **seen), wanted)


def test_the_picture_decides_the_answer():
    """Otherwise all of the above could agree on never having looked. It always decides how likely the words
    are, and of some models, random as they are, which words."""
    different = []
    for seed in range(4):
        model = flamingo(seed)
        prompts = read(model, *['^12#34'] * 6)
        answers = generate(model, **prompts, max_new_tokens=6, beam_size=1, media=pictures(6, 1))
        different.append(len({str(words) for words, _ in answers}))
        assert len({round(p, 4) for _, p in answers}) == 6
    assert max(different) > 1


@pytest.mark.parametrize('attend', [*SEES, 'last_two'])
def test_the_ten_lines_say_the_same(monkeypatch, attend):
    """`greedy`, which reads all again for every word, and `generate`, which keeps of the pictures those
    that the last word sees: whichever those are."""
    monkeypatch.setitem(SEES, 'last_two', lambda image, index: (image == index) | (image == index - 1))
    model = flamingo(1, attend=attend)
    prompts, media = read(model, *PROMPTS, '^#1#2#3'), pictures(5, 3)
    found = generate(model, **prompts, max_new_tokens=6, beam_size=1, media=media)
    for b, (words, _) in enumerate(found):
        one, visual = alone(prompts, b), model.resample(*model.see(media[b:b + 1]))
        assert greedy(model, one['tokens'], one['image_index'], visual, 6) == words
    assert len({str(words) for words, _ in found}) > 1


def test_a_score_is_the_sum_of_the_log_likelihoods_of_its_words():
    """`log_likelihoods`, which reads prompt and answer as one text, and `score`, which reads the prompt once
    for all of its answers."""
    model = flamingo(1)
    prompts, media, answers = read(model, *PROMPTS), pictures(4, 3), [[1, 2, 3], [4, 1]]
    for b, found in enumerate(score(model, **prompts, candidates=[answers] * 4, media=media)):
        one, visual = alone(prompts, b), model.resample(*model.see(media[b:b + 1]))
        for ids, total in zip(answers, found):
            tokens = torch.cat([one['tokens'], torch.tensor([ids])], dim=1)
            index = torch.cat([one['image_index'], one['image_index'][:, -1:].expand(1, len(ids))], dim=1)
            of_words = log_likelihoods(model, tokens, index, visual)[0, -len(ids):]
            assert total == pytest.approx(of_words.sum().item(), rel=1e-4)


@pytest.mark.parametrize('options', [dict(beam_size=1), dict(beam_size=3), dict(temperature=1.0, top_k=1)])
def test_near_the_contexts_end_an_answer_is_that_of_its_own_prompt(options):
    """A prompt with room for two words beside others with room for more: each stops at its own end, and
    none sooner."""
    model = lean(flamingo(n_context=10), eoc=-9)
    prompts = read(model, '^1#2', '^12345678', '^123456789', '^#1234')
    media = pictures(4, 1)
    found = generate(model, **prompts, max_new_tokens=5, media=media, **options)
    assert [len(words) for words, _ in found] == [5, 2, 1, 5]
    for b in range(4):
        [(words, log_p)] = generate(model, **alone(prompts, b), max_new_tokens=5, media=media[b:b + 1],
                                    **options)
        assert words == found[b][0] and log_p == near_log_p(found[b][1], len(words) + 1)


def test_near_the_contexts_end_a_score_is_that_of_its_own_prompt():
    """One's long prompt and another's long answers fit the context each by itself, if not together."""
    model = flamingo(n_context=10)
    prompts, media = read(model, '^1#2', '^123456789', '^#12345'), pictures(3, 1)
    candidates = [[[1, 2, 3, 4, 5, 6], [7]], [[3], [4]], [[1, 2, 3], [5, 6, 7, 8]]]
    found = score(model, **prompts, candidates=candidates, media=media)
    for b in range(3):
        one = score(model, **alone(prompts, b), candidates=[candidates[b]], media=media[b:b + 1])[0]
        assert one == near_log_p(found[b], n_word=6)
    with pytest.raises(ValueError, match=r'\b11\b.*\b10\b'):
        score(model, **prompts, candidates=[[[1]], [[1, 2]], [[1, 2, 3, 4, 5]]], media=media)


@pytest.mark.parametrize('shown', [True, False])
def test_a_wide_beam_finds_the_best_of_all_answers(shown):
    """Three words and <EOC>, three steps: 40 possible answers. Of two steps there are 13: a beam of 13
    drops nothing."""
    for seed in range(4):
        model = flamingo(seed, n_vocab=5, bos=3, pad=4)
        prompts = read(model, '^#12$#01$#2', '^12#01', '^#1', '^120')
        seen = dict(features=grids(model, 4, 3)) if shown else {}
        wanted = []
        for b in range(4):
            prompt, every = alone(prompts, b), []
            table = {(): next_log_p(model, prompt, [], shown_to(b, **seen))}
            for n in 1, 2:
                table |= {words: next_log_p(model, prompt, list(words), shown_to(b, **seen))
                          for words in itertools.product(range(3), repeat=n)}
            for n in 0, 1, 2, 3:
                for words in itertools.product(range(3), repeat=n):
                    total = sum(table[words[:i]][w].item() for i, w in enumerate(words))
                    every.append((list(words), total + (table[words][model.eoc].item() if n < 3 else 0.0)))
            assert len(every) == 40 and sum(math.exp(p) for _, p in every) == near_log_p(1, 3)  # d eᵖ = eᵖ dp
            wanted.append(max(every, key=lambda answer: answer[1]))
        assert_answers(generate(model, **prompts, max_new_tokens=3, beam_size=13, **seen), wanted)


@pytest.mark.parametrize('k', [1, 2, 3])
def test_a_narrow_beam_is_a_beam(k):
    """Against a search over plain lists, where most answers are dropped on the way, and the best one is
    often not the one that led before. A beam of one is greedy."""
    lengths, overtaken = set(), 0
    for seed in range(6):
        model = flamingo(seed, eoc=0.2)
        prompts, seen = read(model, *PROMPTS), dict(features=grids(model, 4, 3))
        wanted = [slow_beam(model, alone(prompts, b), 6, shown_to(b, **seen), k) for b in range(4)]
        assert_answers(generate(model, **prompts, max_new_tokens=6, beam_size=k, **seen), wanted)
        greedy = [slow_greedy(model, alone(prompts, b), 6, shown_to(b, **seen)) for b in range(4)]
        overtaken += sum(a[0] != b[0] for a, b in zip(greedy, wanted))
        lengths |= {len(words) for words, _ in wanted}
    assert len(lengths) > 1 and (overtaken == 0 if k == 1 else overtaken > 1)


def test_a_finished_answer_takes_its_end_with_it_when_beams_change_places(monkeypatch):
    """By hand, two beams, and a model for which only the last word counts. Step 1 leaves `0` (.68) and the
    empty answer, which has ended (.25). Step 2 drops that one: `01` (.34) and `02` (.306) are both better,
    and neither has ended. Whoever still takes the second place for ended keeps `02` at .306; in truth `02`
    goes on to `021` (.306 · .95 = .2907), while `01` falls."""
    model = flamingo()
    table = {None: {0: .68, 'end': .25, 3: .07}, 0: {1: .5, 2: .45, 3: .05}, 1: {3: .5, 4: .5},
             2: {1: .95, 'end': .05}}

    def logits(word):
        row = torch.full((16,), 1e-9)
        for next_word, p in table[word].items():
            row[model.eoc if next_word == 'end' else next_word] = p
        return row.log()

    cache = types.SimpleNamespace(visual=None, repeat=lambda rows: None, reorder=lambda rows: None)
    monkeypatch.setattr(answers, 'prefill',
                        lambda *_, **__: (cache, logits(None)[None], torch.zeros(1, 1, dtype=torch.long)))
    monkeypatch.setattr(answers, 'read', lambda model, cache, tokens, index: tokens[:, :, None])
    monkeypatch.setattr(model, 'head',
                        lambda words: torch.stack([logits(w if w in table else 0)
                                                   for w in words.flatten().tolist()]))
    [(words, log_p)] = generate(model, **read(model, '^1'), max_new_tokens=3, beam_size=2)
    assert words == [0, 2, 1] and log_p == pytest.approx(math.log(.68 * .45 * .95), abs=1e-5)


def lean(model, **strength):
    """Make some words likely everywhere: the last norm's offset says so, and their rows listen to it."""
    with torch.no_grad():
        direction = F.normalize(torch.randn(16), dim=0)
        model.lm.ln_f.bias.copy_(direction * 5)
        rows = {'image': model.new_rows[0], 'eoc': model.new_rows[1], 'bos': model.lm.wte.weight[12],
                'pad': model.lm.wte.weight[13]}
        for name, much in strength.items():
            rows[name].copy_(direction * much)
    return model


@pytest.mark.parametrize('options',
                         [dict(beam_size=1), dict(beam_size=3), dict(temperature=1.0),
                          dict(temperature=1.0, top_k=5)])
def test_answers_end_at_eoc_and_hold_no_tag_no_new_document_and_no_padding(options):
    """The four are all but certain here. <EOC> ends the answer at once, and is not part of it; the others
    never come."""
    generator = torch.Generator().manual_seed(0)
    model = lean(flamingo(), image=9, bos=9, pad=9, eoc=8)
    prompts, media = read(model, *PROMPTS), pictures(4, 3)
    assert (logits_of(model, prompts, media).argmax(-1) >= 12).all()
    steps = []
    model.lm.h[0].register_forward_hook(lambda *_: steps.append(1))
    answers = generate(model, **prompts, max_new_tokens=8, media=media, generator=generator, **options)
    assert [words for words, _ in answers] == [[]] * 4
    # The prompts are read, and nobody goes on once all beams have ended.
    assert len(steps) <= options.get('beam_size', 1)
    model = lean(model, eoc=-9)
    answers = generate(model, **prompts, max_new_tokens=8, media=media, generator=generator, **options)
    assert all(len(words) == 8 and max(words) < 12 for words, _ in answers)


def test_an_answer_ends_where_the_context_ends():
    """A prompt that leaves room for three tokens has an answer of four at most: the last needs not be read
    again."""
    model = lean(flamingo(n_context=10), eoc=-9)
    answers = generate(model, **read(model, '^123456'), max_new_tokens=8)
    assert len(answers[0][0]) == 4
    assert len(generate(model, **read(model, '^123456789'), max_new_tokens=8, beam_size=1)[0][0]) == 1


def test_what_is_longer_than_the_context_is_refused_with_both_numbers():
    model = flamingo(n_context=6)
    prompts = read(model, '^123456789ab')
    for call in (lambda: generate(model, **prompts), lambda: model(prompts['tokens'], prompts['image_index']),
                 lambda: model.lm(prompts['tokens'])):
        with pytest.raises(ValueError, match=r'\b12\b.*\b6\b'):
            call()
    with pytest.raises(ValueError, match=r'\b8\b.*\b6\b'):  # the last of five words is never read
        score(model, **read(model, '^123'), candidates=[[[1, 2, 3, 4, 5]]])


def test_sampling_repeats_with_its_generator_and_varies_without():
    model = flamingo()
    prompts, media = read(model, *PROMPTS), pictures(4, 3)

    def drawn(seed):
        return generate(model, **prompts, max_new_tokens=6, temperature=1.5, media=media,
                        generator=torch.Generator().manual_seed(seed))

    assert drawn(0) == drawn(0)
    assert len({str([words for words, _ in drawn(seed)]) for seed in range(5)}) > 1
    greedy = generate(model, **prompts, max_new_tokens=6, beam_size=1, media=media)
    assert_answers(generate(model, **prompts, max_new_tokens=6, temperature=1.5, top_k=1, media=media),
                   greedy)


def test_a_sampled_answer_comes_with_the_models_own_log_probability():
    """Whatever the temperature; and after its <EOC> nothing is added, while its neighbours go on."""
    lengths = set()
    for seed in range(4):
        model = flamingo(seed)
        prompts, seen = read(model, *PROMPTS), dict(features=grids(model, 4, 3))
        answers = generate(model, **prompts, max_new_tokens=6, temperature=1.5,
                           generator=torch.Generator().manual_seed(seed), **seen)
        for b, (words, total) in enumerate(answers):
            ended = words + [model.eoc] * (len(words) < 6)
            own = [next_log_p(model, alone(prompts, b), ended[:i], shown_to(b, **seen))[w].item()
                   for i, w in enumerate(ended)]
            assert total == near_log_p(sum(own), len(own))
            lengths.add(len(words))
    assert len(lengths) > 3


@pytest.mark.parametrize('temperature, top_k', [(1.0, 0), (0.6, 0), (2.0, 3)])
def test_samples_come_as_often_as_the_model_says(temperature, top_k):
    """4000 draws of one word against softmax(log p / temperature), among the top k."""
    model = flamingo(2)
    prompt = read(model, '^#12')
    media = pictures(1, 1)
    log_p = next_log_p(model, alone(prompt, 0), [], dict(media=media))
    p = (log_p / temperature).exp()
    if top_k:
        p[log_p.argsort(descending=True)[top_k:]] = 0
    p /= p.sum()
    many = {name: value.expand(4000, *value.shape[1:]) for name, value in prompt.items()}
    features = grids(model, 1, 1).expand(4000, -1, -1, -1, -1)
    answers = generate(model, **many, max_new_tokens=1, temperature=temperature, top_k=top_k,
                       features=features, generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(torch.tensor([words[0] if words else model.eoc for words, _ in answers]),
                            minlength=16) / 4000
    assert (counts[p == 0] == 0).all()
    assert (counts - p).abs().max() < 0.04  # five standard deviations


# ---------------------------------------------------------------------------------------------
# Given answers


@pytest.mark.parametrize('attend', ['last', 'all_previous'])
@pytest.mark.parametrize('shown', [True, False])
def test_score_is_the_sum_of_log_probabilities(attend, shown):
    """One plain forward pass for each candidate: one to five words, with and without <EOC>, different
    numbers of them a prompt."""
    model = flamingo(attend=attend)
    prompts, seen = read(model, *PROMPTS), dict(media=pictures(4, 3)) if shown else {}
    candidates = [[[1, 2, model.eoc], [3], [4, 5, 6, 7, model.eoc]], [[1, 2, model.eoc]],
                  [[8, 9], [8, 9, model.eoc]], [[11, 0, 11, 0], [5]]]
    found = score(model, **prompts, candidates=candidates, **seen)
    for b, answers in enumerate(candidates):
        assert len(found[b]) == len(answers)
        for words, total in zip(answers, found[b]):
            terms = [next_log_p(model, alone(prompts, b), words[:i], shown_to(b, **seen),
                                allowed=False)[w].item() for i, w in enumerate(words)]
            assert total == near_log_p(sum(terms), len(terms))


def test_scores_of_all_answers_of_one_length_add_up_to_one():
    model = flamingo()
    prompts = read(model, '^#12', '^1234#')
    every = [list(words) for words in itertools.product(range(16), repeat=2)]
    for row in score(model, **prompts, candidates=[every, every], media=pictures(2, 1)):
        assert sum(math.exp(p) for p in row) == near_log_p(1, 2)  # d eᵖ = eᵖ dp


def test_an_empty_candidate_is_refused():
    model = flamingo()
    with pytest.raises(ValueError, match='empty'):
        score(model, **read(model, '^1', '^2'), candidates=[[[1], []], [[2]]])


def test_scores_and_answers_survive_half_precision():
    """Under bfloat16 autocast the cache holds bfloat16: the same answers, about as likely."""
    model = flamingo(2)
    prompts, seen = read(model, *PROMPTS), dict(media=pictures(4, 3))
    candidates = [[[1, 2, model.eoc], [3]]] * 4
    exact = torch.tensor(score(model, **prompts, candidates=candidates, **seen))
    with torch.autocast('cpu', torch.bfloat16):
        rough = torch.tensor(score(model, **prompts, candidates=candidates, **seen))
        answers = generate(model, **prompts, max_new_tokens=4, beam_size=1, **seen)
    # bfloat16, ε = 2⁻⁷: some ten roundings of logits of about 8 are 0.3 (they add up like a random walk).
    torch.testing.assert_close(rough, exact, rtol=0.05, atol=0.3)
    for b, (words, total) in enumerate(answers):
        words = words + [model.eoc] * (len(words) < 4)
        own = sum(next_log_p(model, alone(prompts, b), words[:i], shown_to(b, **seen))[w].item()
                  for i, w in enumerate(words))
        assert total == pytest.approx(own, rel=0.05, abs=0.3)


# ---------------------------------------------------------------------------------------------
# Sizes


def millions(module):
    return sum(p.numel() for p in module.parameters()) / 1e6


@pytest.mark.parametrize('name', PRESETS)
def test_presets_are_those_of_the_papers(name):
    """Built without memory. GPT-2 small has 124.4 M parameters; Flamingo's Tables 4 and 5 give 24, 10 and
    12 gated layers, 435 M for the encoder, 194 M for the resampler, and for the 3B model 1.2 B of gated
    layers and a 1.4 B language model."""
    with torch.device('meta'):
        model = Flamingo(FlamingoConfig(**PRESETS[name]))
    if name == 'gpt2':
        assert millions(model.lm) == pytest.approx(124.4, abs=0.05)
    if name.startswith('flamingo'):
        assert len(model.gated) == {'flamingo-3b': 24, 'flamingo-9b': 10, 'flamingo-80b': 12}[name]
        assert millions(model.vision) - millions(model.vision.projection) == pytest.approx(435, abs=1)
        assert millions(model.resampler) == pytest.approx(194, abs=1)
    if name == 'flamingo-3b':
        assert millions(model.gated) == pytest.approx(1200, rel=0.05)
        assert millions(model.lm) == pytest.approx(1400, rel=0.1)


def test_padded_pictures_are_not_resampled():
    """Rows of 1, 3 and no pictures: four go through the resampler, and what comes out stands where they
    stood."""
    model = flamingo()
    mask = torch.tensor([[1, 0, 0], [1, 1, 1], [0, 0, 0]], dtype=torch.bool)[:, :, None]
    features = torch.randn(3, 3, 1, 4, model.vision.dim)
    seen = []
    model.resampler.layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[1])))
    with torch.no_grad():
        visual = model.resample(features, mask)
        for b, n in itertools.product(range(3), range(3)):
            expected = torch.zeros_like(visual[b, n])
            if mask[b, n, 0]:
                expected = model.resample(features[b:b + 1, n:n + 1])[0, 0]
            # 100 roundings of numbers up to 4.
            torch.testing.assert_close(visual[b, n], expected, rtol=0, atol=400 * EPS)
        again = model.resample(features[mask], mask)  # real ones alone, no padding given
        torch.testing.assert_close(again, visual, rtol=0, atol=400 * EPS)
    assert seen[0] == 4
