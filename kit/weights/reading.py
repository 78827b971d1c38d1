"""Weights in the files that others publish them in: one file or several, PyTorch's format or safetensors.

Nothing in a file is executed, and reading takes no more memory than the files are long.
"""
import json
import math
import os
import pickle
import pickletools
import re
import warnings
import zipfile

import torch

from kit.files import BadInput, read_json
from kit.weights.checkpoint import HARMLESS, NAMES_CODE, look_inside, more_than_tensors

# What a folder may hold, first found first read.
USUAL = ('model.safetensors', 'model.safetensors.index.json',
         'pytorch_model.bin', 'pytorch_model.bin.index.json')
LIMIT_INDEX = 64 << 20  # bytes of an index
# A state dict may lie in a dict of other things, and its names may have been lengthened by what trained it.
WRAPPERS = ('state_dict', 'model', 'model_state_dict')
PREFIX = re.compile(r'^((module|model|transformer)\.)*')
# Parameters as such, and what else torch writes of plain tensors.
HARMLESS_TOO = re.compile(HARMLESS.pattern +
                          r'|torch\._utils _rebuild_parameter|torch (Size|device|b?float\d+)')
DTYPES = {'F64': torch.float64, 'F32': torch.float32, 'F16': torch.float16, 'BF16': torch.bfloat16,
          'I64': torch.int64, 'I32': torch.int32, 'I16': torch.int16, 'I8': torch.int8,
          'U8': torch.uint8, 'BOOL': torch.bool}


def read_published(path):
    """-> (state dict without prefixes such as `module.`, path of the file). Raises BadInput.

    path: a file of torch.save (.bin, .pth, .pt), a .safetensors, an .index.json that tells which of several
    files holds which tensor, or a folder with one of them under its USUAL name. Tensors may be views of the
    file: copy what is to be kept.
    """
    if os.path.isdir(path):
        names = [name for name in USUAL if os.path.exists(os.path.join(path, name))]
        if not names:
            raise BadInput(f'{path}: holds neither {" nor ".join(USUAL)}')
        path = os.path.join(path, names[0])
    state = read_index(path) if str(path).endswith('.index.json') else read_file(path)
    plain = {}
    for key, value in state.items():
        name = PREFIX.sub('', key.replace('_orig_mod.', ''))
        if name in plain:
            raise BadInput(f'{path}: has {name} twice, under two prefixes')
        plain[name] = value
    return plain, path


def read_index(path):
    """All tensors of the files that an index names, which must lie beside it -> {name: tensor}"""
    content = read_json(path, LIMIT_INDEX)
    where = content.get('weight_map') if isinstance(content, dict) else None
    if not isinstance(where, dict) or not where or not all(isinstance(name, str) for name in where.values()):
        raise BadInput(f'{path}: has no weight_map, which tells the file of each tensor')
    state = {}
    for name in sorted(set(where.values())):
        if re.search(r'[/\\:]', name) or name in ('', '.', '..'):
            raise BadInput(f'{path}: names {name!r}, which is not a file beside it')
        part = read_file(os.path.join(os.path.dirname(path), name))
        state |= {key: value for key, value in part.items() if where.get(key, name) == name}
    for key, name in where.items():
        if key not in state:
            raise BadInput(f'{path}: {name} lacks {key}')
    return state


def read_file(path):
    """One file -> {name: tensor}. Raises BadInput."""
    if not os.path.exists(path):
        raise BadInput(f'{path}: no such file')
    if not os.path.isfile(path):
        raise BadInput(f'{path}: not a file; published weights were expected')
    try:
        state = read_safetensors(path) if str(path).endswith('.safetensors') else read_torch(path)
    except BadInput:
        raise
    except OSError as e:
        raise BadInput(f'{path}: {e.strerror or e}') from e
    except pickle.UnpicklingError as e:
        raise more_than_tensors(path) from e
    except Exception as e:  # a damaged file can fail anywhere in there
        raise BadInput(f'{path}: damaged, or no file of weights at all ({type(e).__name__})') from e
    tensors = list(state.values()) if isinstance(state, dict) else [None]
    if not all(isinstance(v, torch.Tensor) for v in tensors) or not all(type(key) is str for key in state):
        raise BadInput(f'{path}: not a dict of tensors')
    plain = all(v.layout == torch.strided and v.device.type == 'cpu' and not v.is_quantized for v in tensors)
    # Twice, because tables may be shared: a tied head is the table of words under a second name.
    if not plain or sum(v.nbytes for v in tensors) > 2 * os.path.getsize(path):
        raise BadInput(f'{path}: refused, because its tensors claim to be larger than the file')
    return state


def read_torch(path):
    """A file of torch.save: a zip archive today, before 2020 five pickles and then the numbers."""
    with open(path, 'rb') as f, warnings.catch_warnings():
        warnings.simplefilter('ignore')  # torch comments on odd files before it refuses them
        is_zip = zipfile.is_zipfile(f)
        f.seek(0)
        if is_zip:
            look_inside(f, path, HARMLESS_TOO)
        else:
            for _ in range(5):
                for operation, argument, _ in pickletools.genops(f):
                    if operation.name in NAMES_CODE and not HARMLESS_TOO.fullmatch(str(argument)):
                        raise more_than_tensors(path)
        state = torch.load(path, map_location='cpu', weights_only=True, mmap=is_zip)
    for _ in WRAPPERS:  # wrapped once or twice
        inner = [state[k] for k in WRAPPERS if isinstance(state, dict) and isinstance(state.get(k), dict)]
        state = inner[0] if inner else state
    return state


def read_safetensors(path):
    """{name: tensor}: 8 bytes with the length of a header, the header in JSON, then the numbers."""
    with open(path, 'rb') as f:
        size = os.fstat(f.fileno()).st_size
        start = 8 + int.from_bytes(f.read(8), 'little')
        if start > size:
            raise BadInput(f'{path}: damaged, or no safetensors')
        header = json.loads(f.read(start - 8))
    data, state = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)[start:], {}
    for name, entry in header.items():
        if name == '__metadata__':
            continue
        dtype, shape, (begin, end) = DTYPES.get(entry['dtype']), entry['shape'], entry['data_offsets']
        if dtype is None:
            raise BadInput(f'{path}: has {name} of type {entry["dtype"]}, which is not read')
        if not all(type(n) is int and n >= 0 for n in (*shape, begin, end)) or (
                end - begin != math.prod(shape) * dtype.itemsize or end > len(data)):
            raise BadInput(f'{path}: damaged: {name} is not where it should be')
        part = data[begin:end]
        part = part.clone() if (start + begin) % dtype.itemsize else part  # a view must begin at a multiple
        state[name] = part.view(dtype).view(shape)
    return state
