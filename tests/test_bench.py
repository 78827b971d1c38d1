"""What bench.py counts is what a hand counts, and its rows say what they promise."""
import json
import math
import sys
import types

import pytest
import torch
from torch import nn

import bench
from kit.answers import generate
from kit.fast import packed
from kit.files import BadInput
from kit.measure import clock, peers
from xattn import GatedCrossAttention

TINY = ['--width=32', '--runs=1', '--device=cpu', '--batch=m3w=1 align=1 ltip=1 vtp=1', '--vision_batch=2',
        '--language_batch=2']
KEYS = {'what', 'who', 'images', 'ms', 'tokens_per_s', 'peak_mib', 'of_peak_flops'}


def run(monkeypatch, tmp_path, *arguments):
    """bench.py with these arguments -> its rows"""
    monkeypatch.setattr(sys, 'argv', ['bench.py', *TINY, f'--out={tmp_path}/rows.json', *arguments])
    bench.main()
    return json.loads((tmp_path / 'rows.json').read_text())


# ---------------------------------------------------------------------------------------------
# Counting


def test_flops_of_a_gated_layer_are_those_of_its_matrices():
    """T tokens through q, out and the two matrices of the MLP; N·R visual tokens through keys and values; T·R
    scores and as many weights, since each token meets one image. Backward: twice that for weights and inputs
    (and the attention kernel computes its scores once more)."""
    t, n, r, d, h = 12, 3, 2, 8, 2
    layer = GatedCrossAttention(d, n_head=h)
    y, visual = torch.randn(1, t, d, requires_grad=True), torch.randn(1, n, r, d, requires_grad=True)
    index = bench.image_tags(t, n).cumsum(0)[None]
    linear, attention = 2 * (t * d * d * (1 + 1 + 4 + 4) + n * r * d * 2 * d), 2 * 2 * t * r * d
    with torch.no_grad():
        assert clock.cost(lambda: layer(y, visual, index), 'cpu')[0] == linear + attention
    both_ways = clock.cost(lambda: layer(y, visual, index).sum().backward(), 'cpu')[0]
    assert both_ways == 3 * linear + attention + attention // 2 * 5


def test_flops_of_a_grouped_convolution():
    """Each output number is a sum over 3·3·(channels of a group)."""
    conv = nn.Conv2d(8, 16, 3, padding=1, groups=4)
    with torch.no_grad():
        assert clock.cost(lambda: conv(torch.zeros(2, 8, 5, 7)), 'cpu')[0] == 2 * (2 * 16 * 5 * 7) * (9 * 2)


def test_peak_is_the_most_that_was_alive_at_one_time():
    """What was there before, views and work in place cost nothing; what is let go no longer counts."""
    x = torch.ones(1000)

    def call():
        a = x.view(10, 100) + 1      # 4000 bytes
        b = a[:5] * 2                 # 2000 more
        del a
        b.add_(1)
        torch.cat([b.flatten(), x[:250]])  # 2000 + 3000

    assert clock.cost(call, 'cpu')[1] == 6000


@pytest.mark.skipif(packed.OPERATOR is None, reason='this build of PyTorch has no oneDNN')
def test_packed_products_count_as_products_and_their_weights_as_memory():
    weight, x = torch.randn(32, 16), torch.randn(4, 16)
    flops, held = clock.cost(lambda: packed.product(weight, None, 4)(x), 'cpu')
    assert flops == 2 * 4 * 16 * 32 and held >= 4 * (32 * 16 + 4 * 32)


def test_implementations_take_turns():
    order = []
    calls = {who: lambda who=who: order.append(who) or 7 for who in 'ab'}
    times = clock.take_turns(calls, 'cpu', 4, 60)
    assert order == ['a', 'b'] * 6  # two warm-ups, then four
    assert {who: [n for _, n in t] for who, t in times.items()} == {'a': [7] * 4, 'b': [7] * 4}


# ---------------------------------------------------------------------------------------------
# The script


def test_every_row_is_there_and_says_what_it_should(monkeypatch, tmp_path, capsys):
    rows = run(monkeypatch, tmp_path)
    assert all(set(row) == KEYS and row['who'] == 'ours' for row in rows)
    found = [(row['what'], row['images']) for row in rows]
    assert found[:6] == [(what, n) for what in ('xattn_forward', 'xattn_train') for n in (1, 5, 32)]
    assert [what for what, _ in found[6:]] == list(bench.NAMES[2:])
    for row in rows:
        assert row['ms'] > 0 and math.isfinite(row['ms'])
        if not row['what'].startswith('data'):
            assert row['peak_mib'] > 0 and 0 < row['of_peak_flops'] < 2, row
        of_something_else = row['what'] in ('resampler_train', 'vision', 'episode', 'data_vision')
        assert (row['tokens_per_s'] is None) == of_something_else, row
    cached = next(row for row in rows if row['what'] == 'generate_cached')
    assert cached['tokens_per_s'] == pytest.approx(8 * 64 / cached['ms'] * 1e3, rel=1e-6)
    assert 'GFLOP/s' in capsys.readouterr().out


def test_data_is_held_against_what_the_model_uses_up(monkeypatch, tmp_path, capsys):
    """A step is its own reading and the model's work: three times as fast as the model is a quarter of it."""
    rows = run(monkeypatch, tmp_path, '--what=data_l', '--runs=3')
    ms = {row['what']: row['ms'] for row in rows}
    said = [line for line in capsys.readouterr().out.splitlines() if 'uses it up' in line]
    assert set(ms) == {'step_language', 'data_language'} and len(said) == 1
    times = (ms['step_language'] - ms['data_language']) / ms['data_language']
    assert float(said[0].split('read ')[1].split(' ×')[0]) == pytest.approx(times, abs=0.06)


def test_peers_that_can_be_imported_are_measured_beside_ours(monkeypatch, tmp_path, capsys):
    class Block(nn.Module):
        def __init__(self, dim, **sizes):
            super().__init__()
            self.linear = nn.Linear(dim, dim)

        def forward(self, y, visual, media_locations):
            assert media_locations.shape == y.shape[:2] and (media_locations.sum(1) == visual.shape[1]).all()
            return self.linear(y)

    def missing():
        raise ImportError("No module named 'transformers'")

    module = types.SimpleNamespace(GatedCrossAttentionBlock=Block)
    monkeypatch.setitem(sys.modules, 'flamingo_pytorch', module)
    monkeypatch.setattr(peers, 'idefics', missing)
    monkeypatch.setattr(peers, 'open_flamingo_layers', missing)
    rows = run(monkeypatch, tmp_path, '--peers=True', '--what=xattn_forward')
    both = 'ours', 'flamingo-pytorch'
    assert [(row['who'], row['images']) for row in rows] == [(who, n) for n in (1, 5, 32) for who in both]
    said = capsys.readouterr().out.splitlines()
    assert "not measured beside idefics: No module named 'transformers' (pip install transformers)" in said
    ratios = [line for line in said if 'the fastest peer' in line]
    assert len(ratios) == 3 and all('flamingo-pytorch' in line for line in ratios)


def test_a_row_that_does_not_exist_is_refused(monkeypatch, tmp_path):
    with pytest.raises(BadInput, match='xattn_backward.*xattn_train'):
        run(monkeypatch, tmp_path, '--what=xattn_backward')


@pytest.mark.parametrize('argument', ['--runs=0', '--width=40', '--width=0'])
def test_sizes_that_make_no_sense_are_refused(monkeypatch, tmp_path, argument):
    with pytest.raises(BadInput, match=argument):
        run(monkeypatch, tmp_path, argument)


def test_small_model_writes_all_its_words_and_sees_its_pictures():
    """Otherwise tokens/s would be those of something else."""
    small = bench.SmallModel(16, 'cpu', {})
    answers = generate(small.model.eval(), small.tokens, small.length, small.index, small.n_new, beam_size=1,
                       media=small.media)
    assert [len(ids) for ids, _ in answers] == [64] * 8
    assert (small.tokens == small.model.image).sum() == 8 * 5 and small.tokens.shape == (8, 60)
    assert (small.targets != -100).sum() == 8 * 55  # all but the tags
