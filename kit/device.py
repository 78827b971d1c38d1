"""The device, the precision and the memory of a run."""
import contextlib
import os

import torch

from kit.files import BadInput


# ---------------------------------------------------------------------------------------------
# Device and precision


def pick_device(device, meta=True):
    """'' or 'auto' -> the best device there is; any other name is checked. Returns str. Raises BadInput.

    meta: whether 'meta' is allowed, where tensors have a size and nothing is computed.
    """
    if device in ('', 'auto'):
        if torch.cuda.is_available():
            return 'cuda'
        return 'mps' if torch.backends.mps.is_available() else 'cpu'
    try:
        torch.device(device)
    except RuntimeError as e:
        raise BadInput(f'--device={device}: no such device; try auto, cpu, cuda, cuda:1 or mps') from e
    try:
        torch.empty(1, device=device)  # the only test that works for every kind of device and every index
    except Exception as e:  # the kind of error depends on the device and on how torch was built
        raise BadInput(f'--device={device}: not available on this machine; '
                       '--device=auto takes what there is') from e
    if not meta and torch.device(device).type == 'meta':
        raise BadInput('--device=meta: nothing is computed there; try auto, cpu, cuda, cuda:1 or mps')
    return device


def check_memory(n_byte, device, what):
    """Raises BadInput if `what`, of n_byte bytes, is larger than the device's memory. The system would kill
    us without a word."""
    if torch.device(device).type == 'cuda':
        total = torch.cuda.mem_get_info(device)[1]
    elif hasattr(os, 'sysconf'):
        total = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    else:  # Windows does not tell
        return
    if n_byte > total:
        raise BadInput(f'{what} would take {n_byte / 2 ** 30:,.0f} GiB, '
                       f'and {device} has {total / 2 ** 30:,.0f} GiB: choose a smaller one')


def pick_dtype(dtype, device):
    """'auto', 'float32' or 'bfloat16' -> torch.dtype. Raises BadInput."""
    if dtype == 'auto':
        # Emulated bfloat16 (older cards and processors) is slower than float32 and does not count as support.
        kind = torch.device(device).type
        if kind == 'cpu':
            has = getattr(torch.cpu, 'get_capabilities', dict)()  # an older torch cannot tell: float32
            fast = has.get('avx512_bf16') or has.get('amx_bf16')
        else:
            fast = kind == 'cuda' and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fast else torch.float32
    if dtype == 'float16':
        raise BadInput('--dtype=float16: its gradients underflow without loss scaling, '
                       'which this code does not do; use bfloat16')
    choices = {'float32': torch.float32, 'bfloat16': torch.bfloat16}
    if dtype not in choices:
        raise BadInput(f'--dtype={dtype}: expected auto, float32 or bfloat16')
    return choices[dtype]


def frozen_dtype(dtype, device, dim):
    """The dtype of the frozen weights of a model of width dim.

    On a GPU they are bfloat16, as in the paper, and so is the stream through the frozen blocks. bfloat16's
    eight bits are too coarse for a narrow model: at width 128, "what color is it?" was answered with the
    shape as often as with the colour. float32 costs memory, but a narrow model needs little of it, and a CPU
    has enough.
    """
    return torch.float32 if dim < 512 or torch.device(device).type == 'cpu' else dtype


def autocast(device, dtype, cache=True):
    """The context to run a forward in: mixed precision for bfloat16, nothing for float32.

    cache: keep the bfloat16 copies of float32 weights for their next use in the same context. Training uses
    each weight once, and would hold the copies for nothing.
    """
    device_type = torch.device(device).type
    if dtype == torch.float32 or device_type == 'meta':  # nothing is computed on meta
        return contextlib.nullcontext()
    return torch.autocast(device_type, dtype, cache_enabled=cache)
