"""Matrix products of few rows, on a CPU: weights in the order in which they are read.

A new word for 8 prompts uses every weight of the model 8 times and no more, so it takes as long as memory takes to bring the
weights. PyTorch's float32 products (those of MKL) are made for many rows and leave half of memory's speed or more unused. oneDNN,
which comes with PyTorch, too, keeps weights in an order of its own and reads them two to three times as fast. To bring them into
that order takes as long as four products do: it is done once for an answer, and only where the answer may be long.
"""
import contextlib

import torch
from torch import nn


LEAST_WEIGHTS = 4 << 20  # fewer (16 MiB) stay in the processor's caches, where reading them costs little
MOST_WEIGHTS = 1 << 30   # a copy of more (4 GiB) might not fit beside them
LEAST_WORDS = 8
# What torch.compile puts in the place of a linear layer whose weights do not change. Not every build of PyTorch has it.
OPERATOR = getattr(torch.ops.mkldnn, '_linear_pointwise', None) if torch.backends.mkldnn.is_available() else None


def product(weight, bias, n_row):
    """weight (D',D) float32 on a CPU, bias (D',) or None -> the function x ↦ x Wᵀ + b, from (…,D) to (…,D'), for x of n_row rows"""
    ordered = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), n_row)
    return lambda x: OPERATOR(x, ordered, bias, 'none', [], '')


def in_place_of(plain, fast):
    """`fast` for the answer that is being written; `plain` for what another thread may ask of the same layer, with gradients, say."""
    return lambda x: fast(x) if torch.is_inference_mode_enabled() else plain(x)


def pays(weights, n_word):
    plain = all(type(w.data) is torch.Tensor and w.device.type == 'cpu' and w.dtype == torch.float32 for w in weights)  # not sharded, not on meta
    return (OPERATOR is not None and plain and not torch.is_autocast_enabled('cpu')
            and n_word >= LEAST_WORDS and LEAST_WEIGHTS <= sum(w.numel() for w in weights) <= MOST_WEIGHTS)


@contextlib.contextmanager
def packed(model, n_row, n_word):
    """As long as it lasts, a Flamingo's step to the next word is for n_row rows of one token, without gradients: its linear layers
    and its head have their weights packed, and autograd is not even asked, which saves an eighteenth of the time. Where that cannot be, or
    does not pay for n_word words, all is as ever."""
    layers = [m for part in (model.lm.h, model.gated) for name, m in part.named_modules()
              if type(m) is nn.Linear and 'forward' not in m.__dict__      # and nobody has made more of it
              and not name.endswith('to_kv')]                              # keys and values of pictures are there already
    if not pays([model.lm.wte.weight, model.new_rows, *(m.weight for m in layers)], n_word):
        yield
        return
    try:
        model.head = in_place_of(model.head, product(torch.cat([model.lm.wte.weight, model.new_rows]), None, n_row))
        for m in layers:  # an attribute of this one layer, found before its class's method
            m.forward = in_place_of(m.forward, product(m.weight, m.bias, n_row))
        with torch.inference_mode():
            yield
    finally:
        model.__dict__.pop('head', None)
        for m in layers:
            m.__dict__.pop('forward', None)
