"""Matrix products of few rows, on a CPU: weights in the order in which they are read.

A new word for 8 prompts uses every weight of the model 8 times and no more, so it takes as long as memory
takes to bring the weights. PyTorch's float32 products (those of MKL) are made for many rows and leave half
of memory's speed or more unused. oneDNN, which comes with PyTorch, too, keeps weights in an order of its
own and reads them two to three times as fast. To bring them into that order takes as long as four products
do: it is done once for an answer, and only where the answer may be long.
"""
from copy import copy

import torch
from torch import nn

LEAST_WEIGHTS = 4 << 20  # fewer (16 MiB) stay in the processor's caches, where reading them costs little
MOST_WEIGHTS = 1 << 30   # a copy of more (4 GiB) might not fit beside them
LEAST_WORDS = 8
# What torch.compile puts in the place of a linear layer whose weights do not change. Not every PyTorch has
# it.
OPERATOR = None
if torch.backends.mkldnn.is_available():
    OPERATOR = getattr(torch.ops.mkldnn, '_linear_pointwise', None)


def product(weight, bias, n_row):
    """weight (D',D) float32 on a CPU, bias (D',) or None -> the function x ↦ x Wᵀ + b, from (…,D) to
    (…,D'), for x of n_row rows, without gradients"""
    ordered = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), n_row)
    return lambda x: OPERATOR(x, ordered, bias, 'none', [], '')


class Packed(nn.Module):
    """An nn.Linear for n_row rows, without gradients."""

    def __init__(self, linear, n_row):
        super().__init__()
        self.product = product(linear.weight, linear.bias, n_row)

    def forward(self, x):
        return self.product(x)


def is_linear(module):
    return type(module) is nn.Linear and 'forward' not in module.__dict__  # and nobody has made more of it


def pays(weights, n_word):
    plain = all(type(w.data) is torch.Tensor and w.device.type == 'cpu' and w.dtype == torch.float32
                for w in weights)  # not sharded, not on meta
    return (OPERATOR is not None and plain and not torch.is_autocast_enabled('cpu')
            and n_word >= LEAST_WORDS and LEAST_WEIGHTS <= sum(w.numel() for w in weights) <= MOST_WEIGHTS)


def with_packed_layers(module, n_row):
    """A copy of a module that shares all with it but its linear layers, or itself where it has none. Those
    for keys and values of pictures stay: they are made once (kit/fast/kept.py)."""
    if is_linear(module):
        return Packed(module, n_row)
    parts = {name: with_packed_layers(part, n_row)
             for name, part in module.named_children() if name != 'to_kv'}
    if all(part is module._modules[name] for name, part in parts.items()):
        return module
    new = copy(module)
    new._modules = module._modules | parts
    return new


def packed(model, n_row, n_word):
    """A Flamingo -> one like it for `stream` and `head` of n_row rows of one token, without gradients,
    whose weights are packed; or itself, where that cannot be or does not pay for n_word words. Weights that
    change later do not count."""
    layers = [m for part in (model.lm.h, model.gated) for name, m in part.named_modules()
              if is_linear(m) and not name.endswith('to_kv')]
    if not pays([model.lm.wte.weight, model.new_rows, *(m.weight for m in layers)], n_word):
        return model
    fast = copy(model)
    parts = {name: with_packed_layers(getattr(model, name), n_row) for name in ('lm', 'gated')}
    fast._modules = model._modules | parts
    fast.head = product(torch.cat([model.lm.wte.weight, model.new_rows]), None, n_row)
    return fast
