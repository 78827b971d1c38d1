"""Perceiver Resampler: any number of frames and places in, a fixed handful of visual tokens out (§2.1).

The language model pays for every visual token in every gated layer, so a clip of 30 frames must not
cost as much as 30 pictures. A few learned *latents* ask the picture questions by cross-attention and
carry the answers on: R tokens, whether the encoder gave one grid of features or thirty of them.

Shapes: B batch, N images in the sequence, M images of all sequences, F frames, S places, R latents, D width,
H heads, d head width.
"""
import torch
import torch.nn.functional as F
from torch import nn

from kit.fast.attention import attention
from kit.fast.ragged import for_each_clip, real_frames


class FeedForward(nn.Module):
    """Pre-norm MLP with squared ReLU, four times as wide inside (Table 4). (..., D) -> (..., D)"""

    def __init__(self, dim):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, 4 * dim, bias=False)
        self.down = nn.Linear(4 * dim, dim, bias=False)

    def forward(self, x):
        h = F.relu(self.up(self.norm(x))).square()  # (..., 4D)
        return self.down(h)                         # (..., D), added to the stream by the caller


class ResamplerLayer(nn.Module):
    """X ← X + Attn(q = LN(X), kv = [LN(X_f); LN(X)]);  X ← X + FFW(LN(X))   (Figure 5).

    forward(latents (M,R,D), features (M,F*S,D)) -> (M,R,D), of the M images of all sequences. X are the
    latents, X_f the features of all places of all frames, the embedding of its time added to each.
    """

    def __init__(self, dim, n_head, head_dim):
        super().__init__()
        self.n_head, self.head_dim = n_head, head_dim
        self.norm_media = nn.LayerNorm(dim)
        self.norm_latents = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, n_head * head_dim, bias=False)
        self.to_kv = nn.Linear(dim, 2 * n_head * head_dim, bias=False)
        self.to_out = nn.Linear(n_head * head_dim, dim, bias=False)
        self.feed_forward = FeedForward(dim)

    def queries_keys_values(self, latents, features):
        """-> q (M,H,R,d), k and v (M,H,F*S+R,d)"""
        latents, features = self.norm_latents(latents), self.norm_media(features)
        # Latents stand among the keys, too (unlike DETR): they can see what the others already hold.
        kv = self.to_kv(torch.cat([features, latents], dim=1))                        # (M,F*S+R,2*H*d)
        q, (k, v) = self.to_q(latents), kv.chunk(2, dim=-1)
        return [x.unflatten(-1, (self.n_head, self.head_dim)).transpose(1, 2) for x in (q, k, v)]

    def cross_attention(self, latents, features):
        q, k, v = self.queries_keys_values(latents, features)
        out = attention(q, k, v)                                                      # (M,H,R,d)
        return self.to_out(out.transpose(1, 2).flatten(2))                            # (M,R,D)

    def forward(self, latents, features):
        latents = latents + self.cross_attention(latents, features)
        latents = latents + self.feed_forward(latents)
        return latents


class PerceiverResampler(nn.Module):
    """Visual features of any size -> exactly `n_latent` visual tokens per image or clip (§2.1).

    forward(features, frame_mask (B,N,F) bool or None) -> visual (B,N,R,D), float.

    features: padded (B,N,F,S,D_v); or those of the real frames, one after the other (frames,S,D_v): then
    frame_mask has to say whose they are. It is True where a frame is real; without a mask all are. A frame
    that is padding has no influence. An image without real frames gives zeros, and no text token looks at it.

    dim:       width D of the visual tokens;  dim_media: width of the features, projected to D if it differs
    head_dim:  D / n_head by default. (The paper contradicts itself: 96 by Table 4, 128 by its text and by
               its parameter count of 194 M; see the presets in model.py.)
    n_frame:   frames seen in training; longer clips interpolate the learned time embeddings (appendix B.1.2)
    """

    def __init__(self, dim, dim_media=None, n_latent=64, n_layer=6, n_head=16, head_dim=None, n_frame=8):
        super().__init__()
        dim_media = dim_media or dim
        self.project = nn.Linear(dim_media, dim, bias=False) if dim_media != dim else nn.Identity()
        self.latents = nn.Parameter(torch.randn(n_latent, dim) * 0.02)
        # One embedding per *frame*: order in time matters. None for the place in a frame: the paper found
        # that the encoder's features carry it already. They start about as large as the projected features
        # they are added to: at 0.02, like the latents, a short training never learned which way things move.
        self.time_embedding = nn.Parameter(torch.randn(n_frame, dim) * 0.5)
        head_dim = head_dim or dim // n_head
        self.layers = nn.ModuleList(ResamplerLayer(dim, n_head, head_dim) for _ in range(n_layer))
        self.norm = nn.LayerNorm(dim)  # of what comes out; not in Figure 5

    def time(self, n):
        """-> for each frame of a clip of n the embedding of its time (n,D).

        At most n_frame frames use the first embeddings as they are (a picture: the very first). A longer clip
        stretches them: frame f stands at f·(n_frame−1)/(n−1), between two of them.
        """
        n_trained = len(self.time_embedding)
        if n <= n_trained:
            return self.time_embedding[:n]
        moment = torch.arange(n, device=self.time_embedding.device) * (n_trained - 1) / (n - 1)
        i = moment.floor().long()
        j = (i + 1).clamp(max=n_trained - 1)
        share = (moment - i).unsqueeze(-1).to(self.time_embedding.dtype)             # (n,1)
        # F.embedding, not an index: its gradient adds up in the same order every time.
        before, after = (F.embedding(at, self.time_embedding) for at in (i, j))      # (n,D) each
        return torch.lerp(before, after, share)                                      # (n,D)

    def perceive(self, features):
        """(M,F,S,D) features of M images that have equally many frames -> (M,R,D)"""
        features = features + self.time(features.shape[1]).unsqueeze(1)              # (M,F,S,D)
        features = features.flatten(1, 2)                                            # (M,F*S,D)
        x = self.latents.expand(len(features), -1, -1)                               # (M,R,D)
        for layer in self.layers:
            x = layer(x, features)
        return self.norm(x)

    def forward(self, features, frame_mask=None):
        frames, frame_mask = real_frames(features, frame_mask)                       # (frames,S,D_v), (B,N,F)
        length = frame_mask.flatten(0, 1).sum(1)                                     # (B*N,) of each image
        # Each image is perceived by itself; those with equally many frames run as one batch.
        none = torch.zeros_like(self.latents)                                        # of an image without any
        visual = for_each_clip(self.perceive, self.project(frames), length, none)    # (B*N,R,D)
        return visual.unflatten(0, frame_mask.shape[:2])                             # (B,N,R,D)
