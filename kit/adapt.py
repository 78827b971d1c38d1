"""What of a trained Flamingo trains on, when it is fine-tuned: all that the paper trains, or very little.

    --adapt=all       the resampler, the gated layers and the vision encoder (the paper, end of the appendix)
    --adapt=adapter   a bottleneck after each gated layer (Houlsby et al. 2019, arXiv:1902.00751)
    --adapt=bitfit    the biases of all but the encoder (Ben Zaken et al. 2021, arXiv:2106.10199)
    --adapt=prompt    a few soft words after <BOS> (Lester et al. 2021, arXiv:2104.08691)

All but the first leave the encoder as it is, so the features of pictures are kept. `python train.py
--stage=finetune` uses it; kit/weights/flamingo.py reads the result.
"""
from dataclasses import dataclass, replace
from typing import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from model import Flamingo
from xattn import GatedCrossAttention

N_SOFT = 8       # soft words
BOTTLENECK = 8   # how many times narrower than the model an adapter is


class Prompted(Flamingo):
    """A Flamingo with N_SOFT words more, ids V+2 …, that are read and never said. They begin as words do."""

    def __init__(self, config, vision=None, lm=None):
        super().__init__(config, vision, lm)
        some = torch.arange(N_SOFT) * (config.n_vocab // N_SOFT)
        self.soft_prompt = nn.Parameter(self.lm.wte.weight[some].detach().clone())

    def embed(self, tokens):
        first = self.image + 2
        y = super().embed(tokens.masked_fill(tokens >= first, 0))
        soft = F.embedding((tokens - first).clamp(min=0), self.soft_prompt).to(y.dtype)
        return torch.where((tokens >= first).unsqueeze(-1), soft, y)


def with_prompt(encoded, config, cut=True):
    """data.Encoded -> the same with the soft words after its <BOS>, or in front of a window that begins
    later. cut: what no longer fits the context is left out.

    config: FlamingoConfig
    """
    most, first = config.n_context if cut else None, config.n_vocab + 2
    at = int(encoded.tokens[0] == config.bos)
    insert = lambda x, what: np.insert(x, at, what)[:most]
    tokens = insert(encoded.tokens, first + np.arange(N_SOFT))
    index, learn = insert(encoded.image_index, [0] * N_SOFT), insert(encoded.loss_mask, [False] * N_SOFT)
    media = encoded.media[:int((tokens == config.n_vocab).sum())]  # as many as there are tags
    start = max(0, min(encoded.start, config.n_context - len(tokens)))
    return replace(encoded, tokens=tokens, image_index=np.where(index <= len(media), index, 0),
                   loss_mask=learn, media=media, start=start)


class Adapter(nn.Module):
    """(…,D) -> (…,D), to be added: two matrices and a narrow place between them. Silent at first."""

    def __init__(self, dim):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.down = nn.Linear(dim, dim // BOTTLENECK)
        self.up = nn.Linear(dim // BOTTLENECK, dim)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, y):
        return self.up(F.relu(self.down(self.norm(y))))


class AdaptedCrossAttention(GatedCrossAttention):
    """y ← y + adapter(y) after each gated layer"""

    def __init__(self, dim, *size, **more):
        super().__init__(dim, *size, **more)
        self.adapter = Adapter(dim)

    def forward(self, *given):
        y = super().forward(*given)
        return y + self.adapter(y)


class Adapted(Flamingo):
    Gated = AdaptedCrossAttention


@dataclass
class Way:
    """A way to adapt: the class of the model, which parameters train, by name (None: what `freeze` says), and
    how many times --finetune_lr they learn at: the fewer there are, the faster."""
    model: type
    trains: Callable[[str], bool] | None
    lr: float


WAYS = {
    'all': Way(Flamingo, None, 1.0),
    'adapter': Way(Adapted, lambda name: '.adapter.' in name, 10.0),
    'bitfit': Way(Flamingo, lambda name: name.endswith('.bias') and not name.startswith('vision.'), 30.0),
    'prompt': Way(Prompted, lambda name: name == 'soft_prompt', 300.0),
}


def grown(model, state):
    """The state dict of a plain Flamingo -> one for `model`: what is new in it is as it begins."""
    new = {name: x for name, x in model.state_dict().items()
           if name == 'soft_prompt' or '.adapter.' in name}
    return new | state


def begin(model, way):
    """Say what trains."""
    trains = WAYS[way].trains
    model.freeze(vision=trains is not None)
    for name, p in model.named_parameters() if trains else ():
        p.requires_grad_(trains(name))
