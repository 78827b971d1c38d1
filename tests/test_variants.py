"""The variants of Tables 3 and 10: each computes what its equation says, starts as the language model's own
where its gates are shut, answers from its cache as from the plain forward, and has the parameters that the
paper prints."""
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from data import Encoded
from gates import open_gate, open_gates
from kit import variants
from kit.answers import score
from kit.measure import accounting
from model import Flamingo, FlamingoConfig, GPT
from rounding import assert_near, EPS
from sample import greedy
from vision import NFNet

SIZES = dict(n_vocab=14, bos=12, pad=13, lm_layer=4, lm_dim=16, lm_head=2, n_context=48, xattn_head=2,
             xattn_head_dim=8, resampler_layer=2, resampler_dim=24, resampler_head=2, resampler_head_dim=8,
             visual_dim=16, n_latent=3, n_frame=3, image_size=32, dim_embed=8)
MODELS = (variants.NoTanhGate, variants.OneInTheMiddle, variants.VanillaXattn, variants.Grafting,
          variants.MLPInstead, variants.TransformerInstead, variants.OneStream)


def build(kind, opened=True, **changes):
    """A small model of this kind in float64, all of its weights random; `opened`: its gates, too."""
    torch.manual_seed(0)
    model = kind(FlamingoConfig(**SIZES | changes)).double().eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not name.startswith('vision.') and p.ndim:
                gain = ('norm' in name or 'ln_' in name) and name.endswith('weight')
                p.copy_(torch.randn_like(p) * 0.3 + gain)
        for layer in model.gated if opened else []:
            if hasattr(layer, 'alpha_d'):
                open_gates(layer, 0.7, 0.5)
            elif hasattr(layer, 'alpha_x'):
                open_gate(layer.alpha_x, 0.7)
    return model


def sequence(model, n_latent=3):
    """^ word # word word $ # word word, with the free places that one stream wants."""
    c = model.config
    tokens = np.array([c.bos, 1, model.image, 2, 3, model.eoc, model.image, 4, 5])
    index = np.array([0, 0, 1, 1, 1, 1, 2, 2, 2])
    encoded = Encoded(tokens, index, np.ones(len(tokens), bool), ['a', 'b'])
    if isinstance(model, variants.OneStream):
        encoded = variants.with_places(encoded, model.image, c.pad, n_latent)
    return torch.tensor(encoded.tokens)[None], torch.tensor(encoded.image_index)[None]


def norm(x, layer):
    """Layer norm of one vector, written out."""
    x = x - x.mean()
    return x / torch.sqrt((x * x).mean() + layer.eps) * layer.weight + layer.bias


def self_attention(block, xs):
    """x ← SA(LN(x)) of each of xs, every one seeing those up to itself."""
    attn, out = block.attn, []
    rows = [attn.c_attn.weight @ norm(x, block.ln_1) + attn.c_attn.bias for x in xs]
    d = len(xs[0]) // attn.n_head
    for t, row in enumerate(rows):
        said = []
        for h in range(attn.n_head):
            part = lambda r, which: r[which * len(xs[0]) + h * d:][:d]
            weights = [torch.exp(part(row, 0) @ part(rows[s], 1) / math.sqrt(d)) for s in range(t + 1)]
            said.append(sum(w * part(rows[s], 2) for s, w in enumerate(weights)) / sum(weights))
        out.append(attn.c_proj.weight @ torch.cat(said) + attn.c_proj.bias)
    return out


def gelu(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)))


def feed_forward(block, x):
    h = block.mlp.c_fc.weight @ norm(x, block.ln_2) + block.mlp.c_fc.bias
    return block.mlp.c_proj.weight @ gelu(h) + block.mlp.c_proj.bias


def cross_attention(layer, y, visual):
    """XAttn(q = LN(y), kv = LN(visual)) of one token that sees `visual`, a list of vectors or None."""
    if visual is None:
        return torch.zeros_like(y)
    q, inner = layer.to_q.weight @ norm(y, layer.norm), layer.n_head * layer.head_dim
    kv, said = [layer.to_kv.weight @ norm(v, layer.norm_visual) for v in visual], []
    for h in range(layer.n_head):
        part = lambda x, start=0: x[start + h * layer.head_dim:][:layer.head_dim]
        weights = [torch.exp(part(q) @ part(x) / math.sqrt(layer.head_dim)) for x in kv]
        said.append(sum(w * part(x, inner) for w, x in zip(weights, kv)) / sum(weights))
    return layer.to_out.weight @ torch.cat(said)


def dense(layer, y):
    h = layer.feed_forward.up.weight @ norm(y, layer.feed_forward.norm)
    return layer.feed_forward.down.weight @ torch.where(h > 0, h * h, torch.zeros_like(h))


def inputs(model):
    """-> tokens, image_index, visual (1,2,3,16) and what goes into the first block, a list of vectors"""
    tokens, index = sequence(model)
    visual = torch.randn(1, 2, 3, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ys = list(model.embed(tokens)[0] + model.lm.wpe.weight[:tokens.shape[1]])
    return tokens, index, visual, ys


def seen(visual, index, t):
    return list(visual[0, index[0, t] - 1]) if index[0, t] else None


def check(model, tokens, index, visual, expected):
    assert_near(model.stream(tokens, index, visual)[0], torch.stack(expected), 1e5)


def test_vanilla_looks_between_self_attention_and_feed_forward():
    model = build(variants.VanillaXattn)
    tokens, index, visual, ys = inputs(model)
    for block, layer in zip(model.lm.h, model.gated):
        ys = [y + s for y, s in zip(ys, self_attention(block, ys))]
        ys = [y + 0.7 * cross_attention(layer, y, seen(visual, index, t)) for t, y in enumerate(ys)]
        ys = [y + feed_forward(block, y) for y in ys]
    check(model, tokens, index, visual, [norm(y, model.lm.ln_f) for y in ys])


def test_grafted_layers_read_the_outputs_of_the_untouched_model():
    model = build(variants.Grafting)
    tokens, index, visual, ys = inputs(model)
    step = lambda block, ys: [y + feed_forward(block, y) for y in
                              [y + s for y, s in zip(ys, self_attention(block, ys))]]
    for block in model.lm.h:
        ys = step(block, ys)
    ys = [norm(y, model.lm.ln_f) for y in ys]
    assert len(model.grafted) == len(model.gated) == 3  # L/2 + 1
    for block, layer in zip(model.grafted, model.gated):
        ys = step(block, ys)
        ys = [y + 0.7 * cross_attention(layer, y, seen(visual, index, t)) for t, y in enumerate(ys)]
        ys = [y + 0.5 * dense(layer, y) for y in ys]
    check(model, tokens, index, visual, ys)


def test_without_gates_all_of_it_is_added():
    model = build(variants.NoTanhGate)
    tokens, index, visual, ys = inputs(model)
    for block, layer in zip(model.lm.h, model.gated):
        ys = [y + cross_attention(layer, y, seen(visual, index, t)) for t, y in enumerate(ys)]
        ys = [y + dense(layer, y) for y in ys]
        ys = [y + s for y, s in zip(ys, self_attention(block, ys))]
        ys = [y + feed_forward(block, y) for y in ys]
    check(model, tokens, index, visual, [norm(y, model.lm.ln_f) for y in ys])


def test_one_layer_stands_before_the_middle_block():
    model = build(variants.OneInTheMiddle)
    tokens, index, visual, ys = inputs(model)
    for i, block in enumerate(model.lm.h):
        if i == 2:
            layer = model.gated[2]
            ys = [y + 0.7 * cross_attention(layer, y, seen(visual, index, t)) for t, y in enumerate(ys)]
            ys = [y + 0.5 * dense(layer, y) for y in ys]
        ys = [y + s for y, s in zip(ys, self_attention(block, ys))]
        ys = [y + feed_forward(block, y) for y in ys]
    check(model, tokens, index, visual, [norm(y, model.lm.ln_f) for y in ys])
    assert sum(len(list(layer.parameters())) > 0 for layer in model.gated) == 1


def test_one_stream_reads_visual_tokens_among_the_words():
    model = build(variants.OneStream)
    tokens, index, visual, ys = inputs(model)
    assert (tokens[0] == 13).tolist() == [False] * 3 + [True] * 3 + [False] * 4 + [True] * 3 + [False] * 2
    scale = model.lm.wte.weight.std()
    for t, v in zip([3, 4, 5, 10, 11, 12], visual[0].flatten(0, 1)):
        ys[t] = v * scale + model.lm.wpe.weight[t]
    for block in model.lm.h:
        ys = [y + s for y, s in zip(ys, self_attention(block, ys))]
        ys = [y + feed_forward(block, y) for y in ys]
    check(model, tokens, index, visual, [norm(y, model.lm.ln_f) for y in ys])


@pytest.mark.parametrize('n_context, kept, media',
                         [(48, 15, 2), (14, 14, 2), (12, 9, 1), (8, 8, 1), (5, 2, 0)])
def test_places_beyond_the_context_are_cut_with_their_picture(n_context, kept, media):
    encoded = Encoded(np.array([12, 1, 14, 2, 3, 15, 14, 4, 5]), np.array([0, 0, 1, 1, 1, 1, 2, 2, 2]),
                      np.ones(9, bool), ['a', 'b'], start=40)
    cut = variants.with_places(encoded, 14, 13, 3, n_context)
    assert len(cut.tokens) == kept and len(cut.media) == media
    assert cut.start + len(cut.tokens) <= n_context or cut.start == 0
    assert cut.image_index.max(initial=0) == media and (cut.tokens == 13).sum() == 3 * media
    assert not cut.loss_mask[cut.tokens == 13].any()


def test_the_mlp_resampler_mixes_nothing_but_frames_and_neighbours():
    torch.manual_seed(0)
    module = variants.MLPResampler(24, n_latent=2, n_layer=2, n_head=2, head_dim=8, n_frame=3).double()
    x = torch.randn(1, 2, 4, 24, dtype=torch.float64)
    places = []
    for s in range(4):
        frames = []
        for f in range(2):
            y = x[0, f, s] + module.time_embedding[f]
            for layer in module.layers:
                h = layer.up.weight @ norm(y, layer.norm)
                y = y + layer.down.weight @ torch.where(h > 0, h * h, torch.zeros_like(h))
            frames.append(y)
        places.append((frames[0] + frames[1]) / 2)
    pooled = [(places[2 * r] + places[2 * r + 1]) / 2 + module.latents[r] for r in (0, 1)]
    expected = [norm(place, module.norm) for place in pooled]
    assert_near(module.perceive(x)[0], torch.stack(expected), 1e5)


def test_in_the_transformer_resampler_all_of_it_attends_to_all_of_it():
    torch.manual_seed(0)
    module = variants.TransformerResampler(8, n_latent=2, n_layer=2, n_head=2, head_dim=4, n_frame=3).double()
    x = torch.randn(1, 2, 2, 8, dtype=torch.float64)
    ys = [x[0, f, s] + module.time_embedding[f] for f in range(2) for s in range(2)] + list(module.latents)
    for layer in module.layers:
        qs = [layer.to_q.weight @ norm(y, layer.norm_latents) for y in ys]
        kvs, out = [layer.to_kv.weight @ norm(y, layer.norm_latents) for y in ys], []
        for y, q in zip(ys, qs):
            said = []
            for h in (0, 4):
                weights = [torch.exp(q[h:h + 4] @ kv[h:h + 4] / 2) for kv in kvs]
                said.append(sum(w * kv[8 + h:12 + h] for w, kv in zip(weights, kvs)) / sum(weights))
            y = y + layer.to_out.weight @ torch.cat(said)
            h = layer.feed_forward.up.weight @ norm(y, layer.feed_forward.norm)
            out.append(y + layer.feed_forward.down.weight @ torch.where(h > 0, h * h, torch.zeros_like(h)))
        ys = out
    assert_near(module.perceive(x)[0], torch.stack([norm(y, module.norm) for y in ys[-2:]]), 1e5)


@pytest.mark.parametrize('kind', [variants.OneInTheMiddle, variants.VanillaXattn, variants.Grafting])
def test_with_shut_gates_it_starts_as_the_language_model(kind):
    torch.manual_seed(0)
    model = kind(FlamingoConfig(**SIZES)).eval()
    tokens = torch.tensor([[12, 1, 14, 2, 3]])
    index = torch.tensor([[0, 0, 1, 1, 1]])
    visual = torch.randn(1, 1, 3, 16)
    plain = model.lm.ln_f(run_blocks(model, tokens))
    assert_near(model.stream(tokens, index, visual), plain, 1e3)


def run_blocks(model, tokens):
    y = model.lm.add_positions(model.embed(tokens))
    for block in model.lm.h:
        y = block(y)
    return y


@pytest.mark.parametrize('kind', MODELS)
def test_answers_from_the_cache_are_those_of_the_plain_forward(kind):
    model = build(kind)
    tokens, index = sequence(model)
    media = torch.randn(1, 2, 1, 3, 32, 32, dtype=torch.float64)
    length = torch.tensor([tokens.shape[1]])
    [[found]] = score(model, tokens, length, index, [[[6, 7, 8]]], media)
    whole = torch.cat([tokens, torch.tensor([[6, 7, 8]])], 1)
    logits, _ = model(whole, torch.cat([index, index[:, -1:].expand(-1, 3)], 1), media)
    log_p = F.log_softmax(logits[0], -1)
    expected = sum(log_p[tokens.shape[1] - 1 + k, word].item() for k, word in enumerate([6, 7, 8]))
    # The model is float64; the logits of each word, about as large as its log p, are rounded to float32.
    assert found == pytest.approx(expected, rel=4 * EPS)


@pytest.mark.parametrize('kind', MODELS)
def test_what_trains_is_what_should(kind):
    model = build(kind)
    tokens, index = sequence(model)
    targets = tokens.roll(-1, 1).masked_fill(tokens.roll(-1, 1) >= 13, -100)
    model(tokens, index, torch.randn(1, 2, 1, 3, 32, 32, dtype=torch.float64), targets)[1].backward()
    assert all(p.grad is None for part in (model.lm, model.vision) for p in part.parameters())
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    missing = {name for name, p in trained if p.grad is None}
    assert not any(name.startswith(('gated', 'grafted', 'new_rows')) for name in missing), missing
    # The Transformer resampler has no features apart from its latents, nor a norm for them that matters.
    assert all('norm_media' in name for name in missing), missing


def test_an_encoder_of_another_kind_is_an_encoder():
    torch.manual_seed(0)
    vit, net = variants.ViT(48, 16), NFNet('nano', 16)
    images = torch.randint(0, 255, (2, 3, 48, 48), dtype=torch.uint8)
    assert torch.equal(vit.normalise(images), net.normalise(images))
    assert vit(vit.normalise(images)).shape == (2, 36, vit.dim)
    assert_near(vit.embed(vit.normalise(images)).norm(dim=-1), torch.ones(2), 1e3)


def test_unfreezing_the_language_model_is_said_in_one_place():
    model = Flamingo(FlamingoConfig(**SIZES))
    model.freeze(lm=False)
    assert all(p.requires_grad for p in model.lm.parameters()) and model.lm.training
    assert not any(p.requires_grad for p in model.vision.parameters()) and not model.vision.training
    model.freeze()
    assert not any(p.requires_grad for p in model.lm.parameters()) and not model.lm.training


@pytest.mark.parametrize('name, paper, ours', accounting.variant_counts('flamingo-3b'))
def test_parameters_are_the_papers(name, paper, ours):
    assert ours == pytest.approx(paper, rel=0.03), name
