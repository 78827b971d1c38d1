"""Checkpoints that are safe to load.

A checkpoint is a dict of tensors and plain values with two marks, `format` (the version of this layout) and
`kind` (what it holds). Nothing in it is ever executed, so a stranger's checkpoint is as safe as a picture.

kit/weights/small.py makes a small one to give away.
"""
import os
import pickle
import pickletools
import random
import re
import warnings
import zipfile
from collections import OrderedDict

import numpy as np
import torch

from kit.files import BadInput, whole_file


FORMAT = 1


# ---------------------------------------------------------------------------------------------
# Checkpoints


def save(path, kind, **content):
    """Write a checkpoint of `kind`. content: tensors and plain values. Raises TypeError if it holds anything
    else, and BadInput if it cannot be written."""
    check_plain(content)
    with whole_file(path) as f:
        try:
            torch.save({'format': FORMAT, 'kind': kind, **content}, f)
        except RuntimeError as e:
            if isinstance(e.__context__, OSError):  # a full disk, hidden behind an error of torch's own
                raise e.__context__
            raise


def check_plain(value, where='', seen=None):
    """-> how many bytes the tensors in it take. Raises TypeError with the path of keys to the first thing
    that `load` would refuse.

    Exact types on purpose: a numpy float is a float to isinstance, but needs code to be loaded again.
    """
    seen = set() if seen is None else seen
    if isinstance(value, (dict, list, tuple)):
        if id(value) in seen:  # met before; a list may even hold itself
            return 0
        seen.add(id(value))
    if type(value) in (dict, OrderedDict):
        n_byte = sum(check_plain(key, f'{where}: the key {key!r}', seen) for key in value)
        return n_byte + sum(check_plain(item, f'{where}.{key}' if where else str(key), seen)
                            for key, item in value.items())
    if type(value) in (list, tuple):
        return sum(check_plain(item, f'{where}[{i}]', seen) for i, item in enumerate(value))
    if isinstance(value, torch.Tensor):
        n_byte = value.numel() * value.element_size()
        plain = value.layout == torch.strided and not value.is_quantized and not value.is_meta
        if not plain or n_byte > value.untyped_storage().nbytes():
            raise TypeError(f'{where}: a checkpoint holds plain tensors, each number written out')
        return n_byte
    if type(value) not in (str, int, float, bool, type(None)):
        raise TypeError(f'{where}: a checkpoint holds tensors and plain values, not {type(value).__name__}')
    return 0


# All that tensors and plain values need. weights_only allows more: bytearray(10 ** 11), for one, would fill
# the memory.
HARMLESS = re.compile(r'torch \w+Storage|torch\._utils _rebuild_tensor_v2|collections OrderedDict')
NAMES_CODE = ('GLOBAL', 'STACK_GLOBAL', 'INST', 'OBJ', 'NEWOBJ', 'NEWOBJ_EX', 'EXT1', 'EXT2', 'EXT4')


def look_inside(f, path, harmless=HARMLESS):
    """Read what a checkpoint would do, without doing it. f: the open file. Raises BadInput if it would call
    anything but what is `harmless`, or unpack to more than its own size."""
    with zipfile.ZipFile(f) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED:  # as torch never does: zeros shrink to nothing
                raise BadInput(f'{path}: refused, because it is compressed and could unpack to any size')
            if entry.filename.endswith('data.pkl'):
                for operation, argument, _ in pickletools.genops(archive.read(entry)):
                    if operation.name in NAMES_CODE and not harmless.fullmatch(str(argument)):
                        raise more_than_tensors(path)


def more_than_tensors(path):
    return BadInput(f'{path}: refused, because it holds more than tensors and plain values; '
                    'nothing in it was run')


def load(path, kind, map_location='cpu', **fields):
    """Read a checkpoint of `kind` -> dict. fields: what must be in it, and of which type (config=dict).

    Raises BadInput. Nothing in the file is executed, and no more memory is taken than the file has bytes.
    """
    if not os.path.exists(path):
        raise BadInput(f'{path}: no such file')
    if not os.path.isfile(path):
        raise BadInput(f'{path}: not a file; a checkpoint was expected')
    try:
        with open(path, 'rb') as f, warnings.catch_warnings():
            warnings.simplefilter('ignore')  # torch comments on odd files before it refuses them
            if not zipfile.is_zipfile(f):  # its table of contents is at the end: a truncated file has none
                raise BadInput(f'{path}: damaged, truncated or no checkpoint at all')
            look_inside(f, path)
            f.seek(0)
            content = torch.load(f, map_location=map_location, weights_only=True)
            if check_plain(content) > os.fstat(f.fileno()).st_size:
                raise BadInput(f'{path}: refused, because its tensors claim to be larger than the file')
    except (BadInput, torch.OutOfMemoryError):
        raise
    except OSError as e:
        raise BadInput(f'{path}: {e.strerror or e}') from e
    except pickle.UnpicklingError as e:
        raise more_than_tensors(path) from e
    except Exception as e:  # a damaged file can fail anywhere in torch.load
        why = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise BadInput(f'{path}: damaged, or no checkpoint at all ({why})') from e

    if not isinstance(content, dict) or type(content.get('format')) is not int or 'kind' not in content:
        raise BadInput(f'{path}: not a checkpoint of nanoFlamingo')
    if content['format'] != FORMAT:
        age = 'newer' if content['format'] > FORMAT else 'older'
        raise BadInput(f'{path}: has format {content["format"]}, {age} than format {FORMAT}, '
                       'the one that this code reads')
    if content['kind'] != kind:
        raise BadInput(f'{path} holds a {str(content["kind"])[:40]}, a {kind} was expected')
    for name, wanted in fields.items():
        if not isinstance(content.get(name), wanted):
            raise BadInput(f'{path}: damaged: {name} is missing, or not what it should be')
    return content


def check_state(module, state, path, what=''):
    """Does a state dict fit `module`: every key, no other key, the same shapes? Raises BadInput. The module
    may be on `meta`, where it takes no memory.

    path and what ('vision', ...): for the message, where the state came from.
    """
    where = f'{path}: {what} ' if what else f'{path}: '
    if not isinstance(state, dict):
        raise BadInput(f'{where}is not a dict of tensors')
    expected = module.state_dict()
    check_shapes(state, {key: value.shape for key, value in expected.items()}, where)
    for key, value in state.items():
        if value.is_floating_point() != expected[key].is_floating_point():
            raise BadInput(f'{where}has {key} of type {value.dtype}, expected {expected[key].dtype}')


def check_shapes(state, shapes, where, optional={}):
    """A state dict must hold every key of `shapes` ({key: shape}), and no key that is neither there nor in
    `optional`, all of them tensors of their shapes (None: any length). Raises BadInput that names the first
    one that is wrong."""
    for key in shapes:
        if key not in state:
            raise BadInput(f'{where}lacks {key}')
    for key, value in state.items():
        if key not in shapes and key not in optional:
            raise BadInput(f'{where}has {key}, which the model lacks')
        if not isinstance(value, torch.Tensor):
            raise BadInput(f'{where}has {key}, which is no tensor')
        shape = tuple(shapes[key] if key in shapes else optional[key])
        if len(shape) != value.ndim or any(a not in (None, b) for a, b in zip(shape, value.shape)):
            raise BadInput(f'{where}has {key} of shape {tuple(value.shape)}, expected {shape}')


def load_into(module, state, path, what='', place=None):
    """Copy the tensors of a state dict into `module`. Raises BadInput, as `check_state` does.

    place(tensor, mine): what to make of a tensor first, if the module's own, `mine`, is split over processes.
    """
    check_state(module, state, path, what)
    if place is not None:
        mine = module.state_dict()
        state = {key: place(value, mine[key]) for key, value in state.items()}
    module.load_state_dict(state)


def load_optimizer(optimizer, state, path, place=None):
    """Put back the moments of an optimizer for the same parameters; learning rates and the like stay as they
    are. Raises BadInput.

    place: as in `load_into`.
    """
    moments, now = state.get('state'), optimizer.state_dict()
    parameters = dict(enumerate(p for group in optimizer.param_groups for p in group['params']))
    known = isinstance(moments, dict) and set(moments) <= set(parameters)
    if not known or not all(are_moments(moment, parameters[k]) for k, moment in moments.items()):
        raise BadInput(f'{path}: damaged: its optimizer is not that of this model')
    if place is not None:
        moments = {k: {name: place(x, parameters[k]) for name, x in moment.items()}
                   for k, moment in moments.items()}
    optimizer.load_state_dict({'state': moments, 'param_groups': now['param_groups']})


def are_moments(moment, p):
    """Is it what AdamW keeps about a parameter: the two moments in its shape, and the number of steps?"""
    if not isinstance(moment, dict) or set(moment) != {'step', 'exp_avg', 'exp_avg_sq'}:
        return False
    numbers = all(isinstance(x, torch.Tensor) and x.is_floating_point() for x in moment.values())
    return numbers and moment['exp_avg'].shape == moment['exp_avg_sq'].shape == p.shape and (
        moment['step'].shape in (p.shape, ()))


# ---------------------------------------------------------------------------------------------
# Random state


def random_state():
    """The state of every random generator, as tensors and plain values: {'python', 'numpy', 'torch',
    'cuda'}."""
    name, numbers, *rest = np.random.get_state()
    return {
        'python': random.getstate(),
        'numpy': (name, numbers.tolist(), *rest),
        'torch': torch.get_rng_state(),
        'cuda': torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state):
    """Put back what `random_state` gave; cards that this machine lacks are left out. Raises BadInput."""
    try:
        random.setstate(state['python'])
        np.random.set_state(state['numpy'])
        torch.set_rng_state(state['torch'].cpu())  # generators want it there, wherever it was loaded to
        for i, numbers in zip(range(torch.cuda.device_count()), state['cuda']):
            torch.cuda.set_rng_state(numbers.cpu(), i)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as e:
        raise BadInput(f'the saved random state is damaged ({type(e).__name__})') from e
