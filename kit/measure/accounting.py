"""How large, how much work, what fits where: computed from the sizes of a preset, with nothing allocated.

    python bench.py --preset=flamingo-3b --device=meta

Parameters are counted on the real modules, made on torch's `meta` device (shapes without memory); so are the
FLOPs of a picture and the activations that each kind of block keeps for the backward pass. The rest is
arithmetic, written out below.
"""
from dataclasses import dataclass, replace
from unittest import mock

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import sdpa_kernel, SDPBackend
from torch.utils.flop_counter import FlopCounterMode

from kit.ablations.rows import ROWS, sizes_of
from kit.device import frozen_dtype
from kit.fast.routing import attention_along, Route
from kit.show.lettering import text_table
from kit.sizes import check_sizes
from model import Flamingo, FlamingoConfig, GPT, PRESETS
from resampler import ResamplerLayer
from vision import SIZES as ENCODERS
from xattn import GatedCrossAttention


# Table 5 and appendix of the paper, as printed there.
PARTS = ('language model', 'vision encoder', 'gated layers', 'resampler', 'total')
PAPER = {
    'flamingo-3b': dict(zip(PARTS, (1.4e9, 435e6, 1.2e9, 194e6, 3.2e9))),
    'flamingo-9b': dict(zip(PARTS, (7.1e9, 435e6, 1.6e9, 194e6, 9.3e9))),
    'flamingo-80b': dict(zip(PARTS, (70e9, 435e6, 10e9, 194e6, 80e9))),
}
# Where a count is more than 3 % from the paper's. (Its 1.4 B, 7.1 B and 70 B are 13 D² a layer + 32,000 D to
# within 2 %.)
RELATIVE = ("the paper's is 13 D² a layer: one more D x D matrix, as relative positions need; ours has "
            "GPT-2's 12 D² and learned positions")
WHY = {
    ('flamingo-3b', 'language model'): RELATIVE,
    ('flamingo-9b', 'language model'):
        "the paper's 7.1 B are 32 layers (of 13 D²), not the 40 of its own Table 4",
    ('flamingo-9b', 'gated layers'):
        "the paper's 1.6 B are 8 layers (of 12 D²): one before every 4th of 32, not of the 40 of its Table 4",
    ('flamingo-9b', 'total'): 'the 40 layers of Table 4; see the two rows above',
    ('flamingo-80b', 'language model'): RELATIVE,
    ('flamingo-80b', 'gated layers'): 'printed as 10 B; 12 layers of 12 D² are 9.7 B',
    ('flamingo-80b', 'total'): 'the 5.4 B of relative positions that ours lacks; see above',
}
GPUS = (1, 8, 64, 1024)
GIB = 1 << 30
CARD = 80  # GB of memory of a large GPU of 2022–2024 (A100, H100); "fits" means: into nine tenths of it


@dataclass
class Sizes:
    """Parameters by component, and what else the arithmetic needs."""
    frozen_lm: int
    vision: int
    gated: int
    resampler: int

    @property
    def trained(self):
        return self.gated + self.resampler

    @property
    def total(self):
        return self.frozen_lm + self.vision + self.trained


def count(module):
    return sum(p.numel() for p in module.parameters())


def meta_flamingo(config):
    with torch.device('meta'):
        return Flamingo(config)


def sizes(model):
    """Flamingo -> Sizes. The projection into the contrastive space is left out; <image> and <EOC>, and
    whatever else is new, count as gated layers."""
    vision = count(model.vision) - count(model.vision.projection)
    other = count(model) - count(model.vision) - count(model.lm) - count(model.resampler)
    return Sizes(count(model.lm), vision, other, count(model.resampler))


# ---------------------------------------------------------------------------------------------
# FLOPs. A multiplication and an addition count as two.


def token_flops(c):
    """Forward FLOPs of one text token -> (language model, gated layers); a matrix of n weights costs 2 n.

    Attention scores and sums cost 4 D a key and layer; with a causal mask, a token of a sequence of L has L/2
    keys on average.
    """
    lm = c.lm_layer * (2 * 12 * c.lm_dim ** 2 + 4 * c.lm_dim * c.n_token / 2) + 2 * c.lm_dim * (c.n_vocab + 2)
    inner, n_gated = c.xattn_head * c.xattn_head_dim, len(range(0, c.lm_layer, c.xattn_every))
    gated = n_gated * (2 * (2 * c.lm_dim * inner + 8 * c.lm_dim ** 2) + 4 * inner * c.n_latent)
    return lm, gated


def image_flops(c, model):
    """Forward FLOPs of one picture -> (vision encoder, resampler, keys and values in all gated layers). Torch
    counts them."""
    counts = []
    features = torch.empty(1, 1, 1, n_position(c, model), model.vision.dim, device='meta')
    visual = torch.empty(1, 1, c.n_latent, c.resampler_dim, device='meta')
    keys_values = lambda wide: [layer.keys_values(wide) for layer in model.gated]
    for call in (lambda: model.vision(torch.empty(1, 3, c.image_size, c.image_size, device='meta')),
                 lambda: model.resampler.perceive(model.resampler.project(features.flatten(0, 1))),
                 lambda: keys_values(model.widen(visual))):
        # The plain kernel: of the fused ones, the counter knows only some.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            call()
        counts.append(counter.get_total_flops())
    return counts


def n_position(c, model):
    """S: positions of a feature grid."""
    # The stem halves a picture twice, each stage but the first once.
    pixels = 2 ** (1 + len(ENCODERS[c.vision]['depths']))
    return (-(-c.image_size // pixels)) ** 2


# ---------------------------------------------------------------------------------------------
# Memory


def kept(make, call, dtype, frozen=None):
    """Bytes that autograd keeps of one block's forward, parameters not counted.

    make() -> block, call(block) runs it; frozen: what its weights are held in where they are not trained.
    """
    total, seen = 0, set()

    def pack(x):
        nonlocal total
        if x.untyped_storage()._cdata not in seen:
            seen.add(x.untyped_storage()._cdata)
            total += x.untyped_storage().nbytes()
            alive.append(x)  # or its storage's number would be given to another
        return x

    alive = []
    half = torch.autocast('cpu', torch.bfloat16, enabled=dtype == torch.bfloat16)
    # As on a GPU, whose attention needs no float32 in between.
    with FakeTensorMode(), half, mock.patch('kit.fast.attention.SLOW_IN_BFLOAT16', ()):
        torch.set_default_dtype(frozen or torch.float32)
        try:
            block = make().requires_grad_(frozen is None)
        finally:
            torch.set_default_dtype(torch.float32)
        seen |= {p.untyped_storage()._cdata for p in block.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            call(block)
    return total


def activations(c, model, dtype):
    """Bytes kept for the backward pass of a sequence of L tokens and N pictures -> (all, with checkpointing).

    Checkpointing keeps what goes into each block and, while one is computed again, all of that one.
    """
    t, d = c.n_token, c.lm_dim
    frozen = frozen_dtype(dtype, 'cuda', d)  # so is the stream
    width = torch.finfo(frozen).bits // 8
    n, r, n_gated, dim = c.n_image, c.n_latent, len(model.gated), c.visual_dim or c.resampler_dim
    stream = lambda *shape, dtype=frozen: torch.empty(*shape, dtype=dtype, requires_grad=True)

    def gate(layer):
        chunk = -(-t // n)  # text is spread evenly over the images
        token, image, place = (torch.zeros(size, dtype=torch.long) for size in (n * chunk, n, t))
        route = Route(token, image, True, place, torch.ones(1, t, dtype=torch.bool), chunk)
        y, (k, v) = stream(1, t, d), layer.keys_values(stream(1, n, r, dim, dtype=torch.float32))
        gate_x, gate_d = layer.gates()
        y = y + gate_x * layer.to_out(attention_along(route, layer.queries(y), k, v).flatten(2))
        return y + gate_d * layer.feed_forward(y)

    one_block = lambda: GPT.from_config(replace(c, lm_layer=1)).h[0]
    block = kept(one_block, lambda b: b(stream(1, t, d)), dtype, frozen)
    gated = kept(lambda: GatedCrossAttention(d, dim, c.xattn_head, c.xattn_head_dim), gate, dtype)
    s = n_position(c, model)
    wide = lambda *shape: stream(*shape, c.resampler_dim, dtype=torch.float32)

    def resampler(n_layer):
        def read(layers):
            features = wide(n, s)
            return [layer(wide(n, r), features) for layer in layers]

        size = c.resampler_dim, c.resampler_head, c.resampler_head_dim
        return kept(lambda: nn.ModuleList(ResamplerLayer(*size) for _ in range(n_layer)), read, dtype)

    one_layer = resampler(1)
    layer = resampler(2) - one_layer  # what all layers read is kept once for all
    features = 4 * n * s * (model.vision.dim + c.resampler_dim) + one_layer - layer
    head = t * (c.n_vocab + 2) * (width + 4 + 4)  # logits, in float32, and their softmax
    everything = c.lm_layer * block + n_gated * gated + c.resampler_layer * layer + features + head
    inputs = (c.lm_layer + n_gated) * t * d * width + c.resampler_layer * 4 * n * r * c.resampler_dim
    inputs += 4 * n * r * dim  # visual tokens: once for all gated layers
    return everything, inputs + max(block, gated, layer) + features + head


def caches(c, dtype):
    """Bytes of the cache of generation, a sequence: (keys and values of text at the full context, visual
    tokens of N pictures)."""
    width = torch.finfo(dtype).bits // 8
    text = 2 * c.lm_layer * c.n_context * c.lm_dim * width
    return text, c.n_image * c.n_latent * (c.visual_dim or c.resampler_dim) * width


def memory(c, model, dtype, n_gpu, activation_bytes):
    """Bytes on each GPU in training, one sequence at a time with activation checkpointing -> {what: bytes}.

    Trained weights, their gradients and AdamW's two moments are float32; what is frozen is as `frozen_dtype`
    says. Sharded, all but the vision encoder is divided by the number of GPUs; a block and the next, or the
    resampler, are put together at a time.
    """
    size, width = sizes(model), torch.finfo(frozen_dtype(dtype, 'cuda', c.lm_dim)).bits // 8
    one_block = count(model.lm.h[0]) * width + count(model.gated[0]) * (4 + 4)  # the latter with its gradient
    root = (count(model.lm) - count(model.lm.h)) * width
    return {
        'frozen LM': size.frozen_lm * width / n_gpu,
        'vision': size.vision * width,
        'trained': size.trained * 4 / n_gpu,
        'gradients': size.trained * 4 / n_gpu,
        'optimizer': size.trained * 8 / n_gpu,
        'gathered': max(2 * one_block, size.resampler * (4 + 4)) + root if n_gpu > 1 else 0,
        'activations': activation_bytes,
    }


# ---------------------------------------------------------------------------------------------
# The tables


def big(x):
    """1234567890 -> '1.23 B'"""
    for factor, letter in ((1e12, 'T'), (1e9, 'B'), (1e6, 'M')):
        if x >= factor:
            return f'{x / factor:.3g} {letter}'
    return f'{x:.0f}'


def parameter_rows(preset, model):
    """-> [(component, our number, the paper's or None, why they differ by more than 3 %)]"""
    size = sizes(model)
    ours = dict(zip(PARTS, (size.frozen_lm, size.vision, size.gated, size.resampler, size.total)))
    rows = []
    for name, n in ours.items():
        paper = PAPER.get(preset, {}).get(name)
        far = paper is not None and abs(n / paper - 1) > 0.03
        rows.append((name, n, paper, WHY[preset, name] if far else ''))
    return rows


def variant_counts(preset):
    """The rows of Tables 3 and 10 whose parameters the paper prints -> [(name, the paper's total, ours)].

    The language model counts as the paper's, of 13 D² a layer and no positions (see RELATIVE): what is
    compared is what a row changes.
    """
    found = []
    c = FlamingoConfig(**PRESETS[preset])
    theirs = 13 * c.lm_layer * c.lm_dim ** 2 + c.n_vocab * c.lm_dim
    for row in ROWS:
        if row.parameters:
            with torch.device('meta'):
                size = sizes(row.model(replace(c, **sizes_of(row, c))))
            found.append((row.name, row.parameters, size.total - size.frozen_lm + theirs))
    return found


def report(preset, changes={}):
    """All tables of a preset, as text. changes: sizes that differ from it; then there is nothing of the paper
    beside them. Raises ValueError where they make no model."""
    c = check_sizes(FlamingoConfig(**PRESETS[preset] | changes))
    model = meta_flamingo(c)
    out = [', '.join([preset, *(f'{k}={v}' for k, v in changes.items())]) + ': parameters']
    rows = [[name, big(n), big(p) if p else '', f'{n / p - 1:+.1%}' if p else '', why]
            for name, n, p, why in parameter_rows('' if changes else preset, model)]
    out.append(text_table(rows, ['', 'ours', 'paper', 'difference', 'why, where more than 3 %']))
    if preset == 'flamingo-3b' and not changes:
        rows = [[name, big(n), big(paper), f'{n / paper - 1:+.1%}']
                for name, paper, n in variant_counts(preset)]
        out += ['\nrows of Tables 3 and 10 (python ablate.py), with a language model of 13 D² a layer',
                text_table(rows, ['', 'ours', 'paper', 'difference'])]
    out += flops_report(c, model)
    for dtype in (torch.float32, torch.bfloat16):
        out += memory_report(c, model, dtype)
    return '\n'.join(out)


def flops_report(c, model):
    lm, gated = token_flops(c)
    vision, resampler, keys = image_flops(c, model)
    work = [('token: language model', lm, 2), ('token: gated layers', gated, 3),
            ('picture: vision encoder', vision, 1), ('picture: resampler', resampler, 3),
            ('picture: keys and values', keys, 3)]
    rows = [[name, big(x), big(x * times)] for name, x, times in work]
    return ['\nFLOPs, forward; and in training, where the backward pass costs twice the forward, half of '
            'that in frozen layers, nothing in the encoder\n'
            f'(a text token in a sequence of {c.n_token}; a picture of {c.image_size} x {c.image_size})',
            text_table(rows, ['', 'forward', 'training'])]


def memory_report(c, model, dtype):
    everything, checkpointed = activations(c, model, dtype)
    tables = [memory(c, model, dtype, n, checkpointed) for n in GPUS]
    rows = [[what, *[f'{table[what] / GIB:.2f}' for table in tables]] for what in tables[0]]
    total = [sum(table.values()) for table in tables]
    rows.append(['total', *[f'{x / GIB:.2f}' for x in total]])
    rows.append([f'fits {CARD} GB', *['yes' if x < 0.9 * CARD * 1e9 else 'no' for x in total]])
    name, frozen = (str(d).removeprefix('torch.') for d in (dtype, frozen_dtype(dtype, 'cuda', c.lm_dim)))
    text, pictures = caches(c, dtype)
    return [f'\nmemory in GiB on each GPU, computed: matrix products in {name}, frozen weights in {frozen}, '
            f'the trained part in float32;\none sequence of {c.n_token} tokens and {c.n_image} pictures, '
            'activation checkpointing, sharded over',
            text_table(rows, ['', *[f'{n:,} GPU{"s" if n > 1 else ""}' for n in GPUS]]),
            f'without activation checkpointing {everything / GIB:.2f} GiB of activations; caches of '
            f'generation, a sequence of {c.n_context} tokens: {text / GIB:.2f} GiB of text, '
            f'{pictures / GIB:.2f} GiB of {c.n_image} pictures']
