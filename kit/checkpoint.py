"""Files that are never half-written, and checkpoints that are safe to load.

A checkpoint is a dict of tensors and plain values with two marks, `format` (the version of this layout) and
`kind` (what it holds). Nothing in it is ever executed, so a stranger's checkpoint is as safe as a picture.

    python -m kit.checkpoint out/flamingo.pt assets/nano.pt    # half as large, and assets/nano.json: its command and its table
"""
import contextlib
import json
import os
import pickle
import random
import re
import shlex
import sys
import warnings
import zipfile
from collections import OrderedDict

import numpy as np
import torch

from kit.configurator import BadInput, command

try:
    import fcntl
except ImportError:  # Windows: runs are not kept apart there
    fcntl = None

FORMAT = 1

# ---------------------------------------------------------------------------------------------
# Whole files


@contextlib.contextmanager
def whole_file(path, mode='wb', encoding=None):
    """Write a file that appears under its name only when it is whole; until then the old one stays.

    mode: 'wb', or 'w' for text (UTF-8 unless `encoding` says otherwise). Yields the open file. Raises BadInput
    where it cannot be written: no such folder, read-only, disk full.
    """
    folder, name = os.path.split(os.path.abspath(path))
    temporary = os.path.join(folder, f'.{name}.tmp-{os.getpid()}')  # same folder: a rename cannot cross disks
    if 'b' not in mode:
        encoding = encoding or 'utf-8'
    try:
        with open(temporary, mode, encoding=encoding) as f:
            yield f
            f.flush()
            os.fsync(f.fileno())  # the bytes reach the disk before the name does, even if the power fails
        os.replace(temporary, path)
    except OSError as e:
        if e.filename not in (None, temporary):
            raise  # about some other file that the caller was busy with
        raise BadInput(f'{path}: cannot be written ({e.strerror or e})') from e
    finally:
        with contextlib.suppress(OSError):
            os.remove(temporary)  # nothing to remove after a success
    with contextlib.suppress(OSError):  # some systems cannot open a folder, and then there is nothing to do
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # the new name reaches the disk too
        finally:
            os.close(descriptor)


def clean(folder):
    """Delete what killed runs left half-written in `folder`. Returns how many files that were."""
    leftovers = [name for name in os.listdir(folder) if re.fullmatch(r'\..+\.tmp-\d+', name)]
    for name in leftovers:
        os.remove(os.path.join(folder, name))
    return len(leftovers)


@contextlib.contextmanager
def only_run(out_dir):
    """Keep `out_dir` (made if needed) to this process, and clean it. Raises BadInput if another one is at work there.

    The system drops the lock when the process ends, however it ends, so a killed run never blocks the next.
    """
    try:
        os.makedirs(out_dir, exist_ok=True)
        f = open(os.path.join(out_dir, '.lock'), 'a+')
    except OSError as e:
        raise BadInput(f'{out_dir}: {e.strerror}') from e
    with f:
        try:
            if fcntl:
                # lockf and not flock: worker processes would inherit a flock and outlive a killed run for seconds.
                fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as e:
            f.seek(0)
            raise BadInput(f'{out_dir} is in use by another run (pid {f.read().strip() or "unknown"})') from e
        except OSError:
            pass  # a file system without locks
        f.truncate(0)
        f.write(str(os.getpid()))
        f.flush()
        clean(out_dir)
        yield


# ---------------------------------------------------------------------------------------------
# Checkpoints


def save(path, kind, **content):
    """Write a checkpoint of `kind`. content: tensors and plain values. Raises TypeError (ours) or BadInput (the disk's)."""
    check_plain(content)
    with whole_file(path) as f:
        try:
            torch.save({'format': FORMAT, 'kind': kind, **content}, f)
        except RuntimeError as e:
            if isinstance(e.__context__, OSError):  # a full disk, which torch hides behind an error of its own
                raise e.__context__
            raise


def check_plain(value, where=''):
    """Raises TypeError with the path of keys to the first thing that `load` would refuse.

    Exact types on purpose: a numpy float is a float to isinstance, but needs code to be loaded again.
    """
    if type(value) in (dict, OrderedDict):
        for key, item in value.items():
            check_plain(key, f'{where}: the key {key!r}')
            check_plain(item, f'{where}.{key}' if where else str(key))
    elif type(value) in (list, tuple):
        for i, item in enumerate(value):
            check_plain(item, f'{where}[{i}]')
    elif not isinstance(value, torch.Tensor) and type(value) not in (str, int, float, bool, type(None)):
        raise TypeError(f'{where}: a checkpoint holds tensors and plain values, not {type(value).__name__}')


def load(path, kind, map_location='cpu'):
    """Read a checkpoint of `kind` -> dict. Raises BadInput; nothing in the file is executed."""
    if not os.path.exists(path):
        raise BadInput(f'{path}: no such file')
    if not os.path.isfile(path):
        raise BadInput(f'{path}: not a file; a checkpoint was expected')
    try:
        with open(path, 'rb') as f, warnings.catch_warnings():
            warnings.simplefilter('ignore')  # torch comments on odd files before it refuses them
            if not zipfile.is_zipfile(f):  # the table of contents is at the very end: a truncated file has none
                raise BadInput(f'{path}: damaged, truncated or no checkpoint at all')
            f.seek(0)
            content = torch.load(f, map_location=map_location, weights_only=True)
    except (BadInput, torch.OutOfMemoryError):
        raise
    except OSError as e:
        raise BadInput(f'{path}: {e.strerror or e}') from e
    except pickle.UnpicklingError as e:
        raise BadInput(f'{path}: refused, because it holds more than tensors and plain values; nothing in it was run') from e
    except Exception as e:  # a damaged file can fail anywhere in torch.load
        raise BadInput(f'{path}: damaged, or no checkpoint at all ({str(e).splitlines()[0] if str(e) else type(e).__name__})') from e

    if not isinstance(content, dict) or type(content.get('format')) is not int or 'kind' not in content:
        raise BadInput(f'{path}: not a checkpoint of nanoFlamingo')
    if content['format'] != FORMAT:
        age = 'newer' if content['format'] > FORMAT else 'older'
        raise BadInput(f'{path}: has format {content["format"]}, {age} than format {FORMAT}, the one that this code reads')
    if content['kind'] != kind:
        raise BadInput(f'{path} holds a {content["kind"]}, a {kind} was expected')
    return content


def load_into(module, state, path, what=''):
    """Copy the tensors of a state dict into `module`: every key, no other key, the same shapes. Raises BadInput.

    path and what ('vision', ...): for the message, where the state came from.
    """
    where = f'{path}: {what} ' if what else f'{path}: '
    if not isinstance(state, dict):
        raise BadInput(f'{where}is not a dict of tensors')
    expected = module.state_dict()
    for key in expected:
        if key not in state:
            raise BadInput(f'{where}lacks {key}')
    for key, value in state.items():
        if key not in expected:
            raise BadInput(f'{where}has {key}, which the model lacks')
        if not isinstance(value, torch.Tensor):
            raise BadInput(f'{where}has {key}, which is no tensor')
        if value.shape != expected[key].shape:
            raise BadInput(f'{where}has {key} of shape {tuple(value.shape)}, expected {tuple(expected[key].shape)}')
    module.load_state_dict(state)


# ---------------------------------------------------------------------------------------------
# Random state


def random_state():
    """The state of every random generator, as tensors and plain values: {'python', 'numpy', 'torch', 'cuda'}."""
    name, numbers, *rest = np.random.get_state()
    return {
        'python': random.getstate(),
        'numpy': (name, numbers.tolist(), *rest),
        'torch': torch.get_rng_state(),
        'cuda': torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state):
    """Put back what `random_state` gave; cards that this machine lacks are left out."""
    random.setstate(state['python'])
    np.random.set_state(state['numpy'])
    torch.set_rng_state(state['torch'].cpu())  # generators want their state on the cpu, wherever the file was loaded to
    for i, numbers in zip(range(torch.cuda.device_count()), state['cuda']):
        torch.cuda.set_rng_state(numbers.cpu(), i)


# ---------------------------------------------------------------------------------------------
# A small one to give away


def halve(source, target):
    """A trained flamingo.pt with its weights in float16, for others to try, and beside it a .json with the command that made it
    and the table of its results.json. Loading copies the weights into a float32 model again. Raises BadInput."""
    content = load(source, 'flamingo')
    name, extension = os.path.splitext(target)
    if extension != '.pt':
        raise BadInput(f'{target}: must end in .pt')
    results = os.path.join(os.path.dirname(source), 'results.json')
    try:
        with open(results, encoding='utf-8') as f:
            rows = json.load(f)
    except OSError as e:
        raise BadInput(f'{results}: {e.strerror}; it is written beside {source} at the end of training') from e
    except ValueError as e:
        raise BadInput(f'{results}: not JSON ({e})') from e
    from train import KEYS  # here, or every script that reads a checkpoint would load the training script
    # Without the stage: where they were trained one by one, this is the command for all of them.
    given = {k: v for k, v in content['keys'].items() if k in KEYS and v != KEYS[k][0] and k not in ('stage', 'out_dir', 'init_from', 'device')}
    for part in ('flamingo', 'contrastive'):
        content[part] = {k: v.half() if v.is_floating_point() else v for k, v in content[part].items()}
    save(target, 'flamingo', **{k: v for k, v in content.items() if k not in ('format', 'kind')})
    with whole_file(name + '.json', 'w') as f:
        json.dump({'made by': shlex.join(['python', 'train.py', *(f'--{k}={v}' for k, v in given.items())]), 'rows': rows}, f, indent=1)
    print(f'{target}: {os.path.getsize(target) / 1e6:.1f} MB, and {name}.json')


def main():
    if len(sys.argv) != 3:
        raise BadInput('python -m kit.checkpoint FROM.pt TO.pt')
    halve(*sys.argv[1:])


if __name__ == '__main__':
    command(main)
