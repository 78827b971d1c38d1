"""Flamingo: a frozen encoder and a frozen language model, and between them what is trained (§2).

    media ─► NFNet (frozen) ─► features (frames,S,D_v) ─► PerceiverResampler ─► visual (B,N,R,D_r)
    tokens ─► embed ─► [ GatedCrossAttention(visual, image_index) ─► GPT block (frozen) ] × blocks
           ─► logits (B,T,V+2)

From tokens to logits: `Flamingo.stream`, then `head`. Text is written by kit/answers.py.

Media are pictures, and clips of frames; an *image* is one of them at its place in a sequence, as φ counts.
Shapes, in all files: B batch, T tokens, N images in the sequence, F frames, S places, R visual tokens per
image, D width (D_v of the encoder's features, D_r of visual tokens), V vocabulary of the language model, H
heads, d head width, E common embedding of pictures and texts. Sections (§), tables, figures and appendices
(A, B) are those of the paper's second version on arXiv.
"""
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from kit.fast.attention import attention
from resampler import PerceiverResampler
from vision import NFNet
from xattn import GatedCrossAttention


class Flamingo(nn.Module):
    """forward(tokens (B,T), image_index (B,T), media, …) -> (logits, loss):

        without targets  logits (B,T,V+2) of every next token, None
        with targets     logits (K,V+2) of the K tokens that have one, and their loss: the mean, or of each

    tokens:       ids V and V+1 are <image> and <EOC>
    image_index:  the paper's φ, which image each token may look at, counted from 1; 0 = none
    media:        (B,N,F,3,height,width), uint8 pixels or normalised floats; None for text alone
    frame_mask:   (B,N,F) bool, which frames are real; None: all of media
    features:     instead of media, what `see` makes of it: (frames,S,D_v), the real frames of all images, one
                  after the other; which is whose, frame_mask says
    targets:      (B,T), the next token, or -100 where there is nothing to learn (if nowhere, the loss is 0)
    reduction:    of the loss, as in F.cross_entropy: 'mean' -> (), 'none' -> (K,)
    position:     (B,T), where in the context each token stands; by default its place in the row
    sequence:     (B,T), where several share a row, which of them a token belongs to; none sees another

    Raises ValueError where T is longer than the context. config: a FlamingoConfig, below.
    """
    Resampler, Gated = PerceiverResampler, GatedCrossAttention  # others, for comparison: kit/variants.py

    def __init__(self, config, vision=None, lm=None):
        super().__init__()
        c = self.config = config
        self.vision = vision or NFNet(c.vision, c.dim_embed, per_image=c.per_image)
        self.lm = lm or GPT.from_config(c)
        self.resampler = self.Resampler(c.resampler_dim, self.vision.dim, c.n_latent, c.resampler_layer,
                                        c.resampler_head, c.resampler_head_dim, c.n_frame)
        visual_dim = c.visual_dim or c.resampler_dim
        widen = visual_dim != c.resampler_dim
        self.widen = nn.Linear(c.resampler_dim, visual_dim, bias=False) if widen else nn.Identity()
        self.gated = nn.ModuleList(
            self.Gated(c.lm_dim, visual_dim, c.xattn_head, c.xattn_head_dim, c.attend)
            for _ in range(0, c.lm_layer, c.xattn_every))
        # <image> and <EOC>: the only words that the frozen model does not know. Their rows serve as input and
        # output, as its own do, and are trained (untrained, a small OpenFlamingo lost 12 points of VQAv2).
        self.new_rows = nn.Parameter(torch.randn(2, c.lm_dim) * 0.02)
        self.image, self.eoc = c.n_vocab, c.n_vocab + 1  # their ids
        self.freeze()

    def forward(self, tokens, image_index, media=None, targets=None, *, features=None, frame_mask=None,
                position=None, sequence=None, reduction='mean'):
        if features is None:
            features, frame_mask = self.see(media, frame_mask)         # (frames,S,D_v), (B,N,F)
        visual = self.resample(features, frame_mask)                   # (B,N,R,D_r), or None
        mask = None if sequence is None else same_sequence(sequence)
        y = self.stream(tokens, image_index, visual, position, mask)   # (B,T,D)
        if targets is None:
            return self.head(y), None
        learn = targets != -100                                        # (B,T)
        logits = self.head(y[learn])                                   # (K,V+2)
        loss = F.cross_entropy(logits.float(), targets[learn], reduction='none')     # (K,)
        return logits, loss if reduction == 'none' else loss.sum() / max(len(loss), 1)

    def stream(self, tokens, image_index, visual=None, position=None, mask=None, past=None):
        """The whole tower: tokens (B,T) -> (B,T,D), from which `head` makes the next word's logits.

        visual (B,N,R,D_r): visual tokens, the same for all gated layers; None for text alone
        position (B,T): as in `forward`; mask (B,1,T,T), bool or additive: what it sees (None: all before)
        past: while text is written, for each block the keys and values of earlier tokens (kit/answers.py)
        """
        every = self.config.xattn_every
        past = past or [None] * len(self.lm.h)
        y = self.lm.add_positions(self.embed(tokens), position)          # (B,T,D)
        for i, block in enumerate(self.lm.h):
            if i % every == 0:
                y = self.gated[i // every](y, visual, image_index)
            y = block(y, mask, past[i])                                  # (B,T,D)
        return self.lm.ln_f(y)

    def embed(self, tokens):
        """(B,T) -> (B,T,D): looks up the frozen table and the two trained rows, and selects."""
        new = tokens >= self.image
        known = self.lm.wte(tokens.masked_fill(new, 0))
        # F.embedding, not an index: its gradient adds up in the same order every time.
        trained = F.embedding((tokens - self.image).clamp(min=0), self.new_rows).to(known.dtype)
        return torch.where(new.unsqueeze(-1), trained, known)

    def head(self, y):
        """(…,D) -> logits (…,V+2)"""
        return torch.cat([y @ self.lm.wte.weight.T, y @ self.new_rows.T.to(y.dtype)], dim=-1)

    def see(self, media, frame_mask=None):
        """media (B,N,F,3,height,width) -> features (frames,S,D_v) of its real frames, and frame_mask (B,N,F);
        (None, None) without any. (In training made once and kept: kit.features.FrozenFeatures.)"""
        if media is None or media.shape[1] == 0:
            return None, None
        if frame_mask is None:
            frame_mask = torch.ones(media.shape[:3], dtype=torch.bool, device=media.device)
        frames = media[frame_mask]                                                  # (frames,3,height,width)
        if not media.is_floating_point():
            frames = self.vision.normalise(frames)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.vision not in self.frozen):
            return self.vision(frames), frame_mask

    def resample(self, features, frame_mask=None):
        """What `see` gives -> visual tokens (B,N,R,D_r), or None for text alone"""
        if features is None or features.numel() == 0:
            return None
        # Ours, not the paper's: each place gets mean 0 and variance 1. An encoder's grid can be of any size
        # (our nano NFNet's has an rms of 16), and the time embedding that is added to it would be lost: clips
        # would be pictures.
        features = F.layer_norm(features, features.shape[-1:])
        return self.widen(self.resampler(features, frame_mask))

    def freeze(self, vision=True, lm=True):
        """Chooses what is frozen. (With --adapt, more is: kit/adapt.py.) The language model stays frozen: if
        it trained, too, it would forget what it knows from text (−8.0 points, Table 3; −12.9 from random
        weights). The vision encoder stays so, too, until it is fine-tuned at the end (appendix B.2)."""
        self.requires_grad_(True)
        self.lm.requires_grad_(not lm)
        self.vision.requires_grad_(not vision)
        if self.vision.projection is not None:  # for the contrastive loss alone
            self.vision.projection.requires_grad_(False)
        self.frozen = [module for module, frozen in ((self.lm, lm), (self.vision, vision)) if frozen]
        return self.train(self.training)  # the new frozen parts too: see `train`

    def train(self, mode=True):
        super().train(mode)
        for module in self.frozen:  # frozen also means: no dropout, no stochastic depth
            module.eval()
        return self

    def gates(self):
        """-> [how far the two gates of each gated layer are open], pairs of floats"""
        return [tuple(gate.mean().item() for gate in layer.gates()) for layer in self.gated]


def same_sequence(sequence):
    """(B,T) -> (B,1,T,T) bool: each token sees those of its own sequence up to itself."""
    return (sequence[:, :, None] == sequence[:, None]).tril()[:, None]


# ---------------------------------------------------------------------------------------------
# The language model: GPT-2's architecture, parameter names included, so that its published weights fit.


class SelfAttention(nn.Module):
    """x (B,T,D) -> (B,T,D); mask as in Flamingo.stream; past: this block's part of it. With qk_norm, which
    GPT-2 lacks, scores are s·cos(q, k), not q·k/√d, with an s that each head learns (Henry et al. 2020)."""

    def __init__(self, dim, n_head, qk_norm=False):
        super().__init__()
        self.n_head = n_head
        self.c_attn = nn.Linear(dim, 3 * dim)
        self.c_proj = nn.Linear(dim, dim)
        self.log_s = nn.Parameter(torch.full((n_head,), math.log(8.0))) if qk_norm else None

    def forward(self, x, mask=None, past=None):
        b, t, _ = x.shape
        q, k, v = self.c_attn(x).view(b, t, 3, self.n_head, -1).unbind(2)             # (B,T,H,d) each
        if self.log_s is not None:
            s = self.log_s.exp()[:, None]                                             # (H,1)
            q, k = (s * F.normalize(q, dim=-1)).to(v.dtype), F.normalize(k, dim=-1).to(v.dtype)
        q, k, v = (z.transpose(1, 2) for z in (q, k, v))                              # (B,H,T,d) each
        if past is not None:
            k, v = past.extend(k, v)                                              # those of all tokens so far
        scale = q.shape[-1] ** -0.5 if self.log_s is None else 1.0
        out = attention(q, k, v, mask, causal=past is None, scale=scale)              # (B,H,T,d)
        return self.c_proj(out.transpose(1, 2).reshape(b, t, -1))


class Block(nn.Module):
    """x ← x + SA(LN(x));  x ← x + MLP(LN(x))"""

    def __init__(self, dim, n_head, eps=1e-5, qk_norm=False):
        super().__init__()
        self.ln_1 = nn.LayerNorm(dim, eps)
        self.attn = SelfAttention(dim, n_head, qk_norm)
        self.ln_2 = nn.LayerNorm(dim, eps)
        self.mlp = nn.ModuleDict(dict(c_fc=nn.Linear(dim, 4 * dim), c_proj=nn.Linear(4 * dim, dim)))

    def forward(self, x, mask=None, past=None):
        x = x + self.attn(self.ln_1(x), mask, past)
        return x + self.feed_forward(self.ln_2(x))

    def feed_forward(self, x):
        return self.mlp.c_proj(F.gelu(self.mlp.c_fc(x), approximate='tanh'))  # GPT-2's GELU is the tanh form


class GPT(nn.Module):
    """Decoder-only transformer, pre-norm, learned positions, output head tied to the embedding. (Ours
    begins its training with sinusoids as positions and a few heads wired to copy: kit/copying.py.)

    forward(tokens (B,T) int, targets (B,T) int or None) -> (logits (B,T,V), the loss, or None without
    targets); a target of -100 is left out of the loss. position (B,T): where in the context each token
    stands, by default its place in the row. Raises ValueError where T is longer than the context.
    """

    def __init__(self, n_vocab, n_layer, dim, n_head, n_context, eps=1e-5, qk_norm=False):
        super().__init__()
        self.n_context = n_context
        self.wte = nn.Embedding(n_vocab, dim)
        self.wpe = nn.Embedding(n_context, dim)
        self.h = nn.ModuleList(Block(dim, n_head, eps, qk_norm) for _ in range(n_layer))
        self.ln_f = nn.LayerNorm(dim, eps)
        std = dim ** -0.5  # logits begin with variance 1 (GPT-2's 0.02 is for widths of a thousand)
        for name, p in self.named_parameters():
            if p.ndim == 2:  # the residual projections at zero: each block begins as the identity
                nn.init.normal_(p, std=0.0 if name.endswith('c_proj.weight') else std)
            elif name.endswith('bias'):
                nn.init.zeros_(p)

    @classmethod
    def from_config(cls, config):
        c = config
        return cls(c.n_vocab, c.lm_layer, c.lm_dim, c.lm_head, c.n_context, c.lm_eps, c.lm_qk_norm)

    def add_positions(self, x, position=None):
        """Embedded tokens (B,T,D) -> what goes into the first block. position (B,T): 0 … T-1 by default"""
        t = x.shape[1]
        if t > self.n_context:
            raise ValueError(f'{t} tokens are more than the context of {self.n_context}')
        return x + self.wpe(torch.arange(t, device=x.device) if position is None else position)

    def forward(self, tokens, targets=None, position=None):
        x = self.add_positions(self.wte(tokens), position)                            # (B,T,D)
        for block in self.h:
            x = block(x)
        logits = self.ln_f(x) @ self.wte.weight.T                                     # (B,T,V)
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100)


# ---------------------------------------------------------------------------------------------
# Sizes


@dataclass
class FlamingoConfig:
    """What all modules are built from. The tokenizer says `n_vocab`, `bos` and `pad`, a preset what differs.
    (Which sizes no model can have: kit/sizes.py.)"""
    n_vocab: int = 1024
    bos: int = 1022
    pad: int = 1023
    # language model (Table 4 of the paper: layers / width / heads)
    lm_layer: int = 3
    lm_dim: int = 128
    lm_head: int = 4
    lm_eps: float = 1e-5        # of its layer norms
    lm_qk_norm: bool = False    # its scores are cosines: nano's are, GPT-2's are not
    n_context: int = 512        # longest sequence, in tokens
    # gated cross-attention
    xattn_every: int = 1        # one before LM blocks 0, k, 2k, …
    xattn_head: int = 4
    xattn_head_dim: int = 32
    attend: str = 'last'        # which images a token sees, a key of xattn.SEES
    visual_dim: int = 0         # to which visual tokens are widened; 0: as the resampler gives them
    # resampler
    resampler_layer: int = 1    # with two it memorised the trained pairs, and did worse on new ones
    resampler_dim: int = 128
    resampler_head: int = 4
    resampler_head_dim: int = 32
    n_latent: int = 8           # R
    n_frame: int = 8            # F in training
    # vision
    vision: str = 'nano'        # a key of vision.SIZES
    image_size: int = 48        # pixels, height and width
    per_image: bool = False     # each picture normalised by its own mean and deviation, not by ImageNet's
    dim_embed: int = 128        # E
    text_layer: int = 0         # of the contrastive text tower (see vision.TextTower)
    text_dim: int = 128
    text_head: int = 4
    plain_words: bool = False   # kit.contrastive.PlainWords as text tower instead
    # what a training sequence holds at most (the paper, §2.4: L = 256 and N = 5)
    n_token: int = 448          # L
    n_image: int = 33           # N


# The three large ones are the paper's (Table 4), with its vision encoder, NFNet-F6 at 320 pixels. Their
# visual tokens are widened to the language model's width, as its parameter counts ask (docs/scaling.md).
_PAPER = dict(
    n_vocab=32000, bos=1, pad=0, n_context=2048, xattn_head_dim=128, n_token=256, n_image=5,
    resampler_layer=6, resampler_dim=1536, resampler_head=16, resampler_head_dim=128, n_latent=64,
    vision='F6', image_size=320, dim_embed=1376, text_layer=12, text_dim=768, text_head=12)
PRESETS = {
    'nano': dict(lm_qk_norm=True),
    'gpt2': dict(
        n_vocab=50257, bos=50256, pad=50256, n_context=1024, n_token=256, n_image=5,
        lm_layer=12, lm_dim=768, lm_head=12, xattn_head=12, xattn_head_dim=64,
        resampler_layer=6, resampler_dim=768, resampler_head=12, resampler_head_dim=64, n_latent=64,
        vision='F0', image_size=256, dim_embed=512, text_layer=4, text_dim=256, text_head=4),
    'flamingo-3b': dict(
        _PAPER, lm_layer=24, lm_dim=2048, lm_head=16, xattn_every=1, xattn_head=16, visual_dim=2048),
    'flamingo-9b': dict(
        _PAPER, lm_layer=40, lm_dim=4096, lm_head=32, xattn_every=4, xattn_head=32, visual_dim=4096),
    'flamingo-80b': dict(
        _PAPER, lm_layer=80, lm_dim=8192, lm_head=64, xattn_every=7, xattn_head=64, visual_dim=8192),
}
