"""Heads that copy: "after A B came C last time, so after A B comes C" (an induction head, Olsson et al. 2022,
that goes by two tokens).

Two heads note for each token its predecessor and the one before; a head of the next block finds the token
that came after the same two, and says it. Two, since parts of names recur: by the last token alone "hammer"
goes on as "hammmm". Large models grow such heads by themselves and in-context learning hangs on them; a
model of a few layers would need longer than its whole training here. So a language model that starts from
nothing begins with them: their projections are random, as all others, but matched to each other, and
training goes on from there. (docs/results.md: what they are worth.)

    A B C … A B    the first head notes, beside each token, the one before it, and the second the one before
                   that: so C bears the notes B and A. The last B is itself B, and bears the note A. It looks
                   for a token that bears B and A, finds C, and C is said.

With pictures. A gated layer stands before the first block, so what is noted of a token holds what it saw. In
a prompt every name comes after "Output" and ":". These two words say nothing, as they are the same for all
names; but each bears the mark of its picture, and so the last ":" finds the name whose ":" saw one like its
own. A name of several tokens goes on by its own words: the second token is what came after ":" and the first.
"""
import math

import torch
from torch import nn

LOOK, NOTE, MATCH = 3.0, 0.2, 3.0  # how sharply it looks back, how loudly it notes, how strictly it compares
# With scores that are cosines (qk_norm) lengths do not count, and these do instead of LOOK and MATCH.
LOOK_S, MATCH_S = 50.0, 20.0


@torch.no_grad()
def wire_copying(lm):
    """Wire the heads into a fresh model.GPT, in place -> the same GPT. One of a single block gets the first
    two alone, and one of a single head notes the predecessor only."""
    n = find_predecessors(lm)
    copy_what_followed(lm, n)
    return lm


def find_predecessors(lm):
    """The first head of the first block looks at the token before, the second one at the one before that.
    -> n. Positions occupy the first 2n dimensions.

    Positions become sinusoids p(t) = (sin wt, cos wt) in dimensions of their own, n of each; a head's query
    is p turned back by one step, or two: Σ_w cos(w (t-1-s)) is largest at s = t-1.
    """
    dim, n_head = lm.wte.weight.shape[1], lm.h[0].attn.n_head
    d = dim // n_head
    n = min(d // 2, dim // 8)
    w = torch.exp(-torch.arange(n) / n * math.log(lm.n_context / 4))
    angle = torch.arange(lm.n_context)[:, None] * w
    lm.wte.weight[:, :2 * n] = 0.0
    lm.wpe.weight[:, 2 * n:] = 0.0
    lm.wpe.weight[:, :2 * n] = dim ** -0.5 * 2 ** 0.5 * torch.cat([angle.sin(), angle.cos()], dim=1)
    q, k, _ = (m.view(n_head, d, dim) for m in lm.h[0].attn.c_attn.weight.split(dim))
    i = torch.arange(n)
    sharpen(lm.h[0].attn, slice(2), LOOK_S)
    for head in range(min(2, n_head)):
        back = (head + 1) * w  # one step, or two (in what follows: one)
        q[head], k[head] = 0.0, 0.0
        k[head, i, i] = k[head, n + i, n + i] = LOOK
        q[head, i, i], q[head, i, n + i] = LOOK * back.cos(), -LOOK * back.sin()          # sin w(t-1)
        q[head, n + i, i], q[head, n + i, n + i] = LOOK * back.sin(), LOOK * back.cos()   # cos w(t-1)
    return n


def copy_what_followed(lm, n):
    """The first head of the second block finds what came after the same two tokens, and says it.

    P, R, R': orthonormal rows, blind to positions and to each other. The heads of the first block have added
    notes to each token x: x ← x + Rᵀ P x₋₁ + R'ᵀ P x₋₂. So P reads the token itself off the stream, R its
    predecessor, R' the one before that. The score of the token y at hand with an earlier one s is

        (P y + T R y)ᵀ (R s + T R' s)  ≈  ⟨P y, R s⟩ + ⟨R y, R' s⟩

    large where y itself came just before s, and y's predecessor before that. T, a random rotation, keeps the
    two sums apart.
    """
    dim, n_head = lm.wte.weight.shape[1], lm.h[0].attn.n_head
    d = dim // n_head
    rows = min(d, (dim - 2 * n) // 3)
    own, before, before2 = torch.zeros(3, d, dim)  # P, R, R'
    orthogonal = nn.init.orthogonal_(torch.empty(3 * rows, dim - 2 * n))
    for projection, part in zip((own, before, before2), orthogonal.split(rows)):
        projection[:rows, 2 * n:] = part
    _, _, v = (m.view(n_head, d, dim) for m in lm.h[0].attn.c_attn.weight.split(dim))
    for head, note in zip(range(n_head), (before, before2)):
        v[head] = own
        lm.h[0].attn.c_proj.weight[:, head * d:(head + 1) * d] = NOTE * note.T
    if len(lm.h) < 2:
        return
    sharpen(lm.h[1].attn, 0, MATCH_S)
    turn = nn.init.orthogonal_(torch.empty(d, d))
    q, k, v = (m.view(n_head, d, dim)[0] for m in lm.h[1].attn.c_attn.weight.split(dim))
    q[:], k[:], v[:] = MATCH * (own + turn @ before), MATCH * (before + turn @ before2), own
    lm.h[1].attn.c_proj.weight[:, :d] = own.T                                        # what is found is said


def sharpen(attn, heads, s):
    """Where scores are cosines, lengths of queries and keys do not count: say how sharp these heads are."""
    if attn.log_s is not None:
        attn.log_s[heads] = math.log(s)
