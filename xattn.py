"""GATED XATTN-DENSE: how text looks at pictures (§3.1.2), and at which one (§3.1.3).

A gated layer stands before a frozen block of the language model and adds what the text needs to see:

    y ← y + tanh(α_x) · XAttn(q = LN(y), kv = LN(visual))
    y ← y + tanh(α_d) · FFW(LN(y))

*Why the gates start shut.* α = 0 at the start, tanh(0) = 0: the very first forward is the language model's
own, to the last bit. Training opens the gates as far as pictures help. Without them, freshly drawn layers
would shout noise into a stream that the frozen blocks expect to be clean (the paper: −4.2 points, unstable).

*Which picture.* Token ℓ sees the R visual tokens of one image only, `image_index[ℓ]` (the paper's φ: the last
image before it, counted from 1; 0 = none yet). *How an earlier image still matters:* the text tokens that stood
next to it have seen it, and the language model's own self-attention reads those. Seeing one image at a time
is also what lets a model trained on 5 images take 32 in its prompt.

Shapes: B batch, T tokens, N images, R visual tokens per image, D width, H heads, d head width,
M chunks of C tokens (see Route).
"""
from dataclasses import dataclass

import torch
from torch import nn

from resampler import attention, FeedForward


@dataclass
class Route:
    """Which tokens look at which image, laid out so that attention runs between each stretch of text and its
    own image only. Made once per sequence from image_index, and shared by all gated layers.

    The obvious way is a T × N·R score matrix with most of it masked: N times the work, thrown away. Instead the
    tokens of each image are cut into chunks of C; each chunk meets its image's R visual tokens in a dense little
    attention. Where text is spread evenly, chunk m is all the text of image m; elsewhere C = ⌈T/N⌉ and an image may
    have several chunks or none. Either way there are at most 2N chunks and 2T chunk places a sequence: the cost does
    not grow with N.
    """
    token: torch.Tensor  # (M*C,) which token (of B*T) sits at each place; unused places hold token 0
    image: torch.Tensor  # (M,)   which image (of all B*N) each chunk looks at
    whole: bool          # chunk m is image m's, for all m: keys and values need no copying
    place: torch.Tensor  # (B*T,) where each token sits; 0 if it sees nothing
    seen: torch.Tensor   # (B,T,1) whether the token sees any image
    chunk: int           # C


def route_tokens(image_index, n_image, row=None):
    """image_index (B,T) int, N images a sequence -> Route.

    A token whose index is 0 (before the first image) or above N (a tag that came without its picture) sees
    nothing. `row` (B,) says whose images each row sees, where that is not its own: the beams and candidate
    answers of one prompt share its images instead of holding copies.
    """
    b, t = image_index.shape
    device = image_index.device
    seen = ((image_index >= 1) & (image_index <= n_image)).flatten()                      # (B*T,)
    first = (torch.arange(b, device=device) if row is None else row)[:, None] * n_image   # (B,1) a row's first image among all
    owner = (first + image_index - 1).flatten()                                           # (B*T,)
    token = seen.nonzero().squeeze(1)                                                     # (K,) tokens that see
    token = token[owner[token].argsort(stable=True)]                                      # … sorted by image
    n_row = b if row is None else int(row.max()) + 1
    count = torch.bincount(owner[token], minlength=max(n_row * n_image, 1))               # tokens per image
    longest = int(count.max())
    whole = longest > 0 and n_row * n_image * longest <= 2 * b * t                        # one chunk per image is no waste
    chunk = longest if whole else -(-t // max(n_image, 1))                                # C
    n_chunk = torch.ones_like(count) if whole else (count + chunk - 1) // chunk           # chunks per image
    first_chunk = n_chunk.cumsum(0) - n_chunk
    rank = torch.arange(len(token), device=device) - (count.cumsum(0) - count)[owner[token]]  # place within its image
    place = first_chunk[owner[token]] * chunk + rank                                      # (K,)
    image = torch.repeat_interleave(torch.arange(len(count), device=device), n_chunk)     # (M,)
    token_at = torch.zeros(len(image) * chunk, dtype=torch.long, device=device).index_copy(0, place, token)
    place_of = torch.zeros(b * t, dtype=torch.long, device=device).index_copy(0, token, place)
    return Route(token_at, image, whole, place_of, seen.view(b, t, 1), chunk)


class GatedCrossAttention(nn.Module):
    """One GATED XATTN-DENSE layer (Figure 4). y (B,T,D), visual (B,N,R,D_v), image_index (B,T) int -> (B,T,D)

    dim:        width D of the language model;  dim_visual: width of the visual tokens (default D)
    n_head, head_dim: heads and their width, D / n_head unless said (the paper: 128 at every size)
    attend:     'last': a token sees the one image of its index, the paper's choice;
                'all_previous': it sees every image up to its index, the paper's ablation (−7.2 points, Table 10),
                whose cost does grow with N.

    A token that sees no image gets exactly zero from the cross-attention. That has to be said: a softmax over
    a fully masked row is not empty but *uniform*, and would leak a mixture of every image, later ones too.
    Raises ValueError for another `attend`.
    """

    def __init__(self, dim, dim_visual=None, n_head=8, head_dim=None, attend='last'):
        super().__init__()
        if attend not in ('last', 'all_previous'):
            raise ValueError(f"attend is 'last' or 'all_previous', not {attend!r}")
        self.n_head, self.head_dim, self.attend = n_head, head_dim or dim // n_head, attend
        inner = self.n_head * self.head_dim
        self.norm = nn.LayerNorm(dim)
        self.norm_visual = nn.LayerNorm(dim_visual or dim)  # one for keys and values together
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(dim_visual or dim, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=False)
        self.feed_forward = FeedForward(dim)
        # 0-dim on purpose: a gate of shape (1,) in float32 would turn a bf16 stream into float32.
        self.alpha_x = nn.Parameter(torch.zeros(()))
        self.alpha_d = nn.Parameter(torch.zeros(()))

    def keys_values(self, visual):
        """visual (B,N,R,D_v) -> keys and values, (B,N,H,R,d) each: computed once per sequence, then kept while text is generated."""
        kv = self.to_kv(self.norm_visual(visual)).chunk(2, dim=-1)                        # (B,N,R,H*d) each
        return [x.unflatten(-1, (self.n_head, self.head_dim)).transpose(2, 3) for x in kv]

    def attend_last(self, q, kv, route, visual=None):
        """q (B,T,H,d) -> (B,T,H,d): each chunk of tokens with the image it belongs to. kv None: visual is given instead."""
        if len(route.image) == 0:
            # No token sees any image. All parameters get a gradient, if of zero: other processes may have one, and wait for it.
            return q * 0 + sum(x.sum() for x in (self.keys_values(visual) if kv is None else kv)) * 0
        q_chunk = q.flatten(0, 1).index_select(0, route.token)                            # (M*C,H,d)
        q_chunk = q_chunk.unflatten(0, (-1, route.chunk)).transpose(1, 2)                 # (M,H,C,d)
        if kv is None and route.whole and 2 * route.chunk * (visual.shape[2] + self.head_dim) < visual.shape[2] * self.head_dim:
            out = self.attend_few(q_chunk, visual.flatten(0, 1)[:len(route.image)])
        else:
            kv = self.keys_values(visual) if kv is None else kv
            kv = [x.flatten(0, 1) for x in kv]                                            # (B*N,H,R,d) each
            k, v = (x[:len(route.image)] if route.whole else x.index_select(0, route.image) for x in kv)  # (M,H,R,d)
            out = attention(q_chunk, k, v)                                                # (M,H,C,d), nothing to mask
        out = out.transpose(1, 2).flatten(0, 1).index_select(0, route.place)              # (B*T,H,d)
        return out.view_as(q).masked_fill(~route.seen.unsqueeze(-1), 0.0)

    def attend_one(self, q, kv, image_index, row):
        """The same where each row has a single image: there is nothing to route. So it is for captioned pictures, and when an answer
        is generated, word by word."""
        k, v = (x[:, 0] if row is None else x[row, 0] for x in kv)                        # (B,H,R,d)
        out = attention(q.transpose(1, 2), k, v).transpose(1, 2)                          # (B,T,H,d)
        sees = image_index >= 1 if self.attend == 'all_previous' else image_index == 1
        return out.masked_fill(~sees[..., None, None], 0.0)

    def attend_few(self, q, visual):
        """The same attention where an image has fewer tokens C than visual tokens R: q (M,H,C,d), visual (M,R,D_v) -> (M,H,C,d)

        q·(W_k x) = (W_kᵀ q)·x and Σ p (W_v x) = W_v Σ p x: the few tokens are brought to where the visual tokens are,
        instead of making keys and values of all of those. C·(R+d) multiplications where keys and values take R·d;
        measured, it pays where they are less than half of those.
        """
        x = self.norm_visual(visual)                                                      # (M,R,D_v)
        w_k, w_v = self.to_kv.weight.unflatten(0, (2, self.n_head, self.head_dim))        # (H,d,D_v) each
        q = torch.einsum('mhcd,hdv->mhcv', q, w_k).flatten(1, 2)                          # (M,H*C,D_v)
        p = (q @ x.transpose(1, 2) * self.head_dim ** -0.5).softmax(-1)                   # (M,H*C,R)
        out = (p.to(x.dtype) @ x).unflatten(1, (self.n_head, -1))                         # (M,H,C,D_v)
        return torch.einsum('mhcv,hdv->mhcd', out, w_v)

    def attend_all_previous(self, q, kv, image_index, row):
        """The same shapes, as T × N·R attention with a mask."""
        k, v = (x if row is None else x.index_select(0, row) for x in kv)                 # (B,N,H,R,d) each
        n, r = k.shape[1], k.shape[3]
        k, v = (x.transpose(1, 2).flatten(2, 3) for x in (k, v))                          # (B,H,N*R,d)
        image = torch.arange(1, n + 1, device=q.device).repeat_interleave(r)              # (N*R,)
        blind = (image_index < 1)[:, :, None]                                             # (B,T,1)
        mask = (image <= image_index[:, :, None]) | blind  # a blind row must not be all masked: its NaN would spread
        out = attention(q.transpose(1, 2), k, v, mask[:, None])
        return out.transpose(1, 2).masked_fill(blind.unsqueeze(-1), 0.0)

    def cross_attention(self, y, visual, image_index, kv=None, route=None, row=None):
        """(B,T,D) -> (B,T,D), before the gate. See `forward`."""
        if kv is None and (visual is None or visual.shape[1] == 0):
            return torch.zeros_like(y)
        q = self.to_q(self.norm(y)).unflatten(-1, (self.n_head, self.head_dim))           # (B,T,H,d)
        n_image = (visual if kv is None else kv[0]).shape[1]
        if n_image == 1:
            out = self.attend_one(q, self.keys_values(visual) if kv is None else kv, image_index, row)
        elif self.attend == 'last':
            out = self.attend_last(q, kv, route or route_tokens(image_index, n_image, row), visual)
        else:
            out = self.attend_all_previous(q, self.keys_values(visual) if kv is None else kv, image_index, row)
        return self.to_out(out.flatten(2))                                                # (B,T,D)

    def forward(self, y, visual, image_index=None, kv=None, route=None, row=None):
        """kv: keys_values(visual) where they are kept already (then `visual` is not needed); route: the Route
        where it is known already; row (B,): whose images each row sees, where not its own. y None: -> keys_values(visual)"""
        if y is None:
            return self.keys_values(visual)
        y = y + torch.tanh(self.alpha_x) * self.cross_attention(y, visual, image_index, kv, route, row)
        y = y + torch.tanh(self.alpha_d) * self.feed_forward(y)
        return y
