"""Published weights, the paper's sizes, and many processes that compute what one would.

Run by torchrun, this file is the worker of its own two-process tests (see `main`).
"""
import json
import math
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)  # torchrun starts this file as a script

import train
import vision
from gates import open_gates
from kit import answers
from kit.cli import configure
from kit.device import frozen_dtype
from kit.files import BadInput
from kit.measure import accounting
from kit.run import distributed
from kit.run.keys import check_values
from kit.run.run import Run
from kit.tasks.results import measure
from kit.weights import checkpoint, gpt2, nfnet
from model import Block, Flamingo, FlamingoConfig, PRESETS
from rounding import EPS, LOG_P, assert_near
from test_vocabulary import write_vocabulary

# ---------------------------------------------------------------------------------------------
# GPT-2


def gpt2_state(n_layer=2, dim=128, n_vocab=300, n_context=40, prefix='transformer.'):
    """A tiny GPT-2 as the hub has it: matrices as (in, out), the masks among the weights, the head a second name of wte."""
    g = torch.Generator().manual_seed(0)
    state = {'wte.weight': (n_vocab, dim), 'wpe.weight': (n_context, dim), 'ln_f.weight': (dim,), 'ln_f.bias': (dim,)}
    for i in range(n_layer):
        for name, (n_in, n_out) in {'attn.c_attn': (dim, 3 * dim), 'attn.c_proj': (dim, dim), 'mlp.c_fc': (dim, 4 * dim), 'mlp.c_proj': (4 * dim, dim)}.items():
            state |= {f'h.{i}.{name}.weight': (n_in, n_out), f'h.{i}.{name}.bias': (n_out,)}
        state |= {f'h.{i}.{ln}.{part}': (dim,) for ln in ('ln_1', 'ln_2') for part in ('weight', 'bias')}
    state = {prefix + k: torch.randn(shape, generator=g) * 0.15 + (1.0 if 'ln_' in k and k.endswith('weight') else 0.0) for k, shape in state.items()}
    state |= {f'{prefix}h.{i}.attn.bias': torch.ones(1, 1, n_context, n_context).tril() for i in range(n_layer)}
    state |= {f'{prefix}h.{i}.attn.masked_bias': torch.tensor(-1e4) for i in range(n_layer)}
    return state | {'lm_head.weight': state[prefix + 'wte.weight']}


def slow_gpt2(state, tokens):
    """OpenAI's forward from the file's own tensors, float64, one head at a time: tokens (T,) -> logits (T,V)."""
    w = {k.removeprefix('transformer.'): v.double().numpy() for k, v in state.items()}
    dim = w['wte.weight'].shape[1]

    def norm(x, name):
        return (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5) * w[name + '.weight'] + w[name + '.bias']

    def conv1d(x, name):
        return x @ w[name + '.weight'] + w[name + '.bias']

    x = w['wte.weight'][tokens] + w['wpe.weight'][:len(tokens)]
    for i in range(sum(k.endswith('attn.c_attn.weight') for k in w)):
        qkv = conv1d(norm(x, f'h.{i}.ln_1'), f'h.{i}.attn.c_attn')
        heads = []
        for h in range(dim // 64):
            q, k, v = (qkv[:, part * dim + h * 64: part * dim + (h + 1) * 64] for part in range(3))
            score = q @ k.T / 8
            score[np.triu_indices(len(tokens), 1)] = -np.inf
            p = np.exp(score - score.max(1, keepdims=True))
            heads.append(p / p.sum(1, keepdims=True) @ v)
        x = x + conv1d(np.concatenate(heads, 1), f'h.{i}.attn.c_proj')
        z = conv1d(norm(x, f'h.{i}.ln_2'), f'h.{i}.mlp.c_fc')
        x = x + conv1d(0.5 * z * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z ** 3))), f'h.{i}.mlp.c_proj')
    return norm(x, 'ln_f') @ w['wte.weight'].T


@pytest.mark.parametrize('prefix', ['transformer.', ''])
def test_gpt2_logits_are_those_of_a_slow_reference(tmp_path, prefix):
    state = gpt2_state(prefix=prefix)
    torch.save(state, tmp_path / 'pytorch_model.bin')
    lm = gpt2(str(tmp_path))
    assert lm.sizes() == {'n_vocab': 300, 'lm_layer': 2, 'lm_dim': 128, 'lm_head': 2, 'n_context': 40}
    tokens = torch.randint(0, 300, (40,), generator=torch.Generator().manual_seed(1))
    expected = slow_gpt2(state, tokens.numpy())
    assert expected.std() > 0.5 and all(p.requires_grad and p.dtype == torch.float32 for p in lm.parameters())
    with torch.no_grad():
        assert_near(lm.double()(tokens[None])[0], torch.from_numpy(expected), 1e4)


def test_gpt2_half_precision_becomes_float32(tmp_path):
    torch.save({k: v.half() for k, v in gpt2_state().items()}, tmp_path / 'w.bin')
    assert {p.dtype for p in gpt2(tmp_path / 'w.bin').parameters()} == {torch.float32}


def change(state, key, value):
    return {k: v for k, v in (state | {key: value}).items() if v is not None}


@pytest.mark.parametrize('key, value, message', [
    ('transformer.h.1.mlp.c_fc.bias', None, r'lacks h\.1\.mlp\.c_fc\.bias'),
    ('transformer.h.1.mlp.c_fc.weight', torch.zeros(512, 128), r'has h\.1\.mlp\.c_fc\.weight of shape \(512, 128\), expected \(128, 512\)'),
    ('transformer.h.0.crossattention.c_attn.weight', torch.zeros(3), r'has h\.0\.crossattention\.c_attn\.weight, which the model lacks'),
    ('lm_head.weight', torch.zeros(300, 128), r'lm_head\.weight is not wte\.weight'),
    ('transformer.wte.weight', torch.zeros(300, 100), r'width 100'),
    ('transformer.wpe.weight', None, r'not a GPT-2: no matrix wpe\.weight'),
])
def test_gpt2_names_the_first_offending_key(tmp_path, key, value, message):
    torch.save(change(gpt2_state(), key, value), tmp_path / 'w.bin')
    with pytest.raises(BadInput, match=message) as e:
        gpt2(str(tmp_path / 'w.bin'))
    assert '\n' not in str(e.value) and 'w.bin' in str(e.value)


def test_files_that_are_no_weights(tmp_path):
    (tmp_path / 'bad.bin').write_bytes(b'no weights at all')
    torch.save([1, 2], tmp_path / 'list.bin')
    torch.save({'a': Evil()}, tmp_path / 'evil.bin')
    for name, message in (('none.bin', 'no such file'), ('bad.bin', 'damaged'), ('list.bin', 'not a dict'), ('evil.bin', 'refused'), ('.', 'holds neither')):
        with pytest.raises(BadInput, match=message):
            gpt2(str(tmp_path / name))


class Evil:
    def __reduce__(self):
        return os.system, ('echo this must never run; exit 1',)


def test_safetensors_without_the_package_is_one_clear_line(tmp_path, monkeypatch):
    (tmp_path / 'model.safetensors').write_bytes(b'')
    monkeypatch.setitem(sys.modules, 'safetensors', None)
    monkeypatch.setitem(sys.modules, 'safetensors.torch', None)
    with pytest.raises(BadInput, match='pip install safetensors'):
        gpt2(str(tmp_path))


# ---------------------------------------------------------------------------------------------
# timm's NFNet

TINY = dict(stem=(4, 4, 8, 8), widths=(16, 32, 32, 48), depths=(1, 1, 2, 1), group=8, alpha=0.2, drop_path=0.25)


def timm_state():
    """Weights in the layout of timm's dm_nfnet files, for the widths of TINY; some filters of almost no variance."""
    g = torch.Generator().manual_seed(0)
    state, stem = {}, (3, *TINY['stem'])

    def conv(name, n_in, n_out, kernel):
        scale = torch.where(torch.arange(n_out) % 3 == 0, 3e-3, 0.2)[:, None, None, None]
        state[name + '.weight'] = torch.randn(n_out, n_in, kernel, kernel, generator=g) * scale + 0.1
        state[name + '.bias'] = 0.1 * torch.randn(n_out, generator=g)
        state[name + '.gain'] = 1 + 0.2 * torch.randn(n_out, 1, 1, 1, generator=g)

    for i in range(4):
        conv(f'stem.conv{i + 1}', stem[i], stem[i + 1], 3)
    n_in = stem[-1]
    for s, (width, depth) in enumerate(zip(TINY['widths'], TINY['depths'])):
        for j in range(depth):
            name, mid = f'stages.{s}.{j}', width // 2 // 8 * 8
            if j == 0:
                conv(name + '.downsample.conv', n_in, width, 1)
            conv(name + '.conv1', n_in, mid, 1)
            conv(name + '.conv2', 8, mid, 3)
            conv(name + '.conv2b', 8, mid, 3)
            conv(name + '.conv3', mid, width, 1)
            for fc, a, b in (('fc1', width, width // 2), ('fc2', width // 2, width)):
                state[f'{name}.attn_last.{fc}.weight'] = torch.randn(b, a, 1, 1, generator=g) * 0.3
                state[f'{name}.attn_last.{fc}.bias'] = torch.randn(b, generator=g)
            state[name + '.skipinit_gain'] = torch.tensor(0.8)
            n_in = width
    conv('final_conv', n_in, 2 * n_in, 1)
    return state | {'head.fc.weight': torch.randn(10, 2 * n_in, generator=g), 'head.fc.bias': torch.randn(10, generator=g)}


def slow_timm(state, x):
    """timm's forward_features from the file's own tensors: standardised by batch_norm with eps 1e-5 on the variance, SAME padding."""
    w = {k: v.double() for k, v in state.items()}

    def conv(x, name, stride=1):
        weight = w[name + '.weight']
        flat = weight.reshape(1, len(weight), -1)
        weight = F.batch_norm(flat, None, None, weight=w[name + '.gain'].flatten() * weight[0].numel() ** -0.5, training=True, momentum=0.0, eps=1e-5).view_as(weight)
        pad = [max((math.ceil(n / stride) - 1) * stride + weight.shape[-1] - n, 0) for n in x.shape[-2:]]
        x = F.pad(x, (pad[1] // 2, pad[1] - pad[1] // 2, pad[0] // 2, pad[0] - pad[0] // 2))
        return F.conv2d(x, weight, w[name + '.bias'], stride, groups=x.shape[1] // weight.shape[1])

    act = lambda x: F.gelu(x) * 1.7015043497085571
    x = conv(x.double(), 'stem.conv1', 2)
    for i in (2, 3, 4):
        x = conv(act(x), f'stem.conv{i}', 2 if i == 4 else 1)
    variance = 1.0
    for s, depth in enumerate(TINY['depths']):
        for j in range(depth):
            name, stride = f'stages.{s}.{j}', 2 if j == 0 and s > 0 else 1
            h, shortcut = act(x) / variance ** 0.5, x
            if j == 0:
                variance = 1.0
                shortcut = conv(F.avg_pool2d(h, 2, 2, ceil_mode=True, count_include_pad=False) if stride == 2 else h, name + '.downsample.conv')
            variance += 0.04
            h = conv(act(conv(h, name + '.conv1')), name + '.conv2', stride)
            h = conv(act(conv(act(h), name + '.conv2b')), name + '.conv3')
            z = F.relu(F.conv2d(h.mean((2, 3), keepdim=True), w[name + '.attn_last.fc1.weight'], w[name + '.attn_last.fc1.bias']))
            h = 2 * h * torch.sigmoid(F.conv2d(z, w[name + '.attn_last.fc2.weight'], w[name + '.attn_last.fc2.bias']))
            x = 0.2 * w[name + '.skipinit_gain'] * h + shortcut
    return act(conv(x, 'final_conv'))


@pytest.fixture()
def tiny_nfnet(monkeypatch):
    monkeypatch.setitem(vision.SIZES, 'tiny', TINY)


@pytest.mark.parametrize('height, width', [(64, 64), (96, 32), (50, 75), (33, 65)])
def test_nfnet_features_are_timms(tmp_path, tiny_nfnet, height, width):
    state = timm_state()
    torch.save(state, tmp_path / 'dm_nfnet.pth')
    classifier = nfnet(str(tmp_path / 'dm_nfnet.pth'), head=True).eval().double()
    x = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))
    expected = slow_timm(state, x)
    logits = expected.mean((2, 3)) @ state['head.fc.weight'].double().T + state['head.fc.bias']
    roundings = 60 * EPS / torch.finfo(torch.float64).eps  # from_timm rounds the gains of some 30 convolutions to float32
    with torch.no_grad():
        assert_near(classifier.net.grid(x.double()), expected, roundings)
        assert_near(classifier(x.double()), logits, roundings)
    assert expected.std() > 0.2


def test_nfnet_with_and_without_its_head(tmp_path, tiny_nfnet):
    state = timm_state()
    torch.save(state, tmp_path / 'pytorch_model.bin')
    net = nfnet(tmp_path, dim_embed=16)
    assert net.projection.weight.shape == (16, 96) and net.size == 'tiny'
    torch.save({k: v for k, v in state.items() if not k.startswith('head')}, tmp_path / 'pytorch_model.bin')
    assert nfnet(tmp_path).dim == 96
    with pytest.raises(BadInput, match='lacks head.fc.weight'):
        nfnet(tmp_path, head=True)


@pytest.mark.parametrize('key, value, message', [
    ('stages.2.1.conv2b.gain', None, r'lacks stages\.2\.1\.conv2b\.gain'),
    ('stages.0.0.skipinit_gain', None, r'lacks stages\.0\.0\.skipinit_gain'),  # timm's own nfnet_f0 has none
    ('stages.2.1.conv2b.gain', torch.ones(16), r'stages\.2\.1\.conv2b\.gain of shape \(16,\), expected \(16, 1, 1, 1\)'),
    ('stem.conv5.weight', torch.ones(1), r'has stem\.conv5\.weight, which the model lacks'),
    ('stages.3.1.conv1.weight', torch.ones(1), r'not a dm_nfnet_f0 … f6: its stages have 1, 1, 2, 2 blocks'),
])
def test_nfnet_names_the_first_offending_key(tmp_path, tiny_nfnet, key, value, message):
    torch.save(change(timm_state(), key, value), tmp_path / 'w.pth')
    with pytest.raises(BadInput, match=message):
        nfnet(str(tmp_path / 'w.pth'))


# ---------------------------------------------------------------------------------------------
# The paper's sizes


@pytest.mark.parametrize('preset', list(accounting.PAPER))
def test_every_count_is_the_papers_or_says_why_not(preset):
    """And the language model and gated layers are 12 D² a layer, to within the tables, norms and biases."""
    c = FlamingoConfig(**PRESETS[preset])
    model = accounting.meta_flamingo(c)
    rows = accounting.parameter_rows(preset, model)
    assert all(abs(ours / paper - 1) <= 0.03 or why for _, ours, paper, why in rows)
    ours = {name: n for name, n, _, _ in rows}
    assert ours['vision encoder'] == pytest.approx(435.3e6, rel=1e-3) and ours['resampler'] == pytest.approx(194e6, rel=3e-3)
    n_gated = {'flamingo-3b': 24, 'flamingo-9b': 10, 'flamingo-80b': 12}[preset]
    assert len(model.gated) == n_gated and ours['gated layers'] == pytest.approx(12 * c.lm_dim ** 2 * n_gated, rel=4e-3)
    assert ours['language model'] == pytest.approx(12 * c.lm_dim ** 2 * c.lm_layer + (32000 + 2048) * c.lm_dim, rel=1e-3)
    assert ours['total'] == sum(p.numel() for p in model.parameters()) - model.vision.projection.weight.numel()
    assert (c.lm_layer, c.lm_dim, c.lm_head) == {'flamingo-3b': (24, 2048, 16), 'flamingo-9b': (40, 4096, 32), 'flamingo-80b': (80, 8192, 64)}[preset]


def test_why_the_papers_language_models_are_larger():
    """13 D² a layer and 32,000 words: its 1.4 B, 7.1 B (of 32 layers, not 40) and 70 B."""
    for n_layer, dim, paper in ((24, 2048, 1.4e9), (32, 4096, 7.1e9), (80, 8192, 70e9)):
        assert 13 * dim ** 2 * n_layer + 32000 * dim == pytest.approx(paper, rel=0.02)
    assert 12 * 4096 ** 2 * 8 == pytest.approx(1.6e9, rel=0.01)


def small_config(**changes):
    return FlamingoConfig(**dict(n_vocab=50, bos=48, pad=49, lm_layer=3, lm_dim=32, lm_head=2, n_context=40, xattn_every=2, xattn_head=2, xattn_head_dim=8,
                                 resampler_layer=1, resampler_dim=16, resampler_head=2, resampler_head_dim=8, n_latent=4, n_token=12, n_image=2) | changes)


def test_token_flops_are_what_torch_counts():
    """Every matrix product of a real forward. The attention among all pairs counts L keys a token where the formula, causal, has L/2."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode
    c = small_config(visual_dim=24)
    model = Flamingo(c).eval()
    tokens, features = torch.zeros(1, 12, dtype=torch.long), torch.randn(1, 1, 1, 9, model.vision.dim)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        visual = model.visual_keys_values(model.resample(features=features))
    cache = answers.Cache(c, 1, 12, 'cpu', torch.float32, visual)
    once = counter.get_total_flops()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.head(answers.read(model, cache, tokens, torch.ones_like(tokens)))
    lm, gated = accounting.token_flops(c)
    assert counter.get_total_flops() == 12 * (lm + gated + 3 * 4 * 32 * 12 / 2)
    _, resampler, keys = accounting.image_flops(c, accounting.meta_flamingo(c))
    assert resampler + keys == pytest.approx(once, rel=0.01)


def test_activations_are_what_autograd_keeps():
    torch.manual_seed(0)
    block, kept, seen = Block(32, 2).requires_grad_(False), 0, set()
    seen |= {p.data_ptr() for p in block.parameters()}

    def pack(x):
        nonlocal kept
        if x.untyped_storage().data_ptr() not in seen:
            seen.add(x.untyped_storage().data_ptr())
            kept += x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = block(torch.randn(1, 12, 32, requires_grad=True))
    assert out.requires_grad
    computed = accounting.kept(lambda: Block(32, 2), lambda b: b(torch.empty(1, 12, 32, requires_grad=True)), torch.float32, torch.float32)
    assert computed == pytest.approx(kept, rel=0.05)


def test_caches_are_those_of_generation():
    c = small_config()
    model = Flamingo(c)
    visual = model.visual_keys_values(model.resample(features=torch.randn(1, 2, 1, 9, model.vision.dim)))
    cache = answers.Cache(c, 1, c.n_context, 'cpu', torch.float32, visual)
    assert accounting.caches(c, torch.float32) == (sum(x.nbytes for x in cache.text), sum(x.nbytes for kv in visual for x in kv))


def test_sizes_of_ones_own_are_counted_and_no_papers():
    """Twice the layers: twice the blocks."""
    c = FlamingoConfig()
    grown = accounting.report('nano', {'lm_layer': 8, 'xattn_every': 2})
    model = accounting.meta_flamingo(FlamingoConfig(lm_layer=8, xattn_every=2))
    frozen = sum(p.numel() for p in model.lm.parameters())
    block = sum(p.numel() for p in model.lm.h[0].parameters())
    assert frozen == sum(p.numel() for p in accounting.meta_flamingo(c).lm.parameters()) + 4 * block
    line = next(line for line in grown.splitlines() if line.startswith('language model'))
    assert line.split()[2:] == accounting.big(frozen).split() and grown.startswith('nano, lm_layer=8, xattn_every=2: parameters')
    assert '-6.2%' in accounting.report('flamingo-80b') and '+' not in accounting.report('flamingo-80b', {'lm_layer': 40}).split('FLOPs')[0]
    with pytest.raises(ValueError, match='lm_dim=130'):
        accounting.report('nano', {'lm_dim': 130})


def test_the_report_is_printed_for_the_largest_without_allocating_it(capsys):
    out = accounting.report('flamingo-80b')
    fits = [line.split()[3:] for line in out.splitlines() if line.startswith('fits 80 GB')]
    assert '1,024 GPUs' in out and fits[1] == ['no', 'yes', 'yes', 'yes']  # in bfloat16: 288 GB of weights and optimizer, over 8


# ---------------------------------------------------------------------------------------------
# Precision, micro-batches, activation checkpointing: one process

SMALL = ['--device=cpu', '--dtype=float32', '--lm_layer=2', '--lm_dim=32', '--sizes=lm_head=2', '--sizes=xattn_head=2', '--sizes=xattn_head_dim=16', '--sizes=resampler_dim=32',
         '--sizes=resampler_head=2', '--sizes=resampler_head_dim=16', '--sizes=resampler_layer=1', '--n_latent=4', '--n_frame=2', '--sizes=text_dim=32', '--sizes=text_head=2', '--sizes=dim_embed=32',
         '--vision_batch=4', '--language_batch=4', '--language_tokens=32', '--n_token=96', '--n_image=6', '--batch=m3w=2', '--batch=align=2', '--ltip=',
         '--batch=vtp=2', '--vision_iters=20', '--language_iters=20', '--flamingo_iters=20', '--log_every=1', '--eval_every=5', '--eval_n=2',
         '--finetune_iters=4']


def small_run(out_dir, *arguments):
    config = configure(train.KEYS, [f'--out_dir={out_dir}', *SMALL, *arguments])
    check_values(config, train.KEYS)
    os.makedirs(out_dir, exist_ok=True)
    run = Run(config, train.KEYS)
    run.write_log = lambda: None
    return run


@pytest.fixture(scope='module')
def untrained(tmp_path_factory):
    """A folder with the first two stages, random weights."""
    folder = str(tmp_path_factory.mktemp('untrained'))
    run = small_run(folder)
    torch.manual_seed(0)
    run.save_stage(train.VisionStage(run))
    run.save_stage(train.LanguageStage(run))
    return folder


def flamingo_gradient(folder, *arguments, exact=False):
    """-> loss, gradient, stage. exact: in float64, up to the logits."""
    run = small_run(folder, *arguments)
    torch.manual_seed(0)
    stage = train.FlamingoStage(run)
    for layer in stage.module.gated:  # open the gates, or most gradients are zero
        open_gates(layer, 0.46, 0.46)
    if exact:
        see = stage.view
        stage.module.double()
        stage.view = lambda batch: {k: v.double() if v.is_floating_point() else v for k, v in see(batch).items()}
    losses, _ = train.gradients(run, stage, ['m3w'], 0)
    return losses['m3w'], torch.cat([p.grad.flatten() for p in stage.module.parameters() if p.requires_grad]), stage


def test_micro_batches_and_activation_checkpointing_change_nothing(untrained):
    loss, gradient, _ = flamingo_gradient(untrained, exact=True)
    for argument in ('--micro_batches=2', '--activation_checkpointing=True'):
        other_loss, other, _ = flamingo_gradient(untrained, argument, exact=True)
        assert other_loss == pytest.approx(loss, rel=192 * EPS), argument  # a float32 sum of at most 2 · 96 targets
        assert_near(other, gradient, 16 * EPS / torch.finfo(torch.float64).eps)  # a target's weight: a few float32 roundings
    a, b = (train.LanguageStage(small_run(untrained, f'--micro_batches={n}')) for n in (1, 2))
    b.module.load_state_dict(a.module.state_dict())
    whole, parts = (train.gradients(stage.run, stage, ['text'], 0)[0]['text'] for stage in (a, b))
    assert parts == pytest.approx(whole, rel=128 * EPS)  # a mean over 4 · 32 targets


def test_activation_checkpointing_keeps_less(untrained):
    def kept(*arguments):
        total = 0

        def pack(x):
            nonlocal total
            total += x.nbytes
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            run = small_run(untrained, *arguments)
            stage = train.LanguageStage(run)
            stage.losses(*stage.batches(['text'], 0))
        return total

    assert kept('--activation_checkpointing=True') < 0.75 * kept()


def test_bfloat16_keeps_no_float32_copy_of_what_is_frozen(untrained, monkeypatch):
    """Nor, on a CPU or where the model is narrow, does the stream lose bits."""
    assert frozen_dtype(torch.bfloat16, 'cpu', 768) is frozen_dtype(torch.float32, 'cuda', 768) is frozen_dtype(torch.bfloat16, 'cuda', 128) is torch.float32
    monkeypatch.setattr(train, 'frozen_dtype', lambda dtype, device, dim: frozen_dtype(dtype, 'cuda', 768))  # here as there
    loss, gradient, _ = flamingo_gradient(untrained)
    low_loss, low, stage = flamingo_gradient(untrained, '--dtype=bfloat16')
    # bfloat16 has eight bits, ε = 2⁻⁷: some ten roundings each may add up to 0.2, in the loss's mean to less.
    assert low_loss == pytest.approx(loss, rel=0.02) and F.cosine_similarity(low, gradient, dim=0) > 0.98
    stage.optimizer.step()
    for name, p in stage.module.named_parameters():
        frozen = name.startswith(('lm.', 'vision.'))
        assert p.dtype == (torch.bfloat16 if frozen else torch.float32) and (p.grad is None) == frozen, name
    assert {v.dtype for s in stage.optimizer.state.values() for v in s.values()} == {torch.float32}


def test_pretrained_weights_are_taken_as_they_are(tmp_path, tiny_nfnet):
    """language_iters=0 and vision_iters=0: the stages save the published weights; other sizes are refused by name."""
    write_vocabulary(tmp_path, [('t', 'h')])
    state = gpt2_state(n_vocab=258, n_context=64)
    torch.save(state, tmp_path / 'pytorch_model.bin')
    torch.save(timm_state(), tmp_path / 'nfnet.pth')
    given = [f'--gpt2={tmp_path}', f'--nfnet={tmp_path}/nfnet.pth', '--language_iters=0', '--vision_iters=0', '--lm_dim=128', '--n_context=64', '--vision=tiny',
             '--language_tokens=16', '--n_token=64']
    run = small_run(tmp_path / 'out', *given)
    for stage in (train.VisionStage(run), train.LanguageStage(run)):
        assert train.train_stage(run, stage, [])
        run.save_stage(stage)
    flamingo = train.FlamingoStage(run)
    torch.testing.assert_close(flamingo.module.lm.h[1].mlp.c_fc.weight, state['transformer.h.1.mlp.c_fc.weight'].T)
    assert torch.equal(flamingo.module.vision.stem[0].weight, timm_state()['stem.conv1.weight'])
    assert math.isfinite(train.gradients(run, flamingo, ['m3w'], 0)[0]['m3w'])
    with pytest.raises(BadInput, match='lm_layer=2 .this run: 3.; give --lm_layer=2'):
        train.LanguageStage(small_run(tmp_path / 'out', *given, '--lm_layer=3'))
    with pytest.raises(BadInput, match='give --vision=tiny'):
        train.VisionStage(small_run(tmp_path / 'out', *given, '--vision=F0'))
    with pytest.raises(BadInput, match='language_iters'):
        small_run(tmp_path / 'out', '--language_iters=0')


@pytest.mark.parametrize('name', ['gpt2', 'flamingo_3b', 'flamingo_9b', 'flamingo_80b'])
def test_configs_are_valid_and_can_be_dealt_out(name, monkeypatch):
    config = configure(train.KEYS, [os.path.join(ROOT, 'config', name + '.py')])
    check_values(config, train.KEYS)
    monkeypatch.setenv('TORCHELASTIC_RUN_ID', 'x')
    for n in (8, 64) if name == 'flamingo_80b' else (1, 8):
        monkeypatch.setenv('WORLD_SIZE', str(n))
        monkeypatch.setenv('RANK', '0')
        for key in ('vision_batch', 'language_batch', *('batch_' + source for source in train.SOURCES if getattr(config, source))):
            assert len(distributed.rows(getattr(config, key), key, config.micro_batches)) > 0


# ---------------------------------------------------------------------------------------------
# Two processes


def test_sharding_without_torchrun_is_one_clear_line(tmp_path):
    with pytest.raises(BadInput, match='torchrun --standalone'):
        small_run(tmp_path, '--shard=True')


def test_batches_that_cannot_be_dealt_out(monkeypatch):
    for name, value in (('TORCHELASTIC_RUN_ID', 'x'), ('WORLD_SIZE', '4'), ('RANK', '1')):
        monkeypatch.setenv(name, value)
    assert distributed.rows(8, 'batch=m3w') == range(2, 4)
    with pytest.raises(BadInput, match='--batch=m3w=6 cannot be divided by 4 processes'):
        distributed.rows(6, 'batch=m3w')
    with pytest.raises(BadInput, match='4 processes times 4 micro-batches'):
        distributed.rows(8, 'batch=m3w', 4)


def torchrun(*arguments, n=2):
    return subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={n}', os.path.abspath(__file__), *map(str, arguments)],
                          cwd=ROOT, capture_output=True, text=True, timeout=1200, env=os.environ | {'OMP_NUM_THREADS': '1'})


def losses(rows):
    return {(row['stage'], row['iter'], k): v for row in rows for k, v in row.items() if k.startswith('loss_')}


def train_all(out_dir, other=None, *arguments):
    """20 steps of each stage (4 of fine-tuning), and, from the 15th of `other`'s, the last 5 again -> [losses, losses], answers."""
    run = small_run(out_dir, *arguments)
    first, continued = {}, {}
    for name in train.STAGES:
        torch.manual_seed(0)
        stage = train.STAGES[name](run)
        stage.evaluate = dict  # what the stages say about themselves is tested elsewhere
        save = run.save_progress

        def keep_one(missing, i, stage):
            Run.save_progress(run, missing, i, stage)
            if i == 15 and distributed.rank() == 0:
                shutil.copy(run.path('training.pt'), run.path(f'{stage.name}.15.pt'))

        run.save_progress, run.rows = keep_one, []
        assert train.train_stage(run, stage, [name])
        run.save_progress = save
        run.save_stage(stage)
        first |= losses(run.rows)
        if other and name != 'finetune':
            continued |= go_on(run, name, f'{other}/{name}.15.pt')
    stage.asker.max_new_tokens = 4
    answers = [(a['prediction'], a['logprob']) for task, ways in (('naming', 2), ('caption', None))
               for a in measure(stage.asker, task, 1 if ways else 0, 2, ways)[2]]
    return [first, continued], answers


def go_on(run, name, path):
    """The last five steps of a stage, begun from somebody's fifteenth -> losses."""
    torch.manual_seed(1)
    stage = train.STAGES[name](run)
    stage.evaluate = dict
    run.rows = []
    assert train.train_stage(run, stage, [name], checkpoint.load(path, 'training'))
    return losses(run.rows)


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp('alone'))
    [first, _], answers = train_all(folder)
    return folder, first, answers


def drift(step, value):
    """How far `value` may be off after this many steps: each adds the roundings of one gradient, some hundred."""
    return step * 100 * EPS * max(1.0, abs(value))


@pytest.mark.parametrize('shard', [False, True])
def test_two_processes_are_one(alone, tmp_path, shard):
    """DDP and sharded: the losses of 20 steps of all stages, what it answers, and checkpoints that either continues."""
    folder, expected, answers = alone
    done = torchrun(tmp_path / 'out', folder, tmp_path / 'said.json', f'--shard={shard}')
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads((tmp_path / 'said.json').read_text())
    first, continued = ({(stage, i, k): v for stage, i, k, v in rows} for rows in said['losses'])
    assert len(first) == len(expected) == 20 * (1 + 1 + 3) + 4 * 3 and len(continued) == 5 * (1 + 1 + 3)
    for key, value in {**first, **{(*key, 'continued'): v for key, v in continued.items()}}.items():
        assert abs(value - expected[key[:3]]) < drift(key[1], value), key
    for (text, log_p), (expected_text, expected_log_p) in zip(said['answers'], answers):
        assert text == expected_text and abs(log_p - expected_log_p) < drift(24, log_p) + 4 * LOG_P
    run = small_run(folder)
    for name in ('vision', 'language', 'flamingo'):
        for key, value in go_on(run, name, tmp_path / f'out/{name}.15.pt').items():
            assert abs(value - expected[key]) < drift(key[1], value), ('alone again', key)
        a, b = (torch.load(f'{d}/{name}.pt', weights_only=True) for d in (folder, tmp_path / 'out'))
        kind = {'vision': 'contrastive', 'language': 'lm', 'flamingo': 'flamingo'}[name]
        assert {k: v.shape for k, v in a[kind].items()} == {k: v.shape for k, v in b[kind].items()}


def test_a_rank_that_dies_ends_the_run(tmp_path):
    begun = time.time()
    done = torchrun('die')
    assert done.returncode != 0 and 'rank 1 has had enough' in done.stderr
    assert time.time() - begun < 600  # the other one would wait for half an hour


def main():
    """The worker of torchrun."""
    if sys.argv[1] == 'die':
        distributed.begin('cpu', False)
        if distributed.rank() == 1:
            raise RuntimeError('rank 1 has had enough')
        distributed.barrier()
        return
    out_dir, other, file, *arguments = sys.argv[1:]
    both, answers = train_all(out_dir, other, *arguments)
    if distributed.rank() == 0:
        with open(file, 'w') as f:
            json.dump({'losses': [[[*key, value] for key, value in one.items()] for one in both], 'answers': answers}, f)
    distributed.end()


if __name__ == '__main__':
    main()
