"""The cells of an ablation: which are finished, running them side by side, and the file that grows.

out_dir/ablations.json holds the rows of results of all finished cells. What a cell was made of (the keys, the
checkpoints, the model's files) stands in each of its rows as a number, `made_of`: cells of other settings
stay in the file and are left out of the table.
"""
import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections import deque
from types import SimpleNamespace

from tqdm import tqdm

from kit.files import BadInput, one_line, read_json, whole_file
from kit.run.keys import AUGMENT, FOLDERS
from kit.run.run import FREE_KEYS
from model import PRESETS

FILE, LIMIT = 'ablations.json', 64 << 20
OF_NO_MATTER = FREE_KEYS | {'rows', 'seeds', 'jobs', 'cell', 'given', 'seed', 'eval_every', 'eval_n'}
OF_PICTURES = FOLDERS | AUGMENT  # keys that say something where they are not at their defaults
ROW_KEYS = ('task', 'metric', 'value', 'low', 'high', 'n', 'row', 'seed', 'steps', 'parameters', 'made_of')


def resolved(config):
    """The namespace of all keys -> one with the sizes of the preset, where none were given, as
    kit.run.run.Run takes them."""
    preset = {k: v for k, v in PRESETS.get(config.preset, {}).items() if k not in config.given}
    return SimpleNamespace(**vars(config) | preset)


# ---------------------------------------------------------------------------------------------
# Checkpoints


def needed(row):
    """The files that a row starts from."""
    if row.stage == 'vision':
        return []
    if row.stage == 'finetune':
        return ['vision.pt', 'language.pt', 'flamingo.pt']
    return ['language.pt'] if row.new_vision else ['vision.pt', 'language.pt']


def check_checkpoints(config, rows):
    """Raises BadInput that says how to make what is missing."""
    for name in dict.fromkeys(name for row in rows for name in needed(row)):
        path = os.path.join(config.out_dir, name)
        if not os.path.exists(path):
            out_dir = '' if config.out_dir == 'out' else f' --out_dir={config.out_dir}'
            raise BadInput(f'{path}: no such file; python train.py --stage={name.removesuffix(".pt")}'
                           f'{out_dir} makes it')


def link_checkpoints(config, row, folder):
    """Put what the row starts from into the folder of its cell."""
    for name in needed(row):
        source, target = os.path.join(config.out_dir, name), os.path.join(folder, name)
        if os.path.exists(target):
            continue
        try:
            os.link(source, target)
        except OSError:  # another disk, or a file system without links
            shutil.copyfile(source, target)


def made_of(config, row):
    """A number of eight hexadecimal digits that differs where the settings, the checkpoints or the files of
    the model do, so that an edited part is trained again."""
    values = {k: v for k, v in sorted(vars(resolved(config)).items())
              if k not in OF_NO_MATTER and not (k in OF_PICTURES and v == OF_PICTURES[k][0])}
    number = zlib.crc32((repr(values) + source_of(row.model)).encode())
    for name in needed(row):
        with open(os.path.join(config.out_dir, name), 'rb') as f:
            number = zlib.crc32(f.read(), number)
    return f'{number:08x}'


def source_of(model):
    """The files in which the classes of a model and of its parts stand, one after the other: layers and
    functions that these classes call are mostly beside them."""
    parts = [model, *(getattr(model, name) for name in ('Resampler', 'Gated') if hasattr(model, name))]
    names = {c.__module__ for part in parts for c in part.__mro__}
    ours = [name for name in sorted(names) if name.partition('.')[0] not in ('torch', 'builtins')]
    return ''.join(inspect.getsource(sys.modules[name]) for name in ours)


# ---------------------------------------------------------------------------------------------
# Results


def folder(config, row, seed):
    return os.path.join(config.out_dir, 'cells', f'{row.name}-{seed}')


def write_rows(path, found):
    """Rows of results as JSON, a line each."""
    with whole_file(path, 'w', encoding='utf-8') as f:
        f.write('[\n' + ',\n'.join(json.dumps(row) for row in found) + '\n]\n')


def read_rows(path):
    """-> the rows of all finished cells. Raises BadInput where the file is damaged."""
    if not os.path.exists(path):
        return []
    found = read_json(path, LIMIT)
    whole = lambda row: isinstance(row, dict) and set(ROW_KEYS) <= set(row)
    if not isinstance(found, list) or not all(map(whole, found)):
        raise BadInput(f'{path}: damaged, or no rows of this command')
    return found


# ---------------------------------------------------------------------------------------------
# Running


def run_all(config, cells, script, arguments):
    """Train the cells [(Row, seed)] that are not finished, --jobs of them at a time -> what failed, in words.

    script, arguments: the command that trains one, with --cell=ROW:SEED. After Ctrl-C or a polite kill the
    cells save where they are, and the command exits with 128 + the signal's number.
    """
    path = os.path.join(config.out_dir, FILE)
    found, marks = read_rows(path), {row.name: made_of(config, row) for row, _ in cells}
    done = {(row['row'], row['seed'], row['made_of']) for row in found}
    waiting = deque(cell for cell in cells if (cell[0].name, cell[1], marks[cell[0].name]) not in done)
    running, failed, stop = {}, [], []
    handlers = {number: signal.signal(number, lambda number, frame: stop.append(number))
                for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with tqdm(total=len(cells), initial=len(cells) - len(waiting), desc='cells', unit='cell') as bar:
            while running or waiting and not stop:
                while waiting and len(running) < config.jobs and not stop:
                    cell = waiting.popleft()
                    running[start(config, cell, script, arguments)] = cell
                now = ' '.join(f'{row.name}:{seed}' for row, seed in running.values())
                bar.set_postfix_str(now, refresh=now not in (bar.postfix or ''))
                time.sleep(0.2)
                for process in running if stop else []:
                    process.terminate()
                for process in [p for p in running if p.poll() is not None]:
                    row, seed = running.pop(process)
                    if process.returncode == 0:
                        where = folder(config, row, seed)
                        found += [r | {'made_of': marks[row.name]}
                                  for r in read_json(os.path.join(where, 'rows.json'), LIMIT)]
                        write_rows(path, found)
                        shutil.rmtree(where)
                        bar.update()
                    elif not stop:
                        failed.append(f'{row.name}:{seed} ({last_words(folder(config, row, seed))})')
                        tqdm.write('failed: ' + failed[-1])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if stop:
        print('stopped; what is trained so far is saved: give the same command to go on', file=sys.stderr)
        sys.exit(128 + stop[0])
    return failed


def start(config, cell, script, arguments):
    row, seed = cell
    where = folder(config, row, seed)
    os.makedirs(where, exist_ok=True)
    with open(os.path.join(where, 'log.txt'), 'ab') as log:
        # Of a group of its own: Ctrl-C reaches this process alone, which tells the cells.
        return subprocess.Popen([sys.executable, script, *arguments, f'--cell={row.name}:{seed}'], stdout=log,
                                stderr=log, env=os.environ | {'OMP_NUM_THREADS': '1'}, start_new_session=True)


def last_words(where):
    """The last line of a cell's log."""
    with open(os.path.join(where, 'log.txt'), 'rb') as f:
        lines = f.read()[-4000:].decode(errors='replace').replace('\r', '\n').split('\n')
    return one_line(next((line for line in reversed(lines) if line.strip()), 'no message'))


def for_table(config, found, rows):
    """Of the rows of all finished cells those of these Rows that belong to these settings."""
    rows = [row for row in rows if all(os.path.exists(os.path.join(config.out_dir, x)) for x in needed(row))]
    marks = {row.name: made_of(config, row) for row in rows}
    return [row for row in found if marks.get(row['row']) == row['made_of']]
