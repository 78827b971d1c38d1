"""Checkpoints: never half-written, never executed, and a clear line when something is wrong with one."""
import os
import pickle
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from kit.files import BadInput, only_run, whole_file
from kit.weights import checkpoint

ROOT = Path(__file__).resolve().parents[1]


def load_error(path, kind='flamingo'):
    with pytest.raises(BadInput) as e:
        checkpoint.load(path, kind)
    assert '\n' not in str(e.value) and str(path) in str(e.value)
    return str(e.value)


def python(script, *arguments, **options):
    return subprocess.Popen([sys.executable, '-c', script, *map(str, arguments)], stdout=subprocess.PIPE,
                            text=True, **options)


# ---------------------------------------------------------------------------------------------
# Whole files


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / 'log.csv'
    path.write_text('old')
    with pytest.raises(ZeroDivisionError):
        with whole_file(path, 'w') as f:
            f.write('half of the new')
            f.flush()
            1 / 0
    assert path.read_text() == 'old' and os.listdir(tmp_path) == ['log.csv']
    with whole_file(path, 'w') as f:
        f.write('new é')
        f.flush()
        assert path.read_text() == 'old'
    assert path.read_bytes() == 'new é'.encode() and os.listdir(tmp_path) == ['log.csv']


KILLED = """
import sys, time
from kit import files
with files.only_run(sys.argv[1]), files.whole_file(sys.argv[1] + '/a.pt') as f:
    f.write(b'half of the new')
    f.flush()
    print('writing', flush=True)
    time.sleep(60)
"""


def test_a_run_killed_while_writing(tmp_path):
    """The old file stays, a second run is refused while the first lives, and the next one tidies up."""
    (tmp_path / 'a.pt').write_bytes(b'old')
    (tmp_path / '.hidden.tmp-old').write_bytes(b"the user's own")
    with python(KILLED, tmp_path) as run:
        assert run.stdout.readline() == 'writing\n'
        with pytest.raises(BadInput, match=rf'in use by another run \(pid {run.pid}\)'):
            with only_run(tmp_path):
                pass
        assert len(os.listdir(tmp_path)) == 4  # the refused run deleted nothing
        run.send_signal(signal.SIGKILL)
    assert (tmp_path / 'a.pt').read_bytes() == b'old'
    with only_run(tmp_path):
        assert sorted(os.listdir(tmp_path)) == ['.hidden.tmp-old', '.lock', 'a.pt']
    with only_run(tmp_path):  # free again
        pass


def test_a_worker_that_outlives_its_run_does_not_hold_the_folder(tmp_path):
    read, write = os.pipe()
    with only_run(tmp_path):
        worker = os.fork()
        if worker == 0:  # what a data loader's worker process does: it inherits every open file
            os.close(write)
            os.read(read, 1)
            os._exit(0)
    try:
        attempt = 'import sys\nfrom kit import files\nwith files.only_run(sys.argv[1]): print("mine")'
        with python(attempt, tmp_path) as run:
            assert run.stdout.read() == 'mine\n'
    finally:
        os.write(write, b'x')
        os.waitpid(worker, 0)
        os.close(read)
        os.close(write)


def test_only_run_makes_the_folder_or_says_why_not(tmp_path):
    with only_run(tmp_path / 'a' / 'b'):
        assert (tmp_path / 'a' / 'b').is_dir()
    (tmp_path / 'file').write_text('')
    with pytest.raises(BadInput, match='file'):
        with only_run(tmp_path / 'file'):
            pass


def test_unwritable_places_are_one_line(tmp_path):
    for path in [tmp_path / 'nowhere' / 'a.pt', tmp_path]:
        with pytest.raises(BadInput, match='cannot be written') as e:
            checkpoint.save(path, 'flamingo', x=1)
        assert str(path) in str(e.value) and '\n' not in str(e.value)
    assert os.listdir(tmp_path) == []


FULL = """
import resource, signal, sys, torch
from kit.weights import checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # past the limit a write fails, as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    checkpoint.save(sys.argv[1], 'flamingo', x=torch.zeros(1000, 1000))
except checkpoint.BadInput as e:
    print(e)
"""


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path):
    path = tmp_path / 'a.pt'
    checkpoint.save(path, 'flamingo', x=1)
    with python(FULL, path) as run:
        assert run.stdout.read() == f'{path}: cannot be written (File too large)\n'
    assert run.returncode == 0
    assert checkpoint.load(path, 'flamingo')['x'] == 1 and os.listdir(tmp_path) == ['a.pt']


# ---------------------------------------------------------------------------------------------
# Saving and loading


def test_what_is_saved_comes_back(tmp_path):
    linear = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(linear.parameters())
    linear(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    content = {'config': {'lr': 1e-3, 'name': 'é', 'none': None, 'betas': (0.9, 0.95)},
               'optimizer': optimizer.state_dict()}
    checkpoint.save(tmp_path / 'a.pt', 'flamingo', model=linear.state_dict(), **content)
    loaded = checkpoint.load(tmp_path / 'a.pt', 'flamingo')
    assert loaded['format'] == checkpoint.FORMAT and loaded['kind'] == 'flamingo'
    assert loaded['config'] == content['config']
    assert torch.equal(loaded['optimizer']['state'][0]['exp_avg'],
                       optimizer.state_dict()['state'][0]['exp_avg'])
    other = torch.nn.Linear(2, 2)
    checkpoint.load_into(other, loaded['model'], 'a.pt')
    assert torch.equal(other.weight, linear.weight) and torch.equal(other.bias, linear.bias)


@pytest.mark.parametrize('content, where', [
    ({'config': {'runs': [1, {'lr': np.float64(3)}]}}, r'config\.runs\[1\]\.lr: .*float64'),
    ({'config': {'out_dir': Path('out')}}, r'config\.out_dir: .*Path'),
    ({'config': {('a', b'b'): 1}}, r'config: the key .*bytes'),
    ({'model': torch.nn.Linear(1, 1)}, r'model: .*Linear'),
    ({'given': {'a'}}, r'given: .*set'),
])
def test_only_plain_values_are_saved(tmp_path, content, where):
    with pytest.raises(TypeError, match=where):
        checkpoint.save(tmp_path / 'a.pt', 'flamingo', **content)
    assert os.listdir(tmp_path) == []


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, 'w')  # what a loader that trusts the file would run


def test_a_hostile_checkpoint_is_refused_and_not_run(tmp_path):
    trap, path = tmp_path / 'trap', tmp_path / 'a.pt'
    hostile = {'format': checkpoint.FORMAT, 'kind': 'flamingo', 'model': Trap(str(trap))}
    torch.save(hostile, path)
    assert 'nothing in it was run' in load_error(path)
    torch.save(hostile, path, _use_new_zipfile_serialization=False)
    load_error(path)
    path.write_bytes(pickle.dumps(hostile))
    load_error(path)
    torch.save(torch.nn.Linear(1, 1), path)  # a whole module: not hostile, and still code
    assert 'nothing in it was run' in load_error(path)
    assert not trap.exists()
    pickle.loads(pickle.dumps(Trap(str(trap)))).close()
    assert trap.exists()  # the trap does work


def test_a_damaged_checkpoint(tmp_path):
    path = tmp_path / 'a.pt'
    checkpoint.save(path, 'flamingo', x=torch.arange(1000))
    whole = path.read_bytes()
    for size in [0, 1, 100, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:size])
        assert 'damaged' in load_error(path)
    for garbage in [b'hello', b'\x89PNG\r\n\x1a\n' + bytes(100), bytes(1000), whole[-100:]]:
        path.write_bytes(garbage)
        assert 'damaged' in load_error(path)


def test_not_a_checkpoint_of_this_kind(tmp_path):
    path = tmp_path / 'a.pt'
    assert 'no such file' in load_error(path)
    assert 'not a file' in load_error(tmp_path)
    assert 'not a file' in load_error(os.devnull)
    os.mkfifo(tmp_path / 'pipe')
    assert 'not a file' in load_error(tmp_path / 'pipe')  # instead of waiting for ever
    for content in [torch.zeros(3), {'model': torch.zeros(3)}, {'format': '1', 'kind': 'flamingo'},
                    {'format': 1}]:
        torch.save(content, path)
        assert 'not a checkpoint of nanoFlamingo' in load_error(path)
    torch.save({'format': checkpoint.FORMAT + 1, 'kind': 'flamingo'}, path)
    assert f'format {checkpoint.FORMAT + 1}, newer than format {checkpoint.FORMAT}' in load_error(path)
    torch.save({'format': 0, 'kind': 'flamingo'}, path)
    assert 'format 0, older' in load_error(path)
    checkpoint.save(path, 'language model')
    assert load_error(path) == f'{path} holds a language model, a flamingo was expected'


def test_load_into_names_the_first_difference():
    def error(state):
        before = {key: value.clone() for key, value in linear.state_dict().items()}
        with pytest.raises(BadInput) as e:
            checkpoint.load_into(linear, state, 'a.pt', 'vision')
        assert all(torch.equal(value, before[key]) for key, value in linear.state_dict().items())  # untouched
        return str(e.value)

    linear, weight, bias = torch.nn.Linear(2, 3), torch.ones(3, 2), torch.ones(3)
    assert error({'weight': weight}) == 'a.pt: vision lacks bias'
    assert error({'weight': weight, 'bias': bias,
                  'extra': bias}) == 'a.pt: vision has extra, which the model lacks'
    assert error({'weight': weight.T,
                  'bias': bias}) == 'a.pt: vision has weight of shape (2, 3), expected (3, 2)'
    assert error({'weight': weight, 'bias': 3.0}) == 'a.pt: vision has bias, which is no tensor'
    assert error(None) == 'a.pt: vision is not a dict of tensors'


def test_random_state_resumes_every_generator(tmp_path):
    def draw():
        return (random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(),
                torch.rand(2).tolist())

    random.gauss(0, 1)  # both generators keep half of a pair of gaussians: part of the state
    np.random.randn()
    checkpoint.save(tmp_path / 'a.pt', 'state', random=checkpoint.random_state())
    expected = draw()
    draw()
    checkpoint.set_random_state(checkpoint.load(tmp_path / 'a.pt', 'state')['random'])
    assert draw() == expected


def test_reading_a_model_imports_no_compiler():
    """A part of torch that no command uses until then, and that takes longer than all the rest of a start."""
    script = ('import sys; from kit.weights.flamingo import read_flamingo; read_flamingo("assets/nano.pt"); '
              'print([name for name in ("torch._dynamo", "torch._inductor") if name in sys.modules])')
    done = python(script, cwd=ROOT)
    assert done.communicate()[0] == '[]\n' and done.returncode == 0
