"""GATED XATTN-DENSE: how text looks at pictures (§2.2), and at which one (§2.3).

A gated layer stands before a frozen block of the language model and adds what the text needs to see:

    y ← y + tanh(α_x) · XAttn(q = LN(y), kv = LN(visual))
    y ← y + tanh(α_d) · FFW(LN(y))

    XAttn of token ℓ, which sees image i = image_index[ℓ]:  softmax(q_ℓ K_iᵀ/√d) V_i,  and 0 if i = 0

The layer has a feed-forward of its own, which works what was seen into the stream before the frozen block
reads it. (Cross-attention alone, inside each block, cost the paper 3.8 points: VANILLA XATTN in Table 3.)

*Why the gates start shut.* α = 0 at the start, tanh(0) = 0: the very first stream is the language model's
own, to the last bit. Without gates, layers that have learned nothing would add noise to a stream that the
frozen blocks expect to be clean (the paper: −4.2 points, unstable). When a gate opens, its layer begins to
learn; how far says little, and its sign nothing: `to_out` can scale and turn around what passes.

*How a shut gate learns.* ∂L/∂α = (1 − tanh²α) ⟨∂L/∂y, XAttn⟩ is not zero at α = 0, so the gate moves
first. The gradients of the weights behind it are tanh(α) times what they would be without it, 0 at first.
Once it is ajar, Adam makes up for that factor.

*Why gates learn faster* (ours 15 times as fast as the rest: train.adamw). Adam moves every number by about
the learning rate a step. A matrix changes its output through thousands of entries, a gate is one number.

*Without a picture* a token gets 0 from attention. The feed-forward acts on it all the same: once its gate is
open, text alone is not the language model's own stream any more.

*Which picture.* Token ℓ sees the R visual tokens of one image only, `image_index[ℓ]`: the paper's φ, counted
from 1, 0 for none. It is the last image before it (on some pages the next: p_next in data.encode). *How an
earlier image still matters:* the text tokens that stood next to it have seen it, and the language model's own
self-attention reads those. Seeing one image at a time is also what lets a model trained on 5 images take 32
in its prompt.

Shapes: B batch, T tokens, N images, R visual tokens per image, D width, D_r theirs, H heads, d head width.
"""
import torch
from torch import nn

from kit.fast.attention import attention
from kit.fast.routing import one_image_per_token, routed_attention
from resampler import FeedForward

# Does a token of this index see this image? Both are counted from 1; index 0 is before the first image. A
# rule may ask how far back the image lies, and nothing else: kit/answers.py, keep_seen, relies on that.
SEES = {
    'last': lambda image, index: image == index,          # the paper's: the one that data.encode says
    'all_previous': lambda image, index: image <= index,  # its ablation (−7.2 points, Table 10)
}


def sees(image_index, n_image, attend):
    """image_index (B,T) int -> (B,T,N) bool: which images each token sees."""
    image = torch.arange(1, n_image + 1, device=image_index.device)
    return SEES[attend](image, image_index.unsqueeze(-1))


def gate(alpha):
    """How far a gate is open: 0 is shut, −1 and 1 are wide open."""
    return torch.tanh(alpha)


def masked_attention(q, k, v, seen):
    """q (B,T,H,d), k and v (B,N,H,R,d), seen (B,T,N) bool: which images each token sees -> (B,T,H,d)

    This is the definition. By default `routed_attention` runs in its place (see __init__ below), the same if
    no token sees more than one image.

    A token that sees no image gets exactly zero. This must be enforced: a softmax over a fully masked row is
    not empty but NaN (masked by −∞) or *uniform* (by −10⁹): a mixture of every image, later ones too.
    """
    n_visual = k.shape[3]                                                             # R
    k, v = (x.transpose(1, 2).flatten(2, 3) for x in (k, v))                          # (B,H,N*R,d) each
    # A token that sees none may see all, so that its softmax is finite; then its row is set to zero.
    blind = ~seen.any(-1, keepdim=True)                                               # (B,T,1)
    mask = (seen | blind).repeat_interleave(n_visual, dim=-1)                         # (B,T,N*R)
    out = attention(q.transpose(1, 2), k, v, mask.unsqueeze(1)).transpose(1, 2)       # (B,T,H,d)
    return out.masked_fill(blind.unsqueeze(-1), 0.0)


class GatedCrossAttention(nn.Module):
    """One GATED XATTN-DENSE layer (Figure 4): y (B,T,D), visual (B,N,R,D_r), image_index (B,T) -> (B,T,D)

    visual is None for text alone.

    dim:        width D of the language model;  dim_visual: width of the visual tokens (default D)
    n_head, head_dim: heads and their width, by default D / n_head (the paper: 128 at every size)
    attend:     which images a token sees, a key of SEES. The cost of all but 'last' grows with N.
    Raises ValueError for another `attend`.
    """

    def __init__(self, dim, dim_visual=None, n_head=8, head_dim=None, attend='last'):
        super().__init__()
        if attend not in SEES:
            raise ValueError(f'attend={attend}: must be one of {", ".join(SEES)}')
        self.n_head, self.head_dim = n_head, head_dim or dim // n_head
        self.attend = attend
        # The faster of two that are the same: kit/fast/routing.py. Set to masked_attention, it does as well.
        self.attention = routed_attention if one_image_per_token(SEES[attend]) else masked_attention
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

    def queries(self, y):
        """(B,T,D) -> (B,T,H,d)"""
        return self.to_q(self.norm(y)).unflatten(-1, (self.n_head, self.head_dim))

    def keys_values(self, visual):
        """(B,N,R,D_r) -> keys and values, (B,N,H,R,d) each"""
        kv = self.to_kv(self.norm_visual(visual)).chunk(2, dim=-1)                    # (B,N,R,H*d) each
        return tuple(x.unflatten(-1, (self.n_head, self.head_dim)).transpose(2, 3) for x in kv)

    def cross_attention(self, y, visual, image_index):
        """(B,T,D) -> (B,T,D), before the gate"""
        if visual is None or visual.shape[1] == 0:  # no image at all
            return torch.zeros_like(y)
        q = self.queries(y)                                                           # (B,T,H,d)
        k, v = self.keys_values(visual)                                               # (B,N,H,R,d) each
        seen = sees(image_index, visual.shape[1], self.attend)                        # (B,T,N)
        out = self.attention(q, k, v, seen)                                           # (B,T,H,d)
        return self.to_out(out.flatten(2))                                            # (B,T,D)

    def gates(self):
        """-> how far the two gates are open, scalars"""
        return gate(self.alpha_x), gate(self.alpha_d)

    def forward(self, y, visual, image_index):
        gate_x, gate_d = self.gates()                                                 # tanh(α_x), tanh(α_d)
        y = y + gate_x * self.cross_attention(y, visual, image_index)
        y = y + gate_d * self.feed_forward(y)                             # which begins with its LayerNorm
        return y

