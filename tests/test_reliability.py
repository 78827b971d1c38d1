"""Nothing lost, nothing let in: runs killed at any instant end as if nothing had happened, and no file,
prompt or key does more than give one clear line."""
import base64
import contextlib
import copy
import csv
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import tarfile
import time
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import bench
import evaluate
import look
import sample
import train
from data import Document, encode
from kit.episode import Episode
from kit import bpe
from kit.cli import command, configure, flat, spell
from kit.files import BadInput, BadItem, one_line, only_run, whole_file
from kit.sources.base import Report
from kit.sources.decode import LIMIT_FRAMES, read_frames
from kit.sources.forms import open_folder, open_path
from kit.run.batches import PairData
from kit.run.keys import check_values
from kit.run.parts import in_parts
from kit.run.run import Run
from kit.tasks.asker import load
from kit.tasks.episodes import can_ask
from kit.tasks.files import read_episodes
from kit.tasks.official import read_captions, read_vqa
from kit.tasks.tables import first_table
from kit.tokenizer import Tokenizer
from kit.weights import checkpoint

ROOT = Path(__file__).resolve().parent.parent
TOKENIZER = ROOT / 'assets' / 'tokenizer.tiktoken'
SIZES = ['--lm_layer=1', '--lm_dim=32', '--sizes=lm_head=2', '--sizes=text_dim=32', '--sizes=text_head=2',
         '--sizes=dim_embed=32', '--sizes=resampler_layer=1', '--sizes=resampler_dim=32',
         '--sizes=xattn_head=2', '--sizes=resampler_head=2', '--n_context=320', '--n_token=192']
TINY = [*SIZES, f'--tokenizer={TOKENIZER}', '--vision_iters=4', '--language_iters=4', '--flamingo_iters=4',
        '--finetune_iters=3', '--eval_every=2',
        '--log_every=1', '--eval_n=2', '--test_n=1', '--vision_batch=4', '--language_batch=2',
        '--batch=m3w=2', '--batch=align=2', '--batch=ltip=1',
        '--batch=vtp=1', '--device=cpu']


# ---------------------------------------------------------------------------------------------
# Killed and resumed

DRIVER = """
import json, os, resource, signal, sys, time
import torch
torch.set_num_threads(1)  # no threads, so that a fork has all there is
import train
from kit.cli import command
from kit.files import only_run

def attempt(argv, wait=None, event=None, number=9, disk=None, user=None):
    '''train.py in a process of its own -> its exit status, or "killed": after `wait` seconds, or just before
    the `event`-th time it opens a file for writing, renames or removes one (or sent another signal then, by
    its number). disk: the largest file it can write; user: whose rights it has.'''
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        sys.argv = ['train.py', *argv]
        left = [event]
        def hook(name, args):
            if name in ('os.rename', 'os.remove') or name == 'open' and args[2] & (os.O_WRONLY | os.O_RDWR):
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), number)
        if event:
            sys.addaudithook(hook)
        if disk:
            resource.setrlimit(resource.RLIMIT_FSIZE, (disk, disk))
        if user:
            os.setgid(user), os.setuid(user)
        status = 0
        try:
            command(train.main)
        except SystemExit as e:
            status = e.code or 0
        except BaseException:
            import traceback
            traceback.print_exc()
            status = 1
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)
    if wait is not None:
        until = time.monotonic() + wait
        while time.monotonic() < until:
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                break
            time.sleep(0.002)
        else:
            os.kill(pid, 9)
    status = os.waitpid(pid, 0)[1]
    return 'killed' if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
"""


def drive(folder, script, *arguments, timeout=3000):
    """Run DRIVER and then `script` in a process whose working folder is `folder` -> its stdout."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run([sys.executable, '-c', DRIVER + script, *map(str, arguments)], cwd=folder,
                          capture_output=True, text=True, timeout=timeout,
                          env=os.environ | {'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1',
                                            'PYTHONDONTWRITEBYTECODE': '1'})
    assert done.returncode == 0, done.stderr[-3000:]
    return done


KILLS = """
import random
from kit.weights import checkpoint
argv, runs, n_kill, seed = map(json.loads, sys.argv[1:5])
start = time.monotonic()
os.makedirs('plain'), os.chdir('plain')
assert [attempt([*argv, *more]) for more in runs] == [0] * len(runs)
whole = time.monotonic() - start
os.chdir('..')
rng, kills, folder = random.Random(seed), [], 0
while len(kills) < n_kill:
    os.makedirs(f'killed{folder}'), os.chdir(f'killed{folder}')
    for more in runs:
        # Some for each, the first for certain.
        first, most = len(kills), min(n_kill, len(kills) + -(-n_kill // len(runs)))
        while True:
            if len(kills) == most:
                how = {}
            elif len(kills) == first or rng.random() < 0.5:
                how = {'event': rng.randint(1, 12)}
            else:
                how = {'wait': rng.uniform(0, 3 * whole / n_kill)}
            status = attempt([*argv, *more], **how)
            if status != 'killed':
                assert status == 0, status
                break
            left = {'missing': ['nothing yet'], 'iter': 0}
            if os.path.exists('out/training.pt'):
                left = checkpoint.load('out/training.pt', 'training')
            kills.append([more[0], (left['missing'] or ['the table'])[0], left['iter'], *how])
    os.chdir('..')
    folder += 1
print(json.dumps(kills))
"""


def log_rows(folder):
    """log.csv without its clocks."""
    with open(folder / 'out' / 'log.csv', newline='') as f:
        return [{k: v for k, v in row.items() if k not in ('minutes', 'tokens_per_s')}
                for row in csv.DictReader(f)]


def same_end(tmp_path, argv, runs, n_kill, seed):
    """Kill a training n_kill times, resume it each time, and hold its end against one that was left alone."""
    done = drive(tmp_path / 'runs', KILLS, json.dumps(argv), json.dumps(runs), n_kill, seed)
    kills = json.loads(done.stdout.splitlines()[-1])
    print(f'{len(kills)} kills: {kills}')
    plain, *killed = sorted((tmp_path / 'runs').iterdir(),
                            key=lambda folder: (folder.name != 'plain', folder.name))
    assert len(kills) == n_kill and killed
    files = {'vision.pt', 'language.pt', 'flamingo.pt', 'finetune.pt', 'results.json', 'log.csv',
             'curves.png', 'samples.png', '.lock'}
    for folder in killed:
        # No leftovers either.
        assert set(os.listdir(folder / 'out')) == set(os.listdir(plain / 'out')) <= files
        for name in set(os.listdir(plain / 'out')) - {'log.csv', 'curves.png', '.lock'}:
            assert (folder / 'out' / name).read_bytes() == (plain / 'out' / name).read_bytes(), name
        rows = log_rows(folder)
        assert rows == log_rows(plain)
        steps = [(row['stage'], row['iter']) for row in rows if row['lr']]
        assert len(steps) == len(set(steps)) > 0
    return kills


def test_killed_and_resumed_ends_with_the_same_bytes(tmp_path):
    """The short version: the first two stages, three kills."""
    same_end(tmp_path, [*TINY, '--language_iters=2'], [['--stage=vision'], ['--stage=language']], n_kill=3,
             seed=1)


WORKERS = """
import multiprocessing, sys, time
import train
from kit.cli import configure
from kit.run.ahead import look_ahead
from kit.run.batches import PairData
from kit.run.run import Run
config = configure(train.KEYS, sys.argv[1:])
run = Run(config, train.KEYS)
steps = look_ahead(PairData(run), [(i, ['align']) for i in range(100)])
next(steps)
print(*[p.pid for p in multiprocessing.active_children()], flush=True)
time.sleep(600)
"""


def test_workers_end_with_the_run_that_is_killed(tmp_path):
    """Also those that have more to say than a pipe holds, which nobody empties any more."""
    arguments = [f'--out_dir={tmp_path}', *TINY, '--workers=2', '--vision_batch=96']
    run = subprocess.Popen([sys.executable, '-c', WORKERS, *arguments], stdout=subprocess.PIPE, text=True,
                           env=os.environ | {'PYTHONPATH': str(ROOT)}, cwd=tmp_path)
    workers = [int(pid) for pid in run.stdout.readline().split()]
    time.sleep(1.0)  # until the pipes are full
    run.kill()
    run.wait()
    until = time.monotonic() + 60
    while len(workers) == 2 and time.monotonic() < until:
        if not any(os.path.exists(f'/proc/{pid}')
                   and 'Z' not in open(f'/proc/{pid}/stat').read().rpartition(')')[2].split()[0]
                   for pid in workers):
            return
        time.sleep(0.1)
    for pid in workers:
        os.kill(pid, 9)
    pytest.fail(f'workers {workers} are still there')


@pytest.mark.long
def test_killed_twenty_times_in_all_stages(tmp_path):
    """All stages, fine-tuning too, a process reading ahead; one source is a mixture, and one of its
    pictures is damaged."""
    folder = tmp_path / 'colours'
    for name in ('red', 'green', 'blue'):
        (folder / name).mkdir(parents=True)
        for k in range(2):
            Image.new('RGB', (20 + k, 20), name).save(folder / name / f'{k}.png')
    damaged = folder / 'red' / '0.png'
    damaged.write_bytes(damaged.read_bytes()[:50])
    kills = same_end(tmp_path, [*TINY, f'--align=shapes:1,{folder}:3', '--workers=1'],
                     [['--stage=vision'], ['--stage=language'], ['--stage=all'], ['--stage=finetune']],
                     n_kill=20, seed=0)
    assert {stage for stage, *_ in kills} == {'--stage=vision', '--stage=language', '--stage=all',
                                              '--stage=finetune'}


STOPS = """
argv = json.loads(sys.argv[1])
first = attempt([*argv, '--max_minutes=1e-9'])
before = open('out/training.pt', 'rb').read()
keep = lambda: (open('out/training.pt', 'rb').read() == before
                and not [f for f in os.listdir('out') if '.tmp-' in f])
print(json.dumps({'time': [first, True]}))
print(json.dumps({'disk': [attempt(argv, disk=20_000), keep()]}))
os.chmod('.', 0o755), os.chmod('out', 0o555)
print(json.dumps({'rights': [attempt(argv, user=65534 if os.getuid() == 0 else None), keep()]}))
os.chmod('out', 0o755)
with only_run('out'):
    print(json.dumps({'second': [attempt(argv), keep()]}))
print(json.dumps({'scratch': [attempt([*argv, '--init_from=resume', '--seed=3']), keep()]}))
print(json.dumps({'term': [attempt(argv, event=8, number=15), not keep()]}))  # while it saves
print(json.dumps({'int': [attempt(argv, event=8, number=2), not os.path.exists('out/results.json')]}))
print(json.dumps({'end': [attempt(argv), os.path.exists('out/vision.pt')]}))
print(json.dumps({'again': [attempt(argv), not os.path.exists('out/training.pt')]}))
"""


def test_full_disk_no_rights_a_second_run_and_signals_cost_nothing(tmp_path):
    tmp_path.chmod(0o755)
    for parent in list(tmp_path.parents)[:2]:
        with contextlib.suppress(PermissionError):
            parent.chmod(0o755)  # pytest's own folders are for their owner only
    done = drive(tmp_path / 'runs', STOPS, json.dumps([*TINY, '--stage=vision', '--vision_iters=3']))
    found = {}
    for line in done.stdout.splitlines():
        with contextlib.suppress(ValueError):
            found |= json.loads(line)
    assert found == {'time': [0, True], 'disk': [2, True], 'rights': [2, True], 'second': [2, True],
                     'scratch': [2, True], 'term': [143, True], 'int': [130, True], 'end': [0, True],
                     'again': [0, True]}
    errors = [line for line in done.stderr.replace('\r', '\n').splitlines() if line.startswith('error: ')]
    assert [next(word
                 for word in ('File too large', 'Permission denied', 'in use by another run', '--seed=0',
                              'none of these') if word in e or word == 'none of these')
            for e in errors] == ['File too large', 'Permission denied', 'in use by another run', '--seed=0']
    assert 'Traceback' not in done.stderr and done.stdout.count('to continue: python train.py') == 3
    assert 'out is complete' in done.stdout


def test_a_log_that_is_none_is_one_line(tmp_path):
    run = small_run(tmp_path)
    for text in (b'\xff\xfe', b'a,b\n1,2\n', b'stage,iter\nvision,1,2,3\n',
                 b'stage\n"' + b'x' * 2_000_000 + b'"\n'):
        (tmp_path / 'log.csv').write_bytes(text)
        with pytest.raises(BadInput, match='log.csv: not a log'):
            run.read_log()


def test_a_damaged_picture_costs_a_page_one_example(tmp_path):
    """And what is said about it, not the page: of twelve pictures a page, one in ten is damaged."""
    for name in ('red', 'green'):
        (tmp_path / 'data' / name).mkdir(parents=True)
        for k in range(10):
            Image.new('RGB', (20 + k, 20), name).save(tmp_path / 'data' / name / f'{k}.png')
        (tmp_path / 'data' / name / '0.png').write_text('no picture')
    run = small_run(tmp_path / 'out', f'--align={tmp_path}/data', '--m3w=align', '--text=align', '--ltip=',
                    '--vtp=', '--folders=naming=0', '--n_token=256', '--n_image=12')
    sequences = [s for i in range(12) for s in train.SequenceData(run).of_source('m3w', i)]
    assert set(run.reader.left_out.values()) == {'not a picture'} and len(run.reader.left_out) == 2
    for s in sequences:
        said = run.tokenizer.decode([t for t in s.tokens.tolist() if t < run.tokenizer.bos])
        assert len(s.media) == said.count('Output: ')
        assert all(os.path.basename(m.load.args[0]) != '0.png' for m in s.media)
        for media, part in zip(s.media, said.split('Output: ')[1:]):
            assert os.path.basename(os.path.dirname(media.load.args[0])) == part.strip()


def test_a_split_of_another_name_is_held_out_too_and_none_is_said(tmp_path, capsys):
    for split, colour in (('train', 'red'), ('dev', 'blue')):
        (tmp_path / 'data').mkdir(exist_ok=True)
        Image.new('RGB', (20, 20), colour).save(tmp_path / 'data' / f'{colour}.png')
    lines = [{'file_name': 'red.png', 'text': 'red', 'split': 'train'},
             {'file_name': 'blue.png', 'text': 'blue', 'split': 'dev'}]
    (tmp_path / 'data' / 'metadata.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    few = ['--ltip=', '--vtp=', '--folders=naming=0', '--m3w=align', '--text=align']
    run = small_run(tmp_path / 'out', f'--align={tmp_path}/data', *few)
    assert [item.text for item in run.held_out.items] == ['blue']
    assert 'trained on' not in capsys.readouterr().out
    (tmp_path / 'data' / 'metadata.jsonl').write_text(json.dumps(lines[0]))
    run = small_run(tmp_path / 'out', f'--align={tmp_path}/data', *few)
    assert [item.text for item in run.held_out.items] == ['red']
    printed = capsys.readouterr().out
    assert 'data has no val or test split: evaluation asks about what was trained on' in printed
    with pytest.raises(BadInput, match='--folders=words=2: no source has class folders'):
        small_run(tmp_path / 'out', f'--align={tmp_path}/data', '--folders=words=2', *few)


def test_groups_held_out_are_asked_about_though_another_source_has_a_split(tmp_path):
    for name in ('pairs/red', 'pairs/blue', 'nested/a/x', 'nested/a/y', 'nested/b/z', 'nested/b/w'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        for k in range(2 if 'nested' in name else 1):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.new('RGB', (20 + k, 20)).save(tmp_path / name / f'{k}.png')
    lines = [{'file_name': 'red/0.png', 'text': 'red', 'split': 'train'},
             {'file_name': 'blue/0.png', 'text': 'blue', 'split': 'val'}]
    (tmp_path / 'pairs' / 'metadata.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    run = small_run(tmp_path / 'out', f'--align={tmp_path}/pairs,{tmp_path}/nested', '--m3w=align',
                    '--text=align', '--ltip=', '--vtp=', '--folders=naming=0', '--folders=held_groups=b')
    assert {item.group for item in run.held_out.items} == {'b'}


@pytest.mark.parametrize('name', ['val', 'valid', 'validation', 'test'])
def test_what_is_held_out_is_asked_about(tmp_path, name):
    for split, colour in (('train', 'red'), ('train', 'green'), (name, 'blue')):
        (tmp_path / 'data' / split / colour).mkdir(parents=True)
        Image.new('RGB', (20, 20), colour).save(tmp_path / 'data' / split / colour / '0.png')
    run = small_run(tmp_path / 'out', f'--align={tmp_path}/data', '--m3w=align', '--text=align', '--ltip=',
                    '--vtp=')
    assert [item.text for item in run.held_out.items] == ['blue']


def test_captions_too_long_for_many_shots_leave_rows_out_of_the_table_and_say_so(tmp_path, monkeypatch):
    """And not the run, which is at its end."""
    for k in range(10):
        (tmp_path / 'data').mkdir(exist_ok=True)
        Image.new('RGB', (20 + k, 20), (25 * k, 90, 90)).save(tmp_path / 'data' / f'{k}.png')
    lines = [{'file_name': f'{k}.png', 'text': f'number {k}, ' + 'very far away and ' * 6 + 'red'}
             for k in range(10)]
    (tmp_path / 'data' / 'metadata.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    run = small_run(tmp_path / 'out', f'--align={tmp_path}/data', '--m3w=align', '--text=align', '--ltip=',
                    '--vtp=', '--n_context=160', '--n_token=128', '--eval_n=3',
                    '--folders=ways=2')
    (tmp_path / 'out').mkdir()
    run.save_stage(train.VisionStage(run))
    run.save_stage(train.LanguageStage(run))
    stage = train.FlamingoStage(run)
    assert 'caption' in stage.evaluate()
    rows, _ = first_table(stage.asker, None, 3, pairs=run.held_out, all_ways=(), report=run.report)
    assert [(r['task'], r['shots']) for r in rows] == [('caption', 0)]
    assert run.report.where['longer than the context'] == ['caption, 4 shots', 'caption, 8 shots']


def test_damaged_and_few_pictures_do_not_stop_an_evaluation(tmp_path):
    """Of three things with two pictures each one is damaged: it is left out and counted, and four names are
    not asked for."""
    for name in ('red', 'green', 'blue'):
        (tmp_path / 'colours' / name).mkdir(parents=True)
        for k in range(2):
            Image.new('RGB', (20 + k, 20), name).save(tmp_path / 'colours' / name / f'{k}.png')
    damaged = tmp_path / 'colours' / 'red' / '0.png'
    damaged.write_bytes(damaged.read_bytes()[:50])
    run = small_run(tmp_path / 'out', f'--align={tmp_path}/colours', '--m3w=align', '--text=align', '--ltip=',
                    '--vtp=')
    assert len(run.held_out) == 5 and run.report.total == 1
    assert [can_ask(run.held_out, ways, 1) for ways in (2, 3, 4)] == [True, True, False]
    assert [can_ask(run.held_out, None, shots) for shots in (0, 4, 8)] == [True, True, False]
    damaged.unlink()  # gone since the source was opened
    documents = [run.reader.document('align', n % 12) for n in range(24)]
    assert len(documents) == 24 and run.reader.left_out == {str(damaged): 'missing'}


# ---------------------------------------------------------------------------------------------
# Numbers

def small_run(tmp_path, *arguments):
    config = configure(train.KEYS, [f'--out_dir={tmp_path}', *TINY, *arguments])
    check_values(config, train.KEYS)
    return Run(config, train.KEYS)


def test_a_step_that_is_not_finite_is_skipped_and_logged_with_its_source(tmp_path):
    """Once by a loss, once by a gradient alone, deep in the NFNet, whose clipping divides by the norm."""
    run = small_run(tmp_path, '--vision_iters=5', '--eval_every=100')
    stage, weights = train.VisionStage(run), {}
    losses, batch_of, at = stage.losses, stage.data.batch, {}

    def numbered(samples):
        i = samples.get('align', samples.get('ltip'))[0].batch
        weights.setdefault(i, {n: p.clone() for n, p in stage.module.named_parameters()})
        at['i'], stage.hurt = i, 'align' in samples and i == 3
        return batch_of(samples)

    def spoilt(batch):
        return {source: loss * float('nan') if source == 'ltip' and at['i'] == 1 else loss
                for source, loss in losses(batch).items()}

    stage.data.batch, stage.losses, stage.evaluate = numbered, spoilt, lambda: {}
    stage.module.vision.blocks[1].conv2.weight.register_hook(lambda g: g * float('inf') if stage.hurt else g)
    assert train.train_stage(run, stage)
    run.write_log()
    with open(run.path('log.csv'), newline='') as f:
        assert [(row['iter'], row['skipped']) for row in csv.DictReader(f)
                if row['skipped']] == [('2', 'ltip'), ('4', 'align + ltip')]
    moved = [any(not torch.equal(weights[i][n], weights[i + 1][n]) for n in weights[i] if n != 'log_beta')
             for i in range(4)]
    assert moved == [True, False, True, False] and all(p.isfinite().all() for p in stage.module.parameters())


def test_ten_in_a_row_stop_the_run_and_keep_the_last_good_state(tmp_path):
    run = small_run(tmp_path, '--vision_iters=50', '--eval_every=1')
    stage = train.VisionStage(run)
    stage.evaluate = lambda: {}
    losses, batch_of, at = stage.losses, stage.data.batch, {}
    stage.data.batch = lambda samples: at.update(i=samples[min(samples)][0].batch) or batch_of(samples)
    stage.losses = lambda batch: {s: loss * (float('inf') if at['i'] > 1 else 1)
                                  for s, loss in losses(batch).items()}
    save = run.save_progress
    run.save_progress = lambda i, stage=None: save(i, stage) if i <= 2 else None
    with pytest.raises(BadInput, match=r'10 steps in a row .*align \+ ltip.*training\.pt'):
        train.train_stage(run, stage)
    good = checkpoint.load(run.path('training.pt'), 'training')
    assert good['iter'] == 2 and all(x.isfinite().all() for x in good['module'].values())


# ---------------------------------------------------------------------------------------------
# Hostile checkpoints

@pytest.fixture(scope='module')
def out(tmp_path_factory):
    """A folder with a flamingo.pt that never learned anything, small and whole."""
    folder = tmp_path_factory.mktemp('run') / 'out'
    torch.manual_seed(0)
    config = configure(train.KEYS, [f'--out_dir={folder}', *TINY])
    os.makedirs(folder)
    run = Run(config, train.KEYS)
    for name in ('vision', 'language', 'flamingo'):
        run.save_stage(train.STAGES[name](run))
    stage = train.VisionStage(run)
    run.missing = ['vision']
    run.save_progress(1, stage)
    return folder


def main_of(script, *arguments):
    """Run a script's main in this process -> (status, stdout, stderr); a traceback is a failure."""
    argv, printed, said = sys.argv, io.StringIO(), io.StringIO()
    handlers = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    sys.argv = [script.__name__, *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said):
            command(script.main)
        status = 0
    except SystemExit as e:
        status = e.code or 0
    finally:
        sys.argv = argv
        for number, handler in handlers:
            signal.signal(number, handler)
    if status == 2:
        assert [line.startswith('error: ') for line in said.getvalue().splitlines()][-1:] == [True]
        assert 'Traceback' not in said.getvalue()
        assert said.getvalue().count('error: ') == 1
    return status, printed.getvalue(), said.getvalue()


# Everything that reads a file with weights or a state: one more reader is one more entry. (name of the
# file, function of its folder)
LOADERS = {
    'checkpoint.load': ('flamingo.pt', lambda folder: checkpoint.load(folder / 'flamingo.pt', 'flamingo')),
    'evaluate.load': ('flamingo.pt', lambda folder: load(folder / 'flamingo.pt')),
    'vision.pt': ('vision.pt', lambda folder: small_run(folder).load_stage('vision', 'contrastive')),
    'language.pt': ('language.pt', lambda folder: small_run(folder).load_stage('language', 'lm')),
    'training.pt': ('training.pt', lambda folder: small_run(folder).load_progress(train.STAGES)),
}


class Trap:
    """A pickle that would call `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def hostile(content, trap):
    """(what, bytes) of files that would do harm, made from the good content of a checkpoint."""
    files = []
    for what, thing in (('open', Trap(open, str(trap), 'w')), ('system', Trap(os.system, f'touch {trap}')),
                        ('memory', Trap(bytearray, 10 ** 11)),
                        ('eval', Trap(eval, f'open({str(trap)!r}, "w")')), ('module', torch.nn.Linear(1, 1)),
                        ('numpy', np.float64(1))):
        for zipped in (True, False):
            f = io.BytesIO()
            torch.save(content | {'more': thing}, f, _use_new_zipfile_serialization=zipped)
            files.append((what, f.getvalue()))
    files.append(('pickle', pickle.dumps(Trap(open, str(trap), 'w'))))
    plain, packed = io.BytesIO(), io.BytesIO()
    torch.save(content | {'more': torch.zeros(10_000_000)}, plain)
    with zipfile.ZipFile(plain) as a, zipfile.ZipFile(packed, 'w', zipfile.ZIP_DEFLATED) as b:
        for entry in a.infolist():
            b.writestr(entry.filename, a.read(entry))
    files.append(('packed', packed.getvalue()))
    shared, endless = torch.zeros(100_000), []
    endless.append(endless)
    for what, x in (('stretched', torch.zeros(1).expand(10 ** 6, 10 ** 6)),
                    ('nowhere', torch.zeros(10 ** 6, 10 ** 6, device='meta')),
                    ('shared', [shared[:] for _ in range(300)]), ('endless', endless)):
        f = io.BytesIO()
        torch.save(content | {'more': x}, f)
        files.append((what, f.getvalue()))
    whole, deep = files[-1][1], io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as a, zipfile.ZipFile(deep, 'w') as b:
        for entry in a.infolist():  # a list in a list in a list, a hundred thousand times, as one more item
            data = a.read(entry)
            b.writestr(entry.filename,
                       data[:-2] + b'X\4\0\0\0deep' + b']' * 100_000 + b'a' * 99_999 + data[-2:]
                       if entry.filename.endswith('data.pkl') else data)
    return [*files, ('deep', deep.getvalue())]


@pytest.mark.parametrize('name', LOADERS)
def test_hostile_files_are_refused_and_nothing_in_them_is_run(out, tmp_path, name):
    file, load = LOADERS[name]
    good = (out / file).read_bytes()
    content = torch.load(io.BytesIO(good), weights_only=True)
    trap = tmp_path / 'trap'
    folder = tmp_path / 'run'
    folder.mkdir()
    (folder / file).write_bytes(good)
    load(folder)
    harmless = 0
    for what, data in hostile(content, trap):
        (folder / file).write_bytes(data)
        begin = time.process_time()
        try:
            load(folder)
        except BadInput as e:
            assert '\n' not in str(e) and file in str(e), what
        else:
            assert what == 'endless'  # plain values, if odd ones: nobody looks at what is not asked for
            harmless += 1
        assert time.process_time() - begin < 5 and not trap.exists(), what
    assert harmless <= 1
    pickle.loads(pickle.dumps(Trap(open, str(trap), 'w'))).close()
    assert trap.exists()  # the trap does work


def rewritten(out, tmp_path, change):
    """flamingo.pt with its content changed."""
    content = torch.load(out / 'flamingo.pt', weights_only=True)
    change(content)
    torch.save(content, tmp_path / 'flamingo.pt')
    with pytest.raises(BadInput) as e:
        load(tmp_path / 'flamingo.pt')
    assert '\n' not in str(e.value) and 'flamingo.pt' in str(e.value) and len(str(e.value)) < 500
    return str(e.value)


@pytest.mark.parametrize('sizes, word', [
    ({'lm_dim': 1 << 20}, 'new_rows of shape (2, 32), expected (2, 1048576)'),
    ({'lm_dim': 10 ** 12}, 'lm_dim'), ({'lm_layer': 10 ** 9}, 'lm_layer'), ({'lm_layer': 2}, 'lm.h.1'),
    ({'n_context': 1 << 16}, 'wpe'), ({'lm_dim': -32}, 'lm_dim'), ({'lm_dim': '32'}, 'lm_dim'),
    ({'lm_head': 3}, 'lm_head'), ({'n_latent': 0}, 'n_latent'),
    ({'vision': 'F6'}, 'vision'), ({'vision': '../x'}, 'vision'), ({'n_vocab': 1 << 20}, 'words'),
    ({'attend': 'all'}, 'attend'), ({'image_size': 10 ** 6}, 'image_size'),
    ({'extra': 1}, 'extra'), ({'lm_dim': True}, 'lm_dim'), ({'bos': 5}, 'words'),
])
def test_sizes_are_checked_before_memory_is_taken(out, tmp_path, sizes, word):
    """A width of a million would take terabytes: to be told that it does not fit the tensors, it must not
    have been built."""
    assert word in rewritten(out, tmp_path, lambda content: content['config'].update(sizes))


@pytest.mark.parametrize('change', [
    lambda c: c.update(tokenizer={}), lambda c: c['tokenizer'].update(tokens=['!']),
    lambda c: c['tokenizer'].update(tokens=3),
    lambda c: c['tokenizer'].update(pattern='(a+)+$'), lambda c: c['tokenizer'].update(bos=10 ** 12),
    lambda c: c['tokenizer'].update(pad='x'),
    lambda c: c.update(config=3), lambda c: c.update(flamingo=[]), lambda c: c.pop('contrastive'),
    lambda c: c['flamingo'].update(new_rows=c['flamingo']['new_rows'].to(torch.int64)),
    lambda c: c['flamingo'].pop('new_rows'),
    lambda c: c.update(format=0), lambda c: c.update(format=2), lambda c: c.update(kind='x' * 10 ** 6),
])
def test_what_is_missing_or_wrong_in_a_checkpoint_is_one_line(out, tmp_path, change):
    rewritten(out, tmp_path, change)


@pytest.mark.parametrize('change', [
    lambda c: c.pop('rows'), lambda c: c.update(missing=['eyes']), lambda c: c.update(missing='vision'),
    lambda c: c.update(iter=-1), lambda c: c.update(rows=[3]),
    lambda c: c['module'].pop('log_beta'), lambda c: c['optimizer']['state'].update({10 ** 6: {}}),
    lambda c: c.update(optimizer={'state': 3}),
    lambda c: c['optimizer'].update(state={0: {'step': torch.zeros(()), 'exp_avg': torch.zeros(3),
                                               'exp_avg_sq': torch.zeros(3)}}),
    lambda c: c['random'].update(torch=torch.zeros(3)), lambda c: c['random'].update(python=(1, 2)),
    lambda c: c.update(random={}), lambda c: c.pop('random'),
])
def test_a_damaged_state_of_training_is_one_line(out, tmp_path, change):
    content = torch.load(out / 'training.pt', weights_only=True)
    change(content)
    torch.save(content, tmp_path / 'training.pt')
    run = small_run(tmp_path)
    with pytest.raises(BadInput) as e:
        run.missing, run.progress = ['vision'], run.load_progress(train.STAGES)
        train.train_stage(run, train.VisionStage(run))
    assert '\n' not in str(e.value)


def test_another_preset_or_tokenizer_is_named(out, tmp_path):
    for name in ('vision.pt', 'language.pt'):
        (tmp_path / name).write_bytes((out / name).read_bytes())
    with pytest.raises(BadInput, match=r'preset=nano and lm_dim=32; now --preset=nano and lm_dim=64'):
        small_run(tmp_path, '--lm_dim=64').load_stage('language', 'lm')
    other = Tokenizer.load(TOKENIZER)
    del other.ranks[max(other.ranks, key=other.ranks.get)]
    other.save(tmp_path / 'other.tiktoken')
    with pytest.raises(BadInput, match=r'another tokenizer, --tokenizer=.*tokenizer.tiktoken; '
                                       r'now --tokenizer=.*other.tiktoken'):
        small_run(tmp_path, f'--tokenizer={tmp_path}/other.tiktoken').load_stage('vision', 'contrastive')
    content = torch.load(tmp_path / 'vision.pt', weights_only=True)
    content['keys']['tokenizer'] = f'{tmp_path}/other.tiktoken'
    torch.save(content, tmp_path / 'vision.pt')
    with pytest.raises(BadInput, match=r'other.tiktoken; what it is made of has changed since'):
        small_run(tmp_path, f'--tokenizer={tmp_path}/other.tiktoken').load_stage('vision', 'contrastive')


def test_links_and_devices_are_not_written_through(tmp_path):
    """What lies in a folder from elsewhere must not lead to a file that is then overwritten."""
    precious = tmp_path / 'precious'
    precious.write_text('mine')
    run = tmp_path / 'out'
    run.mkdir()
    for name in ('.lock', 'sample.png', f'.sample.png.tmp-{os.getpid()}'):
        (run / name).symlink_to(precious)
    with pytest.raises(BadInput, match='out'):
        with only_run(run):
            pass
    with whole_file(run / 'sample.png') as f:
        f.write(b'new')
    assert precious.read_text() == 'mine' and (run / 'sample.png').read_bytes() == b'new'
    assert not (run / 'sample.png').is_symlink()
    os.mkfifo(tmp_path / 'pipe')
    for path in (tmp_path / 'pipe', '/dev/null'):
        with pytest.raises(BadInput, match='not a file'):
            with whole_file(path):
                pass
    assert not os.path.isfile('/dev/null')


# ---------------------------------------------------------------------------------------------
# Fuzz

def mutate(rng, data, other):
    """One to three random wounds."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        a, b = sorted(rng.integers(len(data) + 1, size=2).tolist())
        short = min(b, a + 40)
        match rng.integers(8):
            case 0: data = data[:b] or data
            case 1: data[a:short] = b''
            case 2: data[a:a] = data[a:short] * int(rng.integers(1, 30))
            case 3: data[a:a] = rng.bytes(int(rng.integers(1, 20)))
            case 4: data[a:a + 4] = rng.choice([b'\xff\xff\xff\xff', b'\0\0\0\0', b'\x7f\xff\xff\xff',
                                                b'\0\0\0\x80'])
            case 5: data[a:short] = other[a:short]
            case 6: data[a:a] = rng.choice([b'\xe2\x80\xae', b'\x1b[2J', b'<image>', b'<image:/dev/zero>',
                                            b'<EOC>', b'<|endoftext|>', b'\n', b'"', b'[' * 3000, b'../',
                                            b'\xff'])
            case _:
                for k in rng.integers(len(data), size=3) if data else []:
                    data[k] = rng.integers(256)
        if not data:
            data = bytearray(b'\0')
    return bytes(data)


ODD = [None, True, 0, -1, 10 ** 30, 1.5, '', ' ', '.', '../a.png', '/dev/zero', '\0', '\ud800', 'x' * 300, [],
       [None], {}, 'https://example.org/a.png']


def reshape(rng, data):
    """JSON that is JSON still: one to three of its values replaced by others, or gone."""
    def places(x):
        for key in x if isinstance(x, dict) else range(len(x)) if isinstance(x, list) else ():
            yield x, key
            yield from places(x[key])

    content = json.loads(data)
    for _ in range(rng.integers(1, 4)):
        if found := list(places(content)):
            holder, key = found[rng.integers(len(found))]
            if rng.random() < 0.2:
                del holder[key]
            else:
                holder[key] = copy.deepcopy(ODD[rng.integers(len(ODD))])
    return json.dumps(content).encode()


def pictures(folder):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 20, 3), np.uint8))
    frames = [Image.new('P', (20, 16), k) for k in range(4)]
    for name, options in (('a.png', {}), ('a.jpg', {}), ('a.bmp', {}), ('a.tif', {'compression': 'tiff_lzw'}),
                          ('a.webp', {}), ('a.ppm', {})):
        image.save(folder / name, **options)
    for name in ('b.gif', 'b.png', 'b.webp'):
        frames[0].convert('RGB').save(folder / name, save_all=True,
                                      append_images=[f.convert('RGB') for f in frames[1:]], duration=400)
    return [path.read_bytes() for path in sorted(folder.iterdir())]


def read_picture(path):
    read_frames(path, limit_pixels=4_000_000)


def json_lines(folder):
    return [json.dumps({'file_name': 'a.png', 'text': text, 'split': 'train'}).encode()
            for text in ('a red fox', 'é\u202e\x1b[31m<image><EOC><|endoftext|>', 'x' * 300)]


def read_json_line(path):
    """Between two good ones: every line is either used or counted."""
    root = path.parent / 'list'  # of its own: other files in it would be counted, too
    root.mkdir(exist_ok=True)
    Image.new('RGB', (4, 4)).save(root / 'a.png')
    wounded = path.read_bytes()
    lines = [line for line in wounded.split(b'\n') if line.strip()]
    good = json_lines(root)[:1] * (len(lines) + 1)
    (root / 'metadata.jsonl').write_bytes(b'\n'.join([*good, wounded, b'']))
    pairs = open_folder(root, split=None)
    assert len(pairs) + pairs.report.total == len(lines) + len(good)
    assert all(item.path.startswith(os.path.realpath(root)) for item in pairs.items)
    if pairs.report.total:
        raise BadItem('counted', str(path))


def tables(folder):
    """Lists with and without a header, and a text beside its picture."""
    return [b'file_name,text,split\na.png,"a red fox, or ""two""",train\na.png,another,val\n',
            b'image_name| comment_number| comment\na.png| 0| a red fox\na.png| 1| another\n',
            'a.png#0\ta räd fox\na.png#1\tanother\n'.encode(), b'a red fox\n\nanother\n']


def read_items(place, picture, report, name):
    """Every item of a damaged list is right, or the list is reported as the bad item `name`."""
    try:
        for item in open_folder(place, split=None, report=report).items:
            assert item.path == os.path.realpath(picture) and item.text.strip() and item.split
    except BadInput as e:
        report.add(BadItem(one_line(e), name))


def read_table(path):
    """As each of them, down to the items: nothing but what was said of the picture, or an error of one
    line."""
    root, wounded = path.parent / 'list', path.read_bytes()
    root.mkdir(exist_ok=True)
    Image.new('RGB', (4, 4)).save(root / 'a.png')
    report = Report()
    for name in ('metadata.csv', 'captions.tsv', 'captions.txt', 'a.txt'):
        (root / name).write_bytes(wounded)
        read_items(root, root / 'a.png', report, name)
        (root / name).unlink()
    if report.total:
        raise BadItem('counted', str(path))


def data_sets(folder):
    """COCO, Karpathy, rows, names with captions, VQA, VizWiz."""
    return [json.dumps(content).encode() for content in (
        {'images': [{'id': 1, 'file_name': 'a.png'}],
         'annotations': [{'id': 2, 'image_id': 1, 'caption': 'a fox'}]},
        {'images': [{'filename': 'a.png', 'split': 'train',
                     'sentences': [{'raw': 'a fox'}, {'raw': 'red'}]}]},
        [{'image': 'a.png', 'caption': 'a fox'}, {'image': 'val/a.png', 'caption': ['a fox', 'red']}],
        {'a.png': 'a fox', 'b.png': ['gone']},
        {'questions': [{'question_id': 1, 'image_id': 'a', 'question': 'What?',
                        'answers': [{'answer': 'fox'}]}]},
        [{'image': 'a.png', 'question': 'What?', 'answers': [{'answer': 'fox'}]}])]


def read_data_set(path):
    """As captions and as questions, down to the items."""
    root, report = path.parent / 'sets', Report()
    root.mkdir(exist_ok=True)
    Image.new('RGB', (4, 4)).save(root / 'a.png')
    for name in ('captions_x.json', 'x_questions.json'):
        (root / name).write_bytes(path.read_bytes())
        for place in (root, root / name):
            read_items(place, root / 'a.png', report, name)
        (root / name).unlink()
    if report.total:
        raise BadItem('counted', str(path))


def shards(folder):
    """Two pairs each, in three dialects, with a name too long for its header, a caption as .json, and one
    that leads out."""
    small = io.BytesIO()
    Image.new('RGB', (6, 5), 'red').save(small, 'PNG')
    found = []
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(folder / 'a.tar', 'w', format=form) as tar:
            for name, content in (('a.png', small.getvalue()), ('a.txt', b'a red ring'),
                                  ('d' * 70 + '/' + 'b' * 70 + '.json', b'{"caption": "two"}'),
                                  ('d' * 70 + '/' + 'b' * 70 + '.png', small.getvalue()),
                                  ('../c.png', small.getvalue())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        found.append((folder / 'a.tar').read_bytes())
    return found


def read_shard(path):
    """As a shard, down to its pixels: every member that looks like half of a pair is in one, or counted."""
    shard = path.with_suffix('.tar')
    shard.write_bytes(path.read_bytes())
    report = Report()
    pairs = open_folder(shard, report=report, split=None)
    for k in range(len(pairs)):
        item = pairs.items[k]
        assert item.text.strip()
        assert 0 <= item.path.start <= item.path.start + item.path.size <= shard.stat().st_size
        pairs.media(k).load()
    if report.total > 1:  # one of them leads out of the folder in any case
        raise BadItem('counted', str(path))


def web_pages(folder):
    image = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (66, 70, 3), np.uint8)).save(image, 'JPEG')
    (folder / 'a.jpg').write_bytes(image.getvalue())
    inline = base64.b64encode(image.getvalue()).decode()
    return [page.encode() for page in (
        '<!DOCTYPE html><html><head><meta charset="utf-8"><base href="../made/"><title>x</title></head><body>'
        '<h1>A &amp; B</h1><!-- no --><p>One<img src="a.jpg">'
        '<table><tr><td>in<td><table><tr><td>ner</table></table><div hidden>no</div>'
        '<script>if (a < b) {}</script><ul><li>x<li>é</ul></body></html>',
        f'<p>Before<img alt="x" src="data:image/jpeg;base64,{inline}">after'
        '<img src="http://example.org/a.jpg"><img src="../../../etc/passwd"><br>&#x263a;',
        '<a href=x>\u202e link<img src=/a.jpg></a><![CDATA[ x ]]><?php y ?><style>p {display: none}</style>'
        '<p style="display:none">z</p>')]


def read_web_page(path):
    """Among good ones, as a site: what a page holds are texts, pictures of the site, and what it has lost."""
    site = path.parent / 'site'
    site.mkdir(exist_ok=True)
    for name in ('a.html', 'b.html'):
        (site / name).write_text('<p>good')
    (site / 'c.html').write_bytes(path.read_bytes())
    (site / 'a.jpg').write_bytes((path.parent.parent / 'made' / 'a.jpg').read_bytes())
    pages = open_path(site)
    assert len(pages) == 3
    check_page(pages.at(2), site)


def check_page(document, root):
    """A page as it was read, down to its pixels."""
    for piece in document.pieces:
        if isinstance(piece, str):
            assert piece.strip()
        else:
            assert piece.key.startswith((os.path.realpath(root) + os.sep, 'data:'))
            piece.load()
    encode(document, TOKENS, n_token=300, n_image=5, rng=np.random.default_rng(0))
    assert all(bad.kind and bad.where for bad in document.dropped)
    if document.dropped:
        raise BadItem('counted', document.where)


def page_lines(folder):
    """In both forms."""
    return [json.dumps(page).encode() for page in (
        {'texts': [None, 'One.', None, 'é\u202e\x1b[31m<image><EOC><|endoftext|>', None],
         'images': ['a.png', None, 'a.png', None, 'a.png']},
        {'text_list': ['Zero.', 'One.', 'Two.'],
         'image_info': [{'image_name': 'a.png', 'matched_text_index': 2},
                        {'image_name': 'a.png', 'matched_text_index': 0}]})]


def read_page_line(path):
    """Between good ones: every line is a page, or counted."""
    root, wounded = path.parent / 'list', path.read_bytes()
    root.mkdir(exist_ok=True)
    Image.new('RGB', (4, 4)).save(root / 'a.png')
    lines = [line for line in wounded.split(b'\n') if line.strip()]
    good = page_lines(root) * (len(lines) + 1)
    (root / 'documents.jsonl').write_bytes(b'\n'.join([*good, wounded, b'']))
    pages = open_path(root)
    assert len(pages) + pages.report.total == len(lines) + len(good)
    for k in range(len(good), len(pages)):
        check_page(pages.at(k), root)
    if pages.report.total:
        raise BadItem('counted', str(path))


def checkpoints(folder):
    out = []
    for content in ({'model': torch.nn.Linear(3, 2).state_dict(), 'config': {'n': 3}},
                    {'rows': [{'a': 1.5}], 'random': checkpoint.random_state()}):
        checkpoint.save(folder / 'a.pt', 'fuzz', **content)
        out.append((folder / 'a.pt').read_bytes())
    return out


def read_checkpoint(path):
    content = checkpoint.load(path, 'fuzz')
    if 'model' in content:
        checkpoint.load_into(torch.nn.Linear(3, 2), content['model'], path)
    else:
        checkpoint.set_random_state(content.get('random', {}))


def prompts(folder):
    return [f'<image:{folder}/a.png>Output: a cat.<EOC><image:{folder}/a.png>Output:'.encode(),
            '\ufeff<image:/dev/zero>Frage: wie viele? <|endoftext|> \u202e<BOS>é<EOC>'.encode(),
            b'<image:' + b' ' * 300 + b'>Output:']


def read_prompt(path):
    """The file as a prompt, down to its pixels."""
    document, _ = sample.read_prompt(types.SimpleNamespace(prompt='', prompt_file=str(path)))
    encoded = encode(document, TOKENS, n_token=300)
    assert not {TOKENS.bos, TOKENS.pad} & set(encoded.tokens[1:].tolist())
    assert (encoded.tokens == TOKENS.image).sum() == len(encoded.media)
    for media in encoded.media:
        media.load()


def episode_lines(folder):
    example = {'image': 'a.png', 'prompt': 'Output:', 'answer': 'dax'}
    entry = {'support': [example, example | {'answer': 'wug'}],
             'query': {'image': 'a.png', 'prompt': 'Output:'}, 'answer': 'dax', 'choices': ['dax', 'wug']}
    return [json.dumps(entry).encode(),
            json.dumps({k: v for k, v in entry.items() if k != 'choices'}).encode()]


def read_episode(path):
    report = Report()
    episodes = read_episodes(str(path), report)
    lines = [line for line in path.read_bytes().split(b'\n') if line.strip()]
    assert len(episodes) == len(lines) and sum(e is None for e in episodes) == report.total
    for episode in episodes:
        if episode is not None:
            encode(episode.document(), TOKENS, n_token=300)
    if report.total:
        raise BadItem('counted', str(path))


def official_files(folder):
    """One file that is COCO's captions, VQA's questions and VQA's annotations."""
    Image.new('RGB', (8, 8)).save(folder / 'COCO_val2014_000000000007.png')
    said = {'image_id': 7, 'caption': 'a cat.', 'question_id': 1,
            'answers': [{'answer': 'yes'}, {'answer': 'no'}]}
    return [json.dumps({'images': [{'id': 7, 'file_name': 'COCO_val2014_000000000007.png'}],
                        'annotations': [said],
                        'questions': [{'question_id': 1, 'image_id': 7,
                                       'question': 'is it a cat?'}]}).encode()]


def read_official(path):
    report, images = Report(), str(path.parent.parent / 'made')
    for items in (read_captions(str(path), images, report), read_vqa(str(path), str(path), images, report)):
        for item in items:
            if item.example:
                encode(Episode([item.example], item.example, people=item.people).document(), TOKENS,
                       n_token=300)
    if report.total:
        raise BadItem('counted', str(path))


def configs(folder):
    return [b'"""A run."""\n# why\nvision_iters = 1_000\naugment = 0.5\nalign = "pictures"\nflip = True\n']


def tokenizers(folder):
    return [TOKENIZER.read_bytes()]


TOKENS = Tokenizer.load(TOKENIZER)
# What is read from users, and how often it is wounded: one more reader is one more entry.
READERS = [
    (pictures, read_picture, 900),
    (json_lines, read_json_line, 400),
    (tables, read_table, 200),
    (data_sets, read_data_set, 200),
    (shards, read_shard, 400),
    (web_pages, read_web_page, 200),
    (page_lines, read_page_line, 200),
    (checkpoints, read_checkpoint, 400),
    (prompts, read_prompt, 400),
    (episode_lines, read_episode, 300),
    (official_files, read_official, 300),
    (configs, lambda path: configure(train.KEYS, [str(path)]), 150),
    (tokenizers, Tokenizer.load, 50),
]
WATCH = {'writes': None}


def watch(event, arguments):
    """Note every file that is opened for writing, renamed or removed, and every program that is started."""
    if WATCH['writes'] is not None:
        writing = event == 'open' and isinstance(arguments[2], int)
        writing = writing and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writing or event in ('os.rename', 'os.remove', 'os.mkdir', 'os.system', 'subprocess.Popen',
                                'os.exec', 'os.symlink', 'os.link'):
            WATCH['writes'].append((event, arguments))


@pytest.mark.parametrize('make, read, n', READERS, ids=[make.__name__ for make, *_ in READERS])
def test_wounded_files_are_read_or_refused(tmp_path, make, read, n):
    """No crash, no hang, nothing written, and each is either taken or counted."""
    assert sum(n for *_, n in READERS) >= 2000
    for name in ('made', 'read'):
        (tmp_path / name).mkdir()
    seeds, rng = make(tmp_path / 'made'), np.random.default_rng(7)
    path = tmp_path / 'read' / ('a.py' if make is configs else 'wounded')
    if not WATCH.get('on'):
        WATCH['on'] = sys.addaudithook(watch) or True  # for good: Python has no way to take it off
    taken, refused, before = 0, 0, np.random.get_state()
    for k in range(n):
        a, b = seeds[k // 2 % len(seeds)], seeds[(k // 2 + 1) % len(seeds)]
        path.write_bytes(reshape(rng, a) if k % 2 and a.startswith(b'{') else mutate(rng, a, b))
        begin, WATCH['writes'] = time.process_time(), []
        try:
            read(path)
            taken += 1
        except (BadItem, BadInput) as e:
            assert str(e)
            refused += 1
        finally:
            writes, WATCH['writes'] = WATCH['writes'], None
        assert time.process_time() - begin < 5
        assert all(str(arguments[0]).startswith(str(tmp_path)) for _, arguments in writes), writes
    np.random.set_state(before)
    assert taken + refused == n and refused > n // 20


def test_animations_without_end_are_cut(tmp_path):
    """Fifty thousand frames of one pixel, a thousand of sixteen million, and two that are shown for an
    hour."""
    # A frame of one pixel, shown for a second.
    frame = b'\x21\xf9\x04\x00\x64\x00\x00\x00' + b'\x2c\0\0\0\0\x01\0\x01\0\0' + b'\x02\x02\x44\x01\0'
    for name, side, n, most in (('a', b'\x01\0', 50_000, LIMIT_FRAMES), ('b', b'\xa0\x0f', 1000, 8),
                                ('c', b'\xa0\x0f', 2, 2)):
        shown = frame.replace(b'\x64\0', b'\x40\x7e') if n == 2 else frame
        (tmp_path / f'{name}.gif').write_bytes(b'GIF89a' + side * 2 + b'\x80\0\0\0\0\0\xff\xff\xff'
                                               + shown * n + b';')
        begin = time.process_time()
        frames = read_frames(tmp_path / f'{name}.gif', n_frame=32)
        # Neither pixels in memory nor time grow with what the file claims.
        assert 1 <= len({id(f) for f in frames}) <= min(most, 32) and time.process_time() - begin < 5


@pytest.mark.parametrize('text',
                         ['a \x00\x07\x1b[2Jred\x7f ring', 'a \u202edlof\u200f red\u2066 ring',
                          'an <image> <EOC> <BOS> <|endoftext|> ring', '\ud800 half', ' ' * 200_000,
                          '\n' * 1_000_000])
def test_captions_stay_text(text):
    """Whatever stands in them, they come back as they were (half a letter as a replacement), and no special
    token does."""
    ids = TOKENS.encode(text)
    assert max(ids) < len(TOKENS.ranks) and TOKENS.decode(ids) == text.replace('\ud800', '\ufffd')
    page = encode(Document([text], 'pair'), TOKENS, n_token=64)
    assert len(page.tokens) <= 64 and not page.media and page.image_index.max() == 0


# ---------------------------------------------------------------------------------------------
# The command line

EDGES = {int: ['0', '-1', '1000000000', '1' + '0' * 30, '', '1.5', 'ü'],
         float: ['0', '-1', '1e308', '1e-308', '', 'nan', 'ü'], bool: ['', 'ü', '2'],
         str: ['', 'ü\u202e\udcff', 'x' * 5000, '/dev/zero', 'shapes,', 'a:nan']}


def edges(keys, *without):
    return [spelled for key, (default, _) in flat(keys).items() if key not in without
            for value in EDGES[type(default)]
            for spelled in spell({key: value}, keys)]


def test_every_key_of_training_at_its_edges(tmp_path, monkeypatch):
    """As far as the data, the tokenizer and the sizes of the model: it goes on, or says why not in one
    line."""
    monkeypatch.chdir(tmp_path)
    reached = []
    monkeypatch.setattr(train, 'missing_stages', lambda run, stages: (reached.append(run), [])[1])
    monkeypatch.setattr(train, 'finish', lambda run, stage: None)
    statuses = []
    for argument in [*edges(train.KEYS), '--dtype=float16', '--device=meta', '--m3w=', '--m3w=align',
                     '--m3w=seed', '--align=ltip']:
        status, _, said = main_of(train, '--out_dir=out', *TINY, argument)
        assert status in (0, 2), (argument, said)
        statuses.append((argument, status))
    refused = {argument for argument, status in statuses if status == 2}
    assert len(reached) == len(statuses) - len(refused) > 50
    assert {'--seed=-1', '--out_dir=', '--vision_batch=1000000000', '--lm_dim=1000000000', '--dtype=float16',
            '--device=meta', '--tokenizer=/dev/zero', '--flamingo_lr=nan',
            '--m3w=a:nan', '--n_token=1000000000', '--n_context=0', '--p_next=1e308',
            '--feature_dropout=1e308', '--augment=word_dropout=1e308', '--folders=naming=-1'} <= refused
    assert 'GiB' in main_of(train, '--out_dir=out', f'--tokenizer={TOKENIZER}', '--preset=flamingo-80b',
                            '--device=cpu')[2]
    assert not {'--m3w=', '--m3w=align', '--max_minutes=1e308', '--vision_iters=1000000000',
                '--augment=strength=0'} & refused


@pytest.mark.long
def test_every_key_of_training_at_its_edges_takes_a_step(tmp_path, monkeypatch):
    """The same, and a step of each stage."""
    monkeypatch.chdir(tmp_path)

    def one_step(run, stages):
        for name in ('vision', 'language', 'flamingo'):
            stage = train.STAGES[name](run)
            in_parts(train.gradients, run, stage, stage.data.read(stage.sources, 0))
            stage.clip()
            run.save_stage(stage)
        return []

    monkeypatch.setattr(train, 'missing_stages', one_step)
    monkeypatch.setattr(train, 'finish', lambda run, stage: None)
    for argument in edges(train.KEYS):
        status, _, said = main_of(train, '--out_dir=out', *TINY, argument)
        assert status in (0, 2), (argument, said)


def test_every_key_of_prompting_at_its_edges(out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = [f'--out_dir={out}', '--device=cpu', '--ways=2', '--max_new_tokens=2']
    os.mkfifo('pipe')
    Image.new('RGB', (8, 8)).save('a.png')
    Path('control.txt').write_text('<image:a.png>\x1b[2J\u202e Output: <|endoftext|> <EOC>')
    Path('nul.py').write_text("prompt_file = 'a\\0b'\n")
    statuses = {}
    for arguments in [[a] for a in edges(sample.KEYS)] + [['--temperature=1e-300'],
                                                          ['--temperature=1', '--top_k=0'],
                                                          ['--prompt_file=pipe'], ['--prompt_file=.'],
                      ['--prompt=<image:/dev/zero>Output:'], ['--prompt=<image:pipe>Output:'],
                      ['--prompt=<image:.>Output:'], ['--prompt=<image>'],
                      ['--prompt=\udcff \x1b[2J', '--json=True'], ['--choices=' + '|'.join('ab' * 1000)],
                      ['--choices=' + 'a ' * 600], ['--choices=|'], ['--prompt_file=control.txt'],
                      ['nul.py'], ['--prompt=' + ' ' * 100_000], ['--device=meta'],
                      ['--num_samples=2', '--seed=9223372036854775807']]:
        status, printed, said = main_of(sample, *base, *arguments)
        assert status in (0, 2) and '\x1b' not in printed and '\u202e' not in printed, (arguments, said)
        statuses[arguments[0]] = status
    assert [statuses[a]
            for a in ('--prompt_file=pipe', '--prompt_file=.', '--prompt=<image:/dev/zero>Output:',
                      '--prompt=<image>', '--choices=|', 'nul.py', '--ways=1000000000',
                      '--seed=-1', '--beam_size=1000000000', '--prompt_file=/dev/zero',
                      '--checkpoint=/dev/zero')] == [2] * 11
    assert [statuses[a]
            for a in ('--temperature=1e-300', '--temperature=1e308', '--prompt_file=control.txt',
                      '--top_k=1000000000', '--max_new_tokens=1000000000')] == [0] * 5


def test_every_key_of_evaluation_at_its_edges(out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new('RGB', (8, 8)).save('a.png')
    good = episode_lines(tmp_path)
    example = json.loads(good[0])
    long = [json.dumps(example | {'choices': ['dax', 'a ' * 400]}).encode(),
            json.dumps(example | {'choices': ['dax'] + ['b'] * 20_000}).encode(),
            json.dumps(example | {'support': example['support'] * 500}).encode(),
            json.dumps(example | {'support': []} | {'choices': ['dax', 'a ' * 150]}).encode()]
    Path('e.jsonl').write_bytes(b'\n'.join([*good, *long, b'[' * 50_000, b'']))
    os.mkfifo('pipe')
    base = [f'--out_dir={out}', '--device=cpu', '--episodes=e.jsonl', '--max_new_tokens=2',
            '--predictions=p.jsonl']
    status, printed, _ = main_of(evaluate, *base)
    assert status == 0 and 'too long: 3' in printed and 'not JSON: 1' in printed
    assert [json.loads(line)['prediction'] is None for line in open('p.jsonl')] == [False, False, True, True,
                                                                                    True, False, True]
    for argument in [*edges(evaluate.KEYS, 'n', 'episodes'), '--n=0', '--n=1000000000', '--episodes=pipe',
                     '--episodes=/dev/zero', '--episodes=.', '--episodes=' + 'x' * 5000,
                     '--predictions=pipe', '--predictions=/dev/null', '--device=meta']:
        status, _, said = main_of(evaluate, *base, argument)
        assert status in (0, 2), (argument, said)
        if not argument.startswith(('--split', '--images', '--held_groups')):
            value = argument.split('=')[1]
            assert status == 2 or value not in ('pipe', '/dev/zero', '/dev/null', 'meta', '-1'), argument
    for key in list(evaluate.SOURCES)[1:]:
        for argument in [*filter(None, EDGES[str]), 'pipe', '.']:
            more = ['--images=.'] + [f'--vqa_annotations={argument}'] * (key == 'vqa_questions')
            status = main_of(evaluate, *base, '--episodes=', f'--{key}={argument}', *more)[0]
            # By now there are pictures in the folders here.
            assert status == 2 or (status, argument) == (0, '.'), (key, argument)


def test_every_key_of_the_tokenizers_maker_at_its_edges(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for argument in ('--n_rank=0', '--n_rank=255', '--n_rank=-1', '--n_text=0', '--n_rank=ü', '--out=',
                     '--out=/dev/null', '--out=no/where', f'--n_rank={10 ** 30}'):
        assert main_of(bpe, '--n_text=3', '--n_rank=257', argument)[0] == 2, argument
    assert main_of(bpe, '--n_text=3', '--n_rank=257', '--out=ü.tiktoken')[0] == 0
    assert len(Tokenizer.load('ü.tiktoken').ranks) == 257


def test_every_key_of_looking_at_data_at_its_edges(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo('pipe')
    (tmp_path / 'pairs').mkdir()
    Image.new('RGB', (8, 8)).save('pairs/a.png')
    Path('pairs/metadata.jsonl').write_text('{"file_name": "a.png", "text": "a \\u202e cat"}')
    statuses = {}
    for arguments in [[a] for a in edges(look.KEYS)] + [['--show=0'], ['--image_size=1025'],
                                                        ['--picture=sheet.xyz'], ['pairs'],
                                                        ['--picture=pipe'], ['--out=pairs'],
                                                        ['--picture=no/where.png']]:
        status, printed, said = main_of(look, 'pairs', f'--tokenizer={TOKENIZER}', *arguments)
        assert status in (0, 2) and '\u202e' not in printed, (arguments, said)
        statuses[arguments[0]] = status
    assert [statuses[a]
            for a in ('--show=1000000000', '--image_size=1000000000', '--image_size=1025', '--n_frame=0',
                      '--tokenizer=/dev/zero', 'pairs', '--picture=pipe', '--out=pairs')] == [2] * 8
    assert [statuses[a]
            for a in ('--show=0', '--n_token=1000000000', '--picture=', '--out=',
                      '--n_image=1' + '0' * 30)] == [0] * 5
    for path in ('', 'none', 'pipe', 'pairs/a.png', 'x' * 5000, 'a\0b', '/dev/zero', 'film.mp4'):
        assert main_of(look, path, f'--tokenizer={TOKENIZER}', '--picture=')[0] == 2, path


def test_every_key_of_timing_at_its_edges(tmp_path, monkeypatch):
    """Those that it does not share with training, with nothing to time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench, 'matmul_rate', lambda device, dtype: 1e9)
    monkeypatch.setattr(bench, 'works', lambda config, device, wanted: iter(()))
    for argument in edges({key: value for key, value in bench.KEYS.items() if key not in train.KEYS}):
        status, _, said = main_of(bench, argument)
        assert status in (0, 2), (argument, said)
        if argument not in ('--runs=1' + '0' * 30, '--seconds=0'):
            value = argument.split('=')[1]
            assert status == 2 or value not in ('-1', '0', '1' + '0' * 30, 'nan', '/dev/zero'), argument


def test_a_handful_from_outside(tmp_path):
    """The same through the real commands; `--debug=True` shows where it happened."""
    os.mkfifo(tmp_path / 'pipe')
    commands = [['train.py', '--device=meta', f'--out_dir={tmp_path}/o'],
                ['train.py', '--dtype=float16', f'--out_dir={tmp_path}/p'],
                ['sample.py', f'--out_dir={tmp_path}', '--checkpoint=other.pt', '--debug=True'],
                ['evaluate.py', f'--out_dir={tmp_path}', f'--checkpoint={tmp_path}/pipe']]
    running = [subprocess.Popen([sys.executable, *c], cwd=ROOT, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True) for c in commands]
    said = [process.communicate(timeout=300)[1] for process in running]
    assert [process.returncode for process in running] == [2, 2, 1, 2]
    assert 'Traceback' in said[2] and 'other.pt' in said[2]
    assert all(len(s.splitlines()) == 1 and s.startswith('error: ') for s in said[:2] + said[3:])
    assert 'loss scaling' in said[1]
