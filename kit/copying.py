"""Two heads that copy: "after A came B last time, so after A comes B" (an induction head, Olsson et al.
2022).

One head notes for each token its predecessor; a head of the next block finds the token whose predecessor is
the one at hand, and says it. Large models grow such heads by themselves and in-context learning hangs on
them; a model of a few layers takes longer to than all of its training here. So a language model that starts
from nothing begins with them: their projections are random, as all others, but matched to each other, and
training goes on from there. (docs/results.md: what they are worth.)
"""
import math

import torch
from torch import nn

LOOK, NOTE, MATCH = 3.0, 0.1, 3.0  # how sharply it looks back, how loudly it notes, how strictly it compares


@torch.no_grad()
def wire_copying(lm):
    """Wire both heads into a fresh model.GPT, in place -> the same GPT. One of a single block gets the
    first alone."""
    n = find_predecessor(lm)
    if len(lm.h) > 1:
        copy_what_followed(lm, n)
    return lm


def find_predecessor(lm):
    """The first head of the first block looks at the token before. -> n, of which positions take 2n
    dimensions.

    Positions become sinusoids p(t) = (sin wt, cos wt) in dimensions of their own, n of each; the head's
    query is p turned back by one step: Σ_w cos(w (t-1-s)) is largest at s = t-1.
    """
    dim, n_head = lm.wte.weight.shape[1], lm.h[0].attn.n_head
    n = min(dim // n_head // 2, dim // 8)
    w = torch.exp(-torch.arange(n) / n * math.log(lm.n_context / 4))
    angle = torch.arange(lm.n_context)[:, None] * w
    lm.wte.weight[:, :2 * n] = 0.0
    lm.wpe.weight[:, 2 * n:] = 0.0
    lm.wpe.weight[:, :2 * n] = dim ** -0.5 * 2 ** 0.5 * torch.cat([angle.sin(), angle.cos()], dim=1)
    q, k, _ = lm.h[0].attn.c_attn.weight.split(dim)                             # (D,D) each; rows are outputs
    q[:2 * n], k[:2 * n] = 0.0, 0.0
    i = torch.arange(n)
    k[i, i] = k[n + i, n + i] = LOOK
    q[i, i], q[i, n + i] = LOOK * w.cos(), -LOOK * w.sin()                           # sin w(t-1)
    q[n + i, i], q[n + i, n + i] = LOOK * w.sin(), LOOK * w.cos()                    # cos w(t-1)
    return n


def copy_what_followed(lm, n):
    """The first head of the second block finds the token whose predecessor is the one at hand, and says it.

    The head that looks at the predecessor reads P x of it and notes Rᵀ P x; this one's keys are R y, so
    that they hold P x, and its query is P of the token at hand: they agree where the two tokens are the
    same. P, R, S: orthonormal rows, blind to positions.
    """
    dim, n_head = lm.wte.weight.shape[1], lm.h[0].attn.n_head
    d = dim // n_head
    p, r, s = torch.zeros(3, d, dim)
    for m in (p, r, s):
        m[:, 2 * n:] = nn.init.orthogonal_(torch.empty(d, dim - 2 * n))
    _, _, v = lm.h[0].attn.c_attn.weight.split(dim)
    v[:d] = p
    lm.h[0].attn.c_proj.weight[:, :d] = NOTE * r.T
    q, k, v = lm.h[1].attn.c_attn.weight.split(dim)
    q[:d], k[:d], v[:d] = MATCH * p, MATCH * r, s
    lm.h[1].attn.c_proj.weight[:, :d] = s.T                                          # what is found is said
