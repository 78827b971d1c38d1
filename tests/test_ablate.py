"""python ablate.py: cells are trained once and go on where they stopped; the table is what a hand makes of
them."""
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields

import pytest

import train
from kit import masked, variants
from kit.ablations import jobs, report, rows, tuning
from kit.cli import configure
from kit.files import BadInput
from kit.sources.base import FolderSpec
from kit.sources.forms import open_folder
from model import Flamingo, FlamingoConfig
from resampler import PerceiverResampler, ResamplerLayer
from test_end_to_end import ROOT, run
from xattn import GatedCrossAttention

TINY = ['--vision_iters=2', '--language_iters=2', '--vision_batch=4', '--language_batch=1',
        '--batch=m3w=2 align=1 ltip=1 vtp=1', '--device=cpu', '--eval_n=1', '--n_token=128']


def test_a_part_that_was_edited_makes_another_cell():
    """What counts are the files of the model's class and of its parts, inherited or its own, and so the
    layers beside them."""
    class Edited(PerceiverResampler):
        pass

    class Mine(Flamingo):
        Resampler = Edited

    models = (Flamingo, Mine, variants.NoTanhGate, masked.MaskedSystem)
    assert len({jobs.source_of(model) for model in models}) == len(models)
    for part in (Mine, Edited, Flamingo, PerceiverResampler, GatedCrossAttention, ResamplerLayer):
        assert inspect.getsource(part) in jobs.source_of(Mine)


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory):
    out = str(tmp_path_factory.mktemp('ablate'))
    for stage in ('vision', 'language'):
        run('train.py', f'--stage={stage}', f'--out_dir={out}', *TINY)
    return out


@pytest.fixture
def out(checkpoints, tmp_path):
    return link(checkpoints, tmp_path / 'out')


def link(checkpoints, folder):
    """A new folder with the two checkpoints."""
    os.makedirs(folder)
    for name in ('vision.pt', 'language.pt'):
        os.link(os.path.join(checkpoints, name), os.path.join(folder, name))
    return str(folder)


def rows_of(out):
    return json.load(open(os.path.join(out, 'ablations.json')))


def test_the_masked_system_is_a_row_like_others(out):
    """Its losses are of three kinds, not of sources, and its pictures take places among the words."""
    run('ablate.py', '--rows=masked', '--seeds=1', '--n=2', '--flamingo_iters=2', *TINY, f'--out_dir={out}')
    found = {r['task'] for r in rows_of(out) if r['row'] == 'masked'}
    assert found == {'caption', 'question', 'clip_caption', 'clip_question', 'naming', 'overall'}


def test_a_finished_cell_is_not_trained_again(out):
    command = ['--rows=baseline,one_stream', '--seeds=1', '--n=2', '--flamingo_iters=2', *TINY,
               f'--out_dir={out}']
    printed = run('ablate.py', *command)
    first = rows_of(out)
    assert {(r['row'], r['task']) for r in first} == {
        (row, task) for row in ('baseline', 'one_stream')
        for task in ('caption', 'question', 'clip_caption', 'clip_question', 'naming', 'overall')}
    assert all(r['low'] <= r['value'] <= r['high'] and r['seed'] == 0 and r['steps'] == 2 for r in first)
    overall = {r['row']: r['value'] for r in first if r['task'] == 'overall'}
    of_tasks = [r['value'] for r in first if r['row'] == 'one_stream' and r['task'] != 'overall']
    assert overall['one_stream'] == pytest.approx(sum(of_tasks) / 5)
    assert 'one_stream' in printed and os.listdir(os.path.join(out, 'cells')) == []
    assert os.path.exists(os.path.join(out, 'ablations.png'))
    assert run('ablate.py', *command) == printed
    assert rows_of(out) == first  # the times of their steps, too

    # Another number of steps makes other cells. Both are kept, and no table mixes the two.
    printed = run('ablate.py', *command, '--rows=baseline', '--flamingo_iters=1')
    after = rows_of(out)
    assert after[:len(first)] == first and {r['steps'] for r in after[len(first):]} == {1}
    assert len({r['made_of'] for r in after if r['row'] == 'baseline'}) == 2
    assert 'baseline' in printed and 'one_stream' not in printed


def test_merged_pairs_train_the_encoders(tmp_path):
    """Both sources as one batch: the only row whose batches PairData does not make by itself."""
    run('ablate.py', '--rows=contrastive_merged', '--seeds=1', '--n=2', *TINY, f'--out_dir={tmp_path}')
    [found] = rows_of(str(tmp_path))
    assert (found['row'], found['task'], found['steps']) == ('contrastive_merged', 'zero_shot', 2)


def test_an_interrupted_cell_goes_on(checkpoints, out, tmp_path):
    """Stopped by a polite kill and given again, it comes to the numbers of a run that nobody stopped."""
    command = ['--rows=text_pretrained', '--seeds=1', '--n=2', '--flamingo_iters=40', *TINY]
    whole = link(checkpoints, tmp_path / 'whole')
    run('ablate.py', *command, f'--out_dir={whole}')
    process = subprocess.Popen([sys.executable, 'ablate.py', *command, f'--out_dir={out}'], cwd=ROOT,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = os.path.join(out, 'cells', 'text_pretrained-0', 'log.txt')
    deadline = time.time() + 120
    while time.time() < deadline and not (os.path.exists(log) and re.search(rb' ([5-9]|1[0-9])/40', open(log, 'rb').read())):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert os.path.exists(os.path.join(out, 'cells', 'text_pretrained-0', 'training.pt'))
    run('ablate.py', *command, f'--out_dir={out}')
    values = lambda out: [(r['task'], r['value']) for r in rows_of(out) if r['row'] == 'text_pretrained']
    assert values(out) == values(whole)


def test_a_mistake_is_one_line(out, tmp_path):
    assert "did you mean 'vanilla'" in run('ablate.py', '--rows=vanila', code=2)
    assert 'python train.py --stage=vision' in run('ablate.py', f'--out_dir={tmp_path}', code=2)
    said = run('ablate.py', '--rows=every_4th', '--lm_layer=3', f'--out_dir={out}', code=2)
    assert 'every_4th' in said and '3 blocks' in said


def config(*arguments):
    keys = {'n': (200, '')} | train.KEYS
    return configure(keys, list(arguments))


@pytest.mark.parametrize('row, arguments, why', [
    ('small_encoder', ['--vision=F0'], 'no encoder smaller'),
    ('vit', ['--image_size=50'], 'patches'),
    ('one_middle', ['--lm_layer=1'], 'blocks'),
    ('every_2nd', ['--xattn_every=2'], 'default')])
def test_a_row_that_does_not_fit_says_why(row, arguments, why):
    c = jobs.resolved(config(*arguments))
    [found] = rows.chosen(row, c)
    with pytest.raises(BadInput, match=f'--rows={row}.*{why}'):
        rows.sizes_of(found, c)


@pytest.mark.parametrize('arguments', [[], ['--sizes=resampler_layer=4']])
def test_half_a_resampler_has_half_of_the_parameters(arguments):
    """Half of the layers, or three quarters of a single one's width; what comes out is as wide as ever."""
    c = jobs.resolved(config(*arguments))
    [row] = rows.chosen('resampler_small', c)
    sizes = {f.name: getattr(c, f.name) for f in fields(FlamingoConfig) if hasattr(c, f.name)}
    whole, small = (Flamingo(FlamingoConfig(**sizes | keys)) for keys in ({}, rows.sizes_of(row, c)))
    count = lambda model: sum(p.numel() for p in model.resampler.layers.parameters())
    assert 0.45 < count(small) / count(whole) < 0.65
    assert small.gated[0].to_kv.weight.shape == whole.gated[0].to_kv.weight.shape


def test_of_all_rows_those_that_fit_are_trained():
    c = jobs.resolved(config('--lm_layer=3', '--image_size=50'))
    fit, reasons = rows.fitting(rows.ROWS, c)
    left_out = [row.name for row in rows.ROWS if row not in fit]
    assert left_out == ['every_4th', 'vit'] and len(reasons) == 2
    assert 'every_4th' in str(reasons[0])


def test_rows_that_read_less_are_given_twice():
    c = config('--batch=m3w=24 align=8 ltip=16 vtp=4')
    found = {row.name: row for row in rows.all_rows(c)}
    assert found['round_robin_longer'].more == 4                        # one of four sources a step
    assert found['no_pages_longer'].more == pytest.approx(52 / 28)
    assert found['no_pairs_longer'].more == pytest.approx(52 / 28)
    assert found['contrastive_ltip_longer'].more == found['contrastive_round_robin_longer'].more == 2
    assert 'merged_longer' not in found and 'baseline_longer' not in found


def test_equal_trained_parameters_of_one_stream():
    """Its resampler has as many more layers as make up for the gated layers: at nano, whose widths are all
    128 and heads 4 x 32, a gated layer has exactly a resampler layer's matrices."""
    c = config()
    [row] = rows.chosen('one_stream', c)
    assert rows.sizes_of(row, c)['resampler_layer'] == c.resampler_layer + c.lm_layer


def test_examples_of_a_task_are_a_folder_like_any_other(tmp_path):
    folder = tuning.write('statement', 3, str(tmp_path / 'examples'), seed=0)
    lines = [json.loads(line) for line in open(os.path.join(folder, 'metadata.jsonl'))]
    assert len(lines) == 3 and all('Is it true?' in line['prompt'] for line in lines)
    assert {line['text'] for line in lines} <= {'yes', 'no'}
    pairs = open_folder(folder, FolderSpec(), 8, split=None)
    assert len(pairs) == 3 and pairs.items[0].prompt == lines[0]['prompt']


def test_table_of_ways_to_tune():
    found = [result(f'{task}_{way}_{n}', 0, value, task) | {'steps': 10, 'parameters': 2000}
             for task, add in (('statement', 0.0), ('dialogue', 0.2))
             for way, n, value in (('prompting', 4, 0.5 + add), ('prompt', 4, 0.6 + add),
                                   ('prompt', 16, 0.7 + add))]
    values, cost = tuning.means(found)
    assert values == {'prompting': {4: pytest.approx(0.6)},
                      'prompt': {4: pytest.approx(0.7), 16: pytest.approx(0.8)}}
    assert cost['prompt'] == (2000, 5.0)
    assert 'prompt, 2.0 k, 5 s' in tuning.table(found)
    assert tuning.chart(found).width == 720


def result(row, seed, value, task='overall', n=1000):
    return {'task': task, 'row': row, 'seed': seed, 'value': value, 'low': 0, 'high': 1, 'n': n,
            'metric': 'accuracy', 'steps': 1, 'parameters': 1, 'step_time': 0.5, 'made_of': ''}


def test_changes_and_intervals():
    """Three seeds, differences of -2, -4 and -6 points: mean -4, standard error 2/√3, times 4.303."""
    found = [result('baseline', s, v) for s, v in enumerate((0.80, 0.82, 0.84))]
    found += [result('vanilla', s, v) for s, v in enumerate((0.78, 0.78, 0.78))]
    found += [result('mlp', 0, 0.82)]                                   # one seed, better than the default
    everything = rows.all_rows(config())
    by_row = {e['row']: e for e in report.summary(found, everything)}
    vanilla = by_row['vanilla']
    assert vanilla['change'] == pytest.approx(-4) and vanilla['paper'] == pytest.approx(66.9 - 70.7)
    half = 4.303 * 2 / 3 ** 0.5
    assert (vanilla['low'], vanilla['high']) == pytest.approx((-4 - half, -4 + half))
    mlp = by_row['mlp']
    assert mlp['change'] == pytest.approx(2)
    half = 196 * (0.82 * 0.18 / 1000 + 0.8 * 0.2 / 1000) ** 0.5        # of the episodes alone
    assert (mlp['low'], mlp['high']) == pytest.approx((2 - half, 2 + half))
    said = report.agreement(list(by_row.values()))
    assert said.startswith('1 of 2 rows')
    assert 'at least 4 points, 0 of 1' in said                          # mlp: −4.1 there
    assert report.chart(list(by_row.values())).width == 760


def test_damaged_results_are_refused(tmp_path):
    path = tmp_path / 'ablations.json'
    path.write_text('[{"row": "baseline"}]')
    with pytest.raises(BadInput, match='damaged'):
        jobs.read_rows(str(path))
