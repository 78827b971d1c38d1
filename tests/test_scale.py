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
from gates import open_gates
from kit import answers
from kit.cli import configure
from kit.device import frozen_dtype
from kit.fast.kept import keeping
from kit.files import BadInput
from kit.measure import accounting
from kit.run import begin, distributed
from kit.run.keys import check_values, SOURCES
from kit.run.parts import in_parts
from kit.run.run import Run
from kit.tasks.results import measure
from kit.weights import checkpoint
from model import Block, Flamingo, FlamingoConfig, PRESETS
from rounding import EPS, LOG_P, assert_near
from test_vocabulary import write_vocabulary
from test_weights import gpt2_state, timm_state, tiny_nfnet  # noqa: F401

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
    assert ours['vision encoder'] == pytest.approx(435.3e6, rel=1e-3)
    assert ours['resampler'] == pytest.approx(194e6, rel=3e-3)
    n_gated = {'flamingo-3b': 24, 'flamingo-9b': 10, 'flamingo-80b': 12}[preset]
    assert len(model.gated) == n_gated
    assert ours['gated layers'] == pytest.approx(12 * c.lm_dim ** 2 * n_gated, rel=4e-3)
    lm = 12 * c.lm_dim ** 2 * c.lm_layer + (32000 + 2048) * c.lm_dim
    assert ours['language model'] == pytest.approx(lm, rel=1e-3)
    n = sum(p.numel() for p in model.parameters())
    assert ours['total'] == n - model.vision.projection.weight.numel()
    assert (c.lm_layer, c.lm_dim, c.lm_head) == {'flamingo-3b': (24, 2048, 16), 'flamingo-9b': (40, 4096, 32),
                                                 'flamingo-80b': (80, 8192, 64)}[preset]


def test_why_the_papers_language_models_are_larger():
    """13 D² a layer and 32,000 words: its 1.4 B, 7.1 B (of 32 layers, not 40) and 70 B."""
    for n_layer, dim, paper in ((24, 2048, 1.4e9), (32, 4096, 7.1e9), (80, 8192, 70e9)):
        assert 13 * dim ** 2 * n_layer + 32000 * dim == pytest.approx(paper, rel=0.02)
    assert 12 * 4096 ** 2 * 8 == pytest.approx(1.6e9, rel=0.01)


def small_config(**changes):
    return FlamingoConfig(**dict(n_vocab=50, bos=48, pad=49, lm_layer=3, lm_dim=32, lm_head=2, n_context=40,
                                 xattn_every=2, xattn_head=2, xattn_head_dim=8,
                                 resampler_layer=1, resampler_dim=16, resampler_head=2, resampler_head_dim=8,
                                 n_latent=4, n_token=12, n_image=2) | changes)


def test_token_flops_are_what_torch_counts():
    """Every matrix product of a real forward. The attention among all pairs counts L keys a token where the
    formula, causal, has L/2."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode
    c = small_config(visual_dim=24)
    model = Flamingo(c).eval()
    tokens, features = torch.zeros(1, 12, dtype=torch.long), torch.randn(1, 1, 1, 9, model.vision.dim)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        visual = model.resample(features)
        fast = keeping(model, visual)
    cache = answers.Cache(c, 1, 12, 'cpu', torch.float32, visual)
    once = counter.get_total_flops()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.head(answers.read(fast, cache, tokens, torch.ones_like(tokens)))
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
    computed = accounting.kept(lambda: Block(32, 2), lambda b: b(torch.empty(1, 12, 32, requires_grad=True)),
                               torch.float32, torch.float32)
    assert computed == pytest.approx(kept, rel=0.05)


def test_caches_are_those_of_generation():
    c = small_config()
    model = Flamingo(c)
    visual = model.resample(torch.randn(1, 2, 1, 9, model.vision.dim))
    cache = answers.Cache(c, 1, c.n_context, 'cpu', torch.float32, visual)
    assert accounting.caches(c, torch.float32) == (sum(x.nbytes for x in cache.text), cache.visual.nbytes)


def test_sizes_of_ones_own_are_counted_and_no_papers():
    """Eight blocks are that many more than by default."""
    c = FlamingoConfig()
    grown = accounting.report('nano', {'lm_layer': 8, 'xattn_every': 2})
    model = accounting.meta_flamingo(FlamingoConfig(lm_layer=8, xattn_every=2))
    frozen = sum(p.numel() for p in model.lm.parameters())
    block = sum(p.numel() for p in model.lm.h[0].parameters())
    by_default = sum(p.numel() for p in accounting.meta_flamingo(c).lm.parameters())
    assert frozen == by_default + (8 - c.lm_layer) * block
    line = next(line for line in grown.splitlines() if line.startswith('language model'))
    assert line.split()[2:] == accounting.big(frozen).split()
    assert grown.startswith('nano, lm_layer=8, xattn_every=2: parameters')
    assert '-6.2%' in accounting.report('flamingo-80b')
    assert '+' not in accounting.report('flamingo-80b', {'lm_layer': 40}).split('FLOPs')[0]
    with pytest.raises(ValueError, match='lm_dim=130'):
        accounting.report('nano', {'lm_dim': 130})


def test_the_report_is_printed_for_the_largest_without_allocating_it(capsys):
    out = accounting.report('flamingo-80b')
    fits = [line.split()[3:] for line in out.splitlines() if line.startswith('fits 80 GB')]
    # In bfloat16: 288 GB of weights and optimizer, over 8.
    assert '1,024 GPUs' in out and fits[1] == ['no', 'yes', 'yes', 'yes']


# ---------------------------------------------------------------------------------------------
# Precision, micro-batches, activation checkpointing: one process

SMALL = ['--device=cpu', '--dtype=float32', '--lm_layer=2', '--lm_dim=32', '--sizes=lm_head=2',
         '--sizes=xattn_head=2', '--sizes=xattn_head_dim=16', '--sizes=resampler_dim=32',
         '--sizes=resampler_head=2', '--sizes=resampler_head_dim=16', '--sizes=resampler_layer=1',
         '--n_latent=4', '--n_frame=2', '--sizes=text_dim=32', '--sizes=text_head=2', '--sizes=dim_embed=32',
         '--vision_batch=4', '--language_batch=4', '--language_tokens=32', '--n_token=96', '--n_image=6',
         '--batch=m3w=2', '--batch=align=2', '--ltip=',
         '--batch=vtp=2', '--vision_iters=20', '--language_iters=20', '--flamingo_iters=20', '--log_every=1',
         '--eval_every=5', '--eval_n=2',
         '--finetune_iters=4']


def small_run(out_dir, *arguments, small=SMALL):
    config = configure(train.KEYS, [f'--out_dir={out_dir}', *small, *arguments])
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
        pictures = stage.pictures
        stage.module.double()
        stage.pictures = lambda batch: {k: v.double() if v.is_floating_point() else v
                                        for k, v in pictures(batch).items()}
    losses, _ = in_parts(train.gradients, run, stage, stage.data.read(['m3w'], 0))
    gradient = torch.cat([p.grad.flatten() for p in stage.module.parameters() if p.requires_grad])
    return losses['m3w'], gradient, stage


def test_micro_batches_and_activation_checkpointing_change_nothing(untrained):
    loss, gradient, _ = flamingo_gradient(untrained, exact=True)
    for argument in ('--micro_batches=2', '--activation_checkpointing=True'):
        other_loss, other, _ = flamingo_gradient(untrained, argument, exact=True)
        # A float32 sum of at most 2 · 96 targets.
        assert other_loss == pytest.approx(loss, rel=192 * EPS), argument
        # A target's weight is off by a few float32 roundings.
        assert_near(other, gradient, 16 * EPS / torch.finfo(torch.float64).eps)
    a, b = (train.LanguageStage(small_run(untrained, f'--micro_batches={n}')) for n in (1, 2))
    b.module.load_state_dict(a.module.state_dict())
    whole, parts = (in_parts(train.gradients, s.run, s, s.data.read(['text'], 0))[0]['text']
                    for s in (a, b))
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
            stage.losses(stage.data.batch(stage.data.read(['text'], 0)))
        return total

    assert kept('--activation_checkpointing=True') < 0.75 * kept()


def test_bfloat16_keeps_no_float32_copy_of_what_is_frozen(untrained, monkeypatch):
    """Nor, on a CPU or where the model is narrow, does the stream lose bits."""
    for case in ((torch.bfloat16, 'cpu', 768), (torch.float32, 'cuda', 768), (torch.bfloat16, 'cuda', 128)):
        assert frozen_dtype(*case) is torch.float32
    # Here as on a GPU.
    monkeypatch.setattr(begin, 'frozen_dtype', lambda dtype, device, dim: frozen_dtype(dtype, 'cuda', 768))
    loss, gradient, _ = flamingo_gradient(untrained)
    low_loss, low, stage = flamingo_gradient(untrained, '--dtype=bfloat16')
    # bfloat16 has eight bits, ε = 2⁻⁷: some ten roundings each may add up to 0.2, in the loss's mean to less.
    assert low_loss == pytest.approx(loss, rel=0.02) and F.cosine_similarity(low, gradient, dim=0) > 0.98
    stage.optimizer.step()
    for name, p in stage.module.named_parameters():
        frozen = name.startswith(('lm.', 'vision.'))
        assert p.dtype == (torch.bfloat16 if frozen else torch.float32) and (p.grad is None) == frozen, name
    assert {v.dtype for s in stage.optimizer.state.values() for v in s.values()} == {torch.float32}


def published_run(out_dir, *arguments):
    """As small_run, with nothing said about the sizes of the language model."""
    of_lm = ('--lm_layer', '--lm_dim', '--sizes=lm_head')
    return small_run(out_dir, *arguments, small=[key for key in SMALL if not key.startswith(of_lm)])


def test_pretrained_weights_are_taken_as_they_are(tmp_path, tiny_nfnet):
    """language_iters=0 and vision_iters=0: the stages save the published weights. Their sizes and their
    words come from the files; keys that say otherwise are refused by name."""
    write_vocabulary(tmp_path, [('t', 'h')])
    state = gpt2_state(n_vocab=264, n_context=64)  # 258 words; rows that make the number round
    torch.save(state, tmp_path / 'pytorch_model.bin')
    torch.save(timm_state(), tmp_path / 'nfnet.pth')
    config = {'n_head': 4, 'layer_norm_epsilon': 1e-3}
    (tmp_path / 'config.json').write_text(json.dumps(config))
    given = [f'--gpt2={tmp_path}', f'--nfnet={tmp_path}/nfnet.pth', '--language_iters=0', '--vision_iters=0',
             '--language_tokens=16', '--n_token=64']
    run = published_run(tmp_path / 'out', *given)
    c = run.model_config
    assert (c.n_vocab, c.lm_layer, c.lm_dim, c.lm_head, c.lm_eps, c.n_context) == (264, 2, 128, 4, 1e-3, 64)
    assert c.vision == 'tiny' and run.tokenizer.image == 264
    for stage in (train.VisionStage(run), train.LanguageStage(run)):
        assert train.train_stage(run, stage)
        run.save_stage(stage)
    flamingo = train.FlamingoStage(run)
    lm = flamingo.module.lm
    torch.testing.assert_close(lm.h[1].mlp.c_fc.weight, state['transformer.h.1.mlp.c_fc.weight'].T)
    assert lm.h[0].attn.n_head == 4 and lm.h[1].ln_2.eps == lm.ln_f.eps == 1e-3
    assert torch.equal(flamingo.module.vision.stem[0].weight, timm_state()['stem.conv1.weight'])
    losses, _ = in_parts(train.gradients, run, flamingo, flamingo.data.read(['m3w'], 0))
    assert math.isfinite(losses['m3w'])
    # The same is fine.
    published_run(tmp_path / 'out', *given, '--lm_layer=2', '--vision=tiny', '--sizes=lm_head=4')
    for key, message in {'--lm_layer=3': 'has lm_layer=2: leave --lm_layer=3 out',
                         '--sizes=lm_head=2': 'has lm_head=4: leave --sizes=lm_head=2 out',
                         '--n_context=512': 'has n_context=64',
                         '--vision=F0': 'nfnet.pth has vision=tiny'}.items():
        with pytest.raises(BadInput, match=message):
            published_run(tmp_path / 'out', *given, key)
    with pytest.raises(BadInput, match='has 264 words, and --tokenizer=.*other.tiktoken 259'):
        run.tokenizer.save(tmp_path / 'other.tiktoken')
        published_run(tmp_path / 'out', *given, f'--tokenizer={tmp_path}/other.tiktoken')
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
        for key in ('vision_batch', 'language_batch',
                    *('batch_' + source for source in SOURCES if getattr(config, source))):
            assert len(distributed.mine(getattr(config, key), key, config.micro_batches)) > 0


# ---------------------------------------------------------------------------------------------
# Two processes


def test_sharding_without_torchrun_is_one_clear_line(tmp_path):
    with pytest.raises(BadInput, match='torchrun --standalone'):
        small_run(tmp_path, '--shard=True')


def test_batches_that_cannot_be_dealt_out(monkeypatch):
    for name, value in (('TORCHELASTIC_RUN_ID', 'x'), ('WORLD_SIZE', '4'), ('RANK', '1')):
        monkeypatch.setenv(name, value)
    assert distributed.mine(8, 'batch=m3w') == range(2, 4)
    with pytest.raises(BadInput, match='--batch=m3w=6 cannot be divided by 4 processes'):
        distributed.mine(6, 'batch=m3w')
    with pytest.raises(BadInput, match='4 processes times 4 micro-batches'):
        distributed.mine(8, 'batch=m3w', 4)


def torchrun(*arguments, n=2):
    return subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone',
                           f'--nproc_per_node={n}', os.path.abspath(__file__), *map(str, arguments)],
                          cwd=ROOT, capture_output=True, text=True, timeout=1200,
                          env=os.environ | {'OMP_NUM_THREADS': '1'})


def losses(rows):
    return {(row['stage'], row['iter'], k): v for row in rows for k, v in row.items()
            if k.startswith('loss_')}


def train_all(out_dir, other=None, *arguments):
    """20 steps of each stage (4 of fine-tuning), and, from the 15th of `other`'s, the last 5 again ->
    [losses, losses], answers."""
    run = small_run(out_dir, *arguments)
    first, continued = {}, {}
    for name in train.STAGES:
        torch.manual_seed(0)
        stage = train.STAGES[name](run)
        stage.evaluate = dict  # what the stages say about themselves is tested elsewhere
        save = run.save_progress

        def keep_one(i, stage=None):
            Run.save_progress(run, i, stage)
            if i == 15 and distributed.rank() == 0:
                shutil.copy(run.path('training.pt'), run.path(f'{stage.name}.15.pt'))

        run.save_progress, run.log = keep_one, []
        run.missing = [name]
        assert train.train_stage(run, stage)
        run.save_progress = save
        run.save_stage(stage)
        first |= losses(run.log)
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
    run.log = []
    run.missing, run.progress = [name], checkpoint.load(path, 'training')
    assert train.train_stage(run, stage)
    return losses(run.log)


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp('alone'))
    [first, _], answers = train_all(folder)
    return folder, first, answers


def drift(step, value):
    """How far `value` may be off after this many steps: each adds the roundings of one gradient, some
    hundred."""
    return step * 100 * EPS * max(1.0, abs(value))


@pytest.mark.parametrize('shard', [False, True])
def test_two_processes_are_one(alone, tmp_path, shard):
    """DDP and sharded: the losses of 20 steps of all stages, what it answers, and checkpoints that either
    continues."""
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
            json.dump({'losses': [[[*key, value] for key, value in one.items()] for one in both],
                       'answers': answers}, f)
    distributed.end()


if __name__ == '__main__':
    main()
