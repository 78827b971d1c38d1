"""What a user meets first: keys, config files and the one line that says what went wrong."""
import pickle
import subprocess
import sys

import pytest
import torch

from kit.cli import command, configure
from kit.device import autocast, pick_device, pick_dtype
from kit.files import BadInput, BadItem, one_line

KEYS = {
    'out_dir': ('out', 'folder for everything the run leaves behind'),
    'iters': (100, 'number of steps'),
    'dropout': (0.1, 'dropout'),
    'compile': (False, 'use torch.compile'),
}


def config_file(tmp_path, text, name='mine.py'):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def error(*argv):
    with pytest.raises(BadInput) as e:
        configure(KEYS, list(argv))
    assert '\n' not in str(e.value)
    return str(e.value)


# ---------------------------------------------------------------------------------------------
# Keys on the command line


def test_defaults_and_what_was_given():
    config = configure(KEYS, ['--iters=7'])
    assert (config.out_dir, config.iters, config.dropout, config.compile) == ('out', 7, 0.1, False)
    assert config.given == {'iters'}


@pytest.mark.parametrize('argument, value', [
    ('--dropout=0', 0.0), ('--dropout=1e-3', 1e-3), ('--iters=1_000', 1000), ('--iters=1e3', 1000),
    ('--iters=-1', -1),
    ('--compile=True', True), ('--compile=1', True), ('--compile=false', False), ('--compile=0', False),
    ('--out_dir=', ''), ('--out_dir=a=b=c', 'a=b=c'), ('--out_dir="q"', '"q"'), ('--out_dir=1e3', '1e3'),
])
def test_values(argument, value):
    name = argument[2:].split('=')[0]
    result = getattr(configure(KEYS, [argument]), name)
    assert result == value and type(result) is type(value)


@pytest.mark.parametrize('argument', [
    '--iters=1.5', '--iters=ten', '--iters=', '--iters=True', '--iters=1e400', '--dropout=nan',
    '--dropout=inf',
    '--dropout=-inf', '--dropout=1e999', '--dropout=True', '--compile=yes', '--compile=2', '--compile=',
])
def test_wrong_type_names_the_argument(argument):
    assert argument in error(argument)


def test_later_wins(tmp_path):
    path = config_file(tmp_path, 'iters = 5\ndropout = 0.5\n')
    assert configure(KEYS, ['--iters=1', path]).iters == 5
    config = configure(KEYS, [path, '--iters=1', '--iters=2'])
    assert (config.iters, config.dropout) == (2, 0.5)
    assert config.given == {'iters', 'dropout'}


def test_unknown_key_names_the_nearest():
    assert "'dropout'" in error('--droput=0.1')
    assert "'out_dir'" in error('--out-dir=x')
    assert "'iters'" in error('--ITERS=3')


def test_a_key_without_its_value_says_how_to_write_it():
    assert '--key=value' in error('--compile')
    assert '--iters=3' in error('-iters=3')
    assert '--iters=3' in error('iters=3')  # would be taken for a config file


def test_help_lists_every_key(capsys):
    with pytest.raises(SystemExit) as e:
        configure(KEYS, ['--iters=nonsense', '--help'], usage='Train a model.')
    lines = capsys.readouterr().out.splitlines()
    assert e.value.code == 0 and lines[0] == 'Train a model.'
    columns = set()
    for name, (default, meaning) in KEYS.items():
        line, = [line for line in lines if f'--{name}={default} ' in line and line.endswith(meaning)]
        columns.add(line.rindex(meaning))
    assert len(columns) == 1  # aligned


def test_debug_is_understood_everywhere_and_is_no_part_of_the_configuration():
    config = configure(KEYS, ['--debug=True', '--iters=3'])
    assert config.given == {'iters'} and not hasattr(config, 'debug')


# ---------------------------------------------------------------------------------------------
# Config files


def test_config_file_of_literals(tmp_path):
    path = config_file(tmp_path, '"""A tiny run."""\n# why\niters = 1_000  # short\ndropout = 0\n'
                                 'out_dir = "a" "b"\ncompile = True\n')
    config = configure(KEYS, [path])
    assert (config.iters, config.dropout, config.out_dir, config.compile) == (1000, 0.0, 'ab', True)
    assert type(config.dropout) is float


def test_config_file_is_not_executed(tmp_path):
    trap = tmp_path / 'trap'
    for line in [f'iters = open({str(trap)!r}, "w")', f'open({str(trap)!r}, "w")',
                 f'iters: int = len(open({str(trap)!r}, "w").name)']:
        assert 'mine.py:2:' in error(config_file(tmp_path, f'dropout = 0.2\n{line}\n'))
    assert not trap.exists()


@pytest.mark.parametrize('line', [
    'import os', 'iters = 2 * 3', 'iters = dropout', 'a = iters = 3', 'iters += 1', 'iters', '3',
    'iters: int = 3',
    'iters = "3"', 'iters = None', 'iters = [3]', 'iters = 1.5', 'iters = True', 'out_dir = 3',
    'dropout = 1e999',
    'dropout = {[]: 1}', 'compile = "True"', 'compile = 2', 'itres = 3', 'given = 3', 'debug = True',
    'if True: iters = 3',
    'iters = (', "out_dir = 'x", '\0',
])
def test_bad_line_is_named(tmp_path, line):
    message = error(config_file(tmp_path, line))
    assert 'mine.py:1' in message
    if line == 'itres = 3':
        assert "'iters'" in message


def test_bad_config_files(tmp_path):
    missing = error(str(tmp_path / 'nowhere.py'))
    assert 'nowhere.py' in missing and 'no such' in missing
    assert 'not a file' in error(str(tmp_path))
    assert 'latin.py:2: not UTF-8' in error(config_file(tmp_path, b'iters = 3\n# caf\xe9\n', 'latin.py'))
    assert 'broken.py:3:' in error(config_file(tmp_path, 'iters = 3\n\ndropout = = 2\n', 'broken.py'))
    assert 'deep.py:1' in error(config_file(tmp_path, 'iters = ' + '(' * 5000 + ')' * 5000, 'deep.py'))


# ---------------------------------------------------------------------------------------------
# Device and precision


def test_device():
    assert pick_device('') == pick_device('auto')
    assert torch.empty(1, device=pick_device('auto')).device.type in ('cuda', 'mps', 'cpu')
    assert pick_device('cpu') == 'cpu' and pick_device('meta') == 'meta'
    present = {'cuda': torch.cuda.is_available(), 'mps': torch.backends.mps.is_available()}
    for device in ['banana', 'cuda:99', *(name for name in present if not present[name])]:
        with pytest.raises(BadInput, match=device) as e:
            pick_device(device)
        assert '\n' not in str(e.value)


@pytest.mark.parametrize('has, expected',
                         [({'avx512_bf16': True, 'amx_bf16': False}, torch.bfloat16),
                          ({'avx512_bf16': False, 'amx_bf16': True}, torch.bfloat16),
                          ({'avx512_bf16': False, 'avx512_f': True}, torch.float32), (None, torch.float32)])
def test_a_processor_computes_in_bfloat16_where_it_has_instructions_for_it(monkeypatch, has, expected):
    if has is None:  # an older torch cannot tell
        monkeypatch.delattr(torch.cpu, 'get_capabilities', raising=False)
    else:
        monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: has, raising=False)
    assert pick_dtype('auto', 'cpu') is expected
    assert pick_dtype('auto', 'meta') is pick_dtype('float32', 'cpu') is torch.float32


def test_dtype_and_autocast():
    assert pick_dtype('bfloat16', 'cpu') is torch.bfloat16
    with pytest.raises(BadInput, match='loss scaling'):
        pick_dtype('float16', 'cuda')
    with pytest.raises(BadInput, match='auto, float32 or bfloat16'):
        pick_dtype('int8', 'cpu')
    linear, x = torch.nn.Linear(3, 3), torch.ones(1, 3)
    with autocast('cpu', torch.float32):
        assert linear(x).dtype == torch.float32
    with autocast('cpu', torch.bfloat16):
        assert linear(x).dtype == torch.bfloat16
    with autocast('meta', torch.bfloat16):
        assert linear.to('meta')(x.to('meta')).shape == (1, 3)


# ---------------------------------------------------------------------------------------------
# Errors


def test_bad_item_survives_the_way_back_from_a_worker():
    item = pickle.loads(pickle.dumps(BadItem('truncated', 'a.tar:7', message='12 bytes')))
    assert (item.kind, item.where, item.message) == ('truncated', 'a.tar:7', '12 bytes')
    assert str(item) == 'a.tar:7: truncated (12 bytes)'


def test_one_line():
    assert one_line('a\nb\x1b[31m\r\u2028é') == 'a\\nb\\x1b[31m\\r\\u2028é'


def fail_with(problem):
    def main():
        raise problem
    return main


@pytest.mark.parametrize('problem, status, stderr', [
    (BadInput('first\nsecond'), 2, 'error: first\\nsecond\n'),
    (BadItem('truncated', 'a.png'), 2, 'error: a.png: truncated\n'),
    (FileNotFoundError(2, 'No such file or directory', 'a\nb'), 2,
     'error: a\\nb: No such file or directory\n'),
    (OSError(28, 'No space left on device'), 2, 'error: No space left on device\n'),
    (KeyboardInterrupt(), 130, ''),
])
def test_command(monkeypatch, capsys, problem, status, stderr):
    monkeypatch.setattr(sys, 'argv', ['train.py'])
    with pytest.raises(SystemExit) as e:
        command(fail_with(problem))
    assert e.value.code == status and capsys.readouterr().err == stderr
    monkeypatch.setattr(sys, 'argv', ['train.py', '--debug=True'])
    with pytest.raises(type(problem)) as e:
        command(fail_with(problem))
    assert e.value is problem


def test_command_does_not_hide_bugs(monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['train.py'])
    for bug in [ValueError('ours'), OSError('ours')]:
        with pytest.raises(type(bug), match='ours'):
            command(fail_with(bug))


SCRIPT = """
from kit.cli import command, configure
def main():
    for _ in range(configure({'lines': (3, 'how many lines to print')}).lines):
        print('line')
command(main)
"""


def test_a_script_from_outside():
    python = [sys.executable, '-c', SCRIPT]
    mistake = subprocess.Popen([*python, '--linse=3'], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True)
    pipe = subprocess.Popen([*python, '--lines=1_000_000'], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True)
    assert pipe.stdout.readline() == 'line\n'
    pipe.stdout.close()  # as `| head -1` does
    assert pipe.stderr.read() == '' and pipe.wait() == 141
    assert mistake.communicate() == ('', "error: --linse=3: unknown key 'linse'; did you mean 'lines'?\n")
    assert mistake.returncode == 2
