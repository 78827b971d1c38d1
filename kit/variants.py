"""What the paper compared its model with (Tables 3 and 10), and two models of others: each says what differs.

A variant is a Flamingo with other parts, put in through its two openings (`Resampler`, `Gated`), or one whose
`stream` goes another way. ablate.py trains them; nothing else needs them. Shapes: as in model.py.

The paper names these alternatives in a sentence each and discloses no internals: what it leaves open is said
at each class. Its points are those of the overall score, of which its own model has 70.7.
"""
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from model import Flamingo, GPT
from resampler import FeedForward, PerceiverResampler
from vision import NFNet
from xattn import gate, GatedCrossAttention

# ---------------------------------------------------------------------------------------------
# Other gated layers


class OpenCrossAttention(GatedCrossAttention):
    """Table 3 (iii), "no tanh gate" (−4.2): y ← y + XAttn;  y ← y + FFW, from the first step on."""

    def __init__(self, *size, **more):
        super().__init__(*size, **more)
        del self.alpha_x, self.alpha_d

    def gates(self):
        return torch.ones(()), torch.ones(())


class CrossAttentionOnly(GatedCrossAttention):
    """A gated cross-attention without a feed-forward of its own: y ← y + gate(α_x) · XAttn."""

    def __init__(self, *size, **more):
        super().__init__(*size, **more)
        del self.feed_forward, self.alpha_d

    def gates(self):
        return gate(self.alpha_x), torch.zeros(())

    def forward(self, y, visual, image_index):
        return y + self.gates()[0] * self.cross_attention(y, visual, image_index)


class NoLayer(nn.Module):
    """Stands where a gated layer is left out."""

    def gates(self):
        return torch.zeros(()), torch.zeros(())

    def forward(self, y, visual, image_index):
        return y


class NoTanhGate(Flamingo):
    Gated = OpenCrossAttention


class OneInTheMiddle(Flamingo):
    """Table 3 (v), "single in the middle" (−10.9): one gated layer, before block L/2."""

    def __init__(self, config, vision=None, lm=None):
        super().__init__(replace(config, xattn_every=1), vision, lm)
        for i in range(len(self.gated)):
            if i != len(self.gated) // 2:
                self.gated[i] = NoLayer()


class VanillaXattn(Flamingo):
    """Table 3 (iv), VANILLA XATTN (−3.8): the cross-attention of the original transformer decoder, between
    the frozen self-attention and the frozen feed-forward of each layer. It keeps its gate, as the paper's
    did."""
    Gated = CrossAttentionOnly

    def stream(self, tokens, image_index, visual=None, position=None, mask=None, past=None):
        every = self.config.xattn_every
        y = self.lm.add_positions(self.embed(tokens), position)                              # (B,T,D)
        for i, block in enumerate(self.lm.h):
            y = y + block.attn(block.ln_1(y), mask, past and past[i])
            if i % every == 0:
                y = self.gated[i // every](y, visual, image_index)
            y = y + block.feed_forward(block.ln_2(y))
        return self.lm.ln_f(y)


def plain_stream(lm, y, position, mask, past):
    """Embedded tokens (B,T,D) through a GPT by itself -> (B,T,D); position, mask and past as in
    Flamingo.stream"""
    y = lm.add_positions(y, position)
    for i, block in enumerate(lm.h):
        y = block(y, mask, past and past[i])
    return lm.ln_f(y)


class Grafting(Flamingo):
    """Table 3 (iv), GRAFTING (−7.6; VC-GPT, Luo et al. 2022): the language model stays untouched, and a new
    stack of self- and cross-attention layers in turn reads its outputs, before its own output embedding.

    Not disclosed: how many. L/2 + 1 of each have the parameters that Table 3 prints (3.3 B). They start
    silent, as new layers do elsewhere.
    """

    def __init__(self, config, vision=None, lm=None):
        super().__init__(config, vision, lm)
        c, n = config, config.lm_layer // 2 + 1
        grafted = replace(c, n_vocab=1, lm_layer=n, n_context=1)
        self.grafted = GPT.from_config(grafted).h  # initialised as its blocks are
        size = c.lm_dim, c.visual_dim or c.resampler_dim, c.xattn_head, c.xattn_head_dim, c.attend
        self.gated = nn.ModuleList(self.Gated(*size) for _ in range(n))
        self.config = replace(c, lm_layer=c.lm_layer + n)  # that many blocks remember what they have read
        self.freeze()

    def stream(self, tokens, image_index, visual=None, position=None, mask=None, past=None):
        n = len(self.lm.h)
        y = plain_stream(self.lm, self.embed(tokens), position, mask, past)                  # (B,T,D)
        for k, (block, gated) in enumerate(zip(self.grafted, self.gated)):
            y = block(y, mask, past and past[n + k])
            y = gated(y, visual, image_index)
        return y


# ---------------------------------------------------------------------------------------------
# Other resamplers


class TransformerResampler(PerceiverResampler):
    """Table 3 (vi), "Transformer" (−4.0): the same layers, but features and latents are one sequence and all
    of it attends to all of it; of the result the R places of the latents are kept. As many parameters."""

    def perceive(self, features):
        """(M,F,S,D) -> (M,R,D)"""
        latents = self.latents.expand(len(features), -1, -1)
        x = features + self.time(features.shape[1]).unsqueeze(1)                             # (M,F,S,D)
        x = torch.cat([x.flatten(1, 2), latents], dim=1)                                     # (M,F*S+R,D)
        for layer in self.layers:
            x = layer(x, x[:, :0])  # no features beside them
        return self.norm(x[:, -len(self.latents):])


class MLPResampler(PerceiverResampler):
    """Table 3 (vi), "MLP" (−4.1): no place sees another. Each goes through as many residual MLPs as the
    resampler has layers, wide enough to have its parameters; then the mean over frames is taken, and over
    neighbouring places where there are more than R."""

    def __init__(self, dim, dim_media=None, n_latent=64, n_layer=6, n_head=16, head_dim=None, n_frame=8):
        super().__init__(dim, dim_media, n_latent, 0, n_head, head_dim, n_frame)
        hidden = 4 * dim + 2 * n_head * (head_dim or dim // n_head)
        for _ in range(n_layer):
            layer = FeedForward(dim)
            layer.up, layer.down = nn.Linear(dim, hidden, bias=False), nn.Linear(hidden, dim, bias=False)
            self.layers.append(layer)

    def perceive(self, features):
        """(M,F,S,D) -> (M,R,D)"""
        x = features + self.time(features.shape[1]).unsqueeze(1)                             # (M,F,S,D)
        for layer in self.layers:
            x = x + layer(x)
        places = x.mean(1).transpose(1, 2)                                                   # (M,D,S)
        x = F.adaptive_avg_pool1d(places, len(self.latents)).transpose(1, 2)                 # (M,R,D)
        return self.norm(x + self.latents)  # what tells the R apart: the layers know of no places


class MLPInstead(Flamingo):
    Resampler = MLPResampler


class TransformerInstead(Flamingo):
    Resampler = TransformerResampler


# ---------------------------------------------------------------------------------------------
# Another encoder


class ViT(nn.Module):
    """Table 3 (vii), "CLIP ViT-L/14" (−5.8), trained here by the same contrastive stage as the NFNet.

    The methods and the meaning of their results are vision.NFNet's; patches of 8 pixels, learned positions.
    """
    size = 'vit'
    normalise, embed = NFNet.normalise, NFNet.embed

    def __init__(self, image_size, dim_embed, dim=128, n_layer=4, n_head=4, patch=8, per_image=False):
        super().__init__()
        body = NFNet('nano', per_image=per_image)
        self.per_image, self.dim = per_image, dim
        for name in ('mean', 'std'):
            self.register_buffer(name, getattr(body, name), persistent=False)
        self.patches = nn.Conv2d(3, dim, patch, patch)
        self.position = nn.Parameter(torch.randn((image_size // patch) ** 2, dim) * 0.02)
        layer = dict(dropout=0.0, activation='gelu', batch_first=True, norm_first=True)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(dim, n_head, 4 * dim, **layer) for _ in range(n_layer))
        self.norm = nn.LayerNorm(dim)
        self.projection = nn.Linear(dim, dim_embed, bias=False)

    def forward(self, images):
        x = self.patches(images).flatten(2).transpose(1, 2) + self.position                  # (B,S,D)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


# ---------------------------------------------------------------------------------------------
# Other systems


class OneStream(Flamingo):
    """Frozen (Tsimpoukelli et al. 2021, arXiv:2106.13884), and most models since: no gated layers. The R
    visual tokens of a picture stand among the words, where its tag is, and the language model's own
    self-attention reads them.

    Sequences come with R free places after each tag, as `with_places` makes them: <PAD> that has a picture.
    """

    def __init__(self, config, vision=None, lm=None):
        super().__init__(replace(config, visual_dim=config.lm_dim), vision, lm)
        self.gated = nn.ModuleList([NoLayer()])

    def stream(self, tokens, image_index, visual=None, position=None, mask=None, past=None):
        y = self.embed(tokens)
        if visual is not None:
            y = torch.where(self.places(tokens, image_index).unsqueeze(-1),
                            self.at_places(tokens, image_index, visual), y)
        return plain_stream(self.lm, y, position, mask, past)                                # (B,T,D)

    def places(self, tokens, image_index):
        """(B,T) bool: where visual tokens stand"""
        return (tokens == self.config.pad) & (image_index > 0)

    def at_places(self, tokens, image_index, visual):
        """(B,T,D): at each place its visual token; elsewhere any. As long as words are."""
        b, n, r, _ = visual.shape
        number = (self.places(tokens, image_index).cumsum(1) - 1).clamp(min=0) % r           # (B,T) of its R
        row = torch.arange(b, device=tokens.device)[:, None]
        which = ((row * n + (image_index - 1).clamp(0, n - 1)) * r + number)                 # (B,T)
        return F.embedding(which, visual.flatten(0, 2)) * self.lm.wte.weight.std()


def with_places(encoded, image, pad, n_latent, n_context=None):
    """data.Encoded -> the same with n_latent free places after each tag. With a context, what no longer fits
    is cut off, from the first picture whose places would not."""
    tag = np.asarray(encoded.tokens) == image
    times = np.where(tag, 1 + n_latent, 1)
    tokens, index, learn = (np.repeat(x, times)
                            for x in (encoded.tokens, encoded.image_index, encoded.loss_mask))
    place = np.ones(len(tokens), bool)
    place[np.cumsum(times) - times] = False  # the first of each is the token itself
    tokens, learn = np.where(place, pad, tokens), learn & ~place
    stop, media, start = len(tokens), encoded.media, encoded.start
    if n_context is not None:
        if stop > n_context:
            tags = np.flatnonzero(tokens == image)
            late = tags[(tags < n_context) & (tags + n_latent >= n_context)]
            stop = int(late[0]) if len(late) else n_context
            media = media[:int((tags < stop).sum())]
        start = min(start, n_context - stop)
    tokens, index, learn = tokens[:stop], index[:stop], learn[:stop]
    return replace(encoded, tokens=tokens, image_index=np.where(index <= len(media), index, 0),
                   loss_mask=learn, media=media, start=start)
