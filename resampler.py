"""Perceiver Resampler: any number of frames and patches in, a fixed handful of visual tokens out (§3.1.1).

The language model pays for every visual token in every gated layer, so a clip of 30 frames must not
cost 30 pictures. A few learned *latents* ask the picture questions by cross-attention and carry the
answers on: R tokens, whether the encoder gave one 6x6 grid or thirty of them.

Shapes: B batch, N images in the sequence, F frames, S spatial positions, R latents, D width, H heads.
"""
import torch
import torch.nn.functional as F
from torch import nn


# Devices where matrix products in bfloat16 take half the time, but attention's kernel as long forward and up to five times as long backward.
SLOW_IN_BFLOAT16 = ('cpu',)


def attention(q, k, v, mask=None, causal=False):
    """softmax(q kᵀ / √d) v in one kernel, for all three kinds of attention here. q (…,T,d), k and v (…,S,d) -> (…,T,d);
    mask (…,T,S): bool, True where a query sees a key, or a number to add to their score; causal: it sees the keys up to its own place."""
    if q.dtype == torch.bfloat16 and q.device.type in SLOW_IN_BFLOAT16:
        with torch.autocast(q.device.type, enabled=False):
            mask = mask.float() if mask is not None and mask.dtype != torch.bool else mask
            return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask, is_causal=causal).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)


class SquaredReLU(torch.autograd.Function):
    """relu(x)², whose gradient is 2·relu(x). Said by hand, it goes over the widest tensor of a layer twice on the way back;
    the gradients of relu and square one after the other go over it five times (4 to 8 % of a gated layer's training)."""

    @staticmethod
    def forward(ctx, x):
        r = F.relu(x)
        ctx.save_for_backward(r)
        return r * r

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        r, = ctx.saved_tensors
        return (gradient * r).mul_(2)


class FeedForward(nn.Module):
    """Pre-norm MLP with squared ReLU, four times as wide inside (Table 4). (..., D) -> (..., D)"""

    def __init__(self, dim):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, 4 * dim, bias=False)
        self.down = nn.Linear(4 * dim, dim, bias=False)

    def forward(self, x):
        h = SquaredReLU.apply(self.up(self.norm(x)))  # (..., 4D)
        return self.down(h)                           # (..., D), added to the stream by the caller


class ResamplerLayer(nn.Module):
    """X += Attn(q=X, kv=[X_f; X]);  X += FFW(X)   (Figure 5 of the paper, in two lines of `forward`)."""

    def __init__(self, dim, n_head, head_dim):
        super().__init__()
        self.n_head, self.head_dim = n_head, head_dim
        self.norm_media = nn.LayerNorm(dim)
        self.norm_latents = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, n_head * head_dim, bias=False)
        self.to_kv = nn.Linear(dim, 2 * n_head * head_dim, bias=False)
        self.to_out = nn.Linear(n_head * head_dim, dim, bias=False)
        self.feed_forward = FeedForward(dim)

    def queries_keys_values(self, latents, media):
        """latents (M,R,D), or (1,R,D) the same for all images; media: see `taken_apart` -> q (M,H,R,d), k and v (M,H,F*S+R,d)"""
        features, time, scale = media
        weight = self.to_kv.weight * self.norm_media.weight                                       # (2*H*d,D)
        # Repeated over the places, and only then added to every image: on the way back, two sums in turn are 20 times as fast as one over both.
        bias = self.to_kv(self.norm_media.bias).repeat(*features.shape[1:3], 1)                   # (F,S,2*H*d)
        from_media = (F.linear(features, weight) + F.linear(time, weight)) * scale + bias         # (M,F,S,2*H*d)
        latents = self.norm_latents(latents)
        # Latents stand among the keys too (unlike DETR): they can see what the others already hold.
        kv = torch.cat([from_media.flatten(1, 2), self.to_kv(latents).expand(len(features), -1, -1)], dim=1)  # (M,F*S+R,2*H*d)
        q = self.to_q(latents).expand(len(features), -1, -1)                                      # (M,R,H*d)
        return [x.unflatten(-1, (self.n_head, self.head_dim)).transpose(1, 2) for x in (q, *kv.chunk(2, dim=-1))]

    def attention(self, latents, media):
        q, k, v = self.queries_keys_values(latents, media)
        out = attention(q, k, v)                                                                  # (M,H,R,d)
        return self.to_out(out.transpose(1, 2).flatten(2))                                        # (M,R,D)

    def forward(self, latents, media):
        latents = latents + self.attention(latents, media)
        latents = latents + self.feed_forward(latents)
        return latents


def taken_apart(features, time, eps=1e-5):
    """What every layer reads of the media, LN(x + t), for features x (M,F,S,D) and the embedding t (F,D) of each frame's moment.

    With x° for x minus its mean over channels, and σ the deviation of x + t, LN(x + t) = γ (x° + t°) / σ + β. All layers read the
    same, each with a γ, a β and a projection W of its own: W LN(x + t) = (Wγ x° + Wγ t°) / σ + W β. *Why so.* One normalisation does
    for all layers. And where an encoder's features are as wide as the resampler, they come here as they are and want no gradient:
    backward then has nothing to bring through W to each of the many places but a number, that of σ, an eighth less to compute.
    -> x° (M,F,S,D), t° (F,1,D), 1/σ (M,F,S,1)
    """
    features, time = (x - x.mean(-1, keepdim=True) for x in (features, time.unsqueeze(1)))
    return features, time, torch.rsqrt((features + time).square().mean(-1, keepdim=True) + eps)


class PerceiverResampler(nn.Module):
    """Visual features of any size -> exactly `n_latent` visual tokens per image or clip (§3.1.1).

    forward(media (B,N,F,S,D_in), frame_mask (B,N,F) bool or None) -> visual (B,N,R,D), float.
    `frame_mask` is True where a frame is real. A frame that is padding has no influence on the result,
    and what comes out for an image whose frames are all padding is never looked at by any text token.
    With a frame_mask, media may hold the real frames alone, one after the other: (M,S,D_in).

    dim:       width D of the visual tokens;  dim_media: width of the features, projected to D if it differs
    head_dim:  D / n_head unless said. (The paper contradicts itself: 96 by Table 4, 128 by its text and by its
               parameter count of 194 M; see the presets in model.py.)
    n_frame:   frames seen in training; longer clips interpolate the learned time embeddings (appendix B.1.2)
    """

    def __init__(self, dim, dim_media=None, n_latent=64, n_layer=6, n_head=16, head_dim=None, n_frame=8):
        super().__init__()
        dim_media = dim_media or dim
        self.project = nn.Linear(dim_media, dim, bias=False) if dim_media != dim else nn.Identity()
        self.latents = nn.Parameter(torch.randn(n_latent, dim) * 0.02)
        # One embedding per *frame*: order in time matters. There is none for position in the frame: the paper found
        # that the encoder's features carry their place already. About as large as the features it is added to: at
        # 0.02, like the latents, the direction of motion was not learned at all in a short training.
        self.time_embedding = nn.Parameter(torch.randn(n_frame, dim) * 0.5)
        self.layers = nn.ModuleList(ResamplerLayer(dim, n_head, head_dim or dim // n_head) for _ in range(n_layer))
        self.norm = nn.LayerNorm(dim)

    def time(self, n):
        """-> the embeddings of the moments of a clip of n frames (n,D).

        At most n_frame frames use the first embeddings as they are (a picture: the very first). A longer clip stretches
        them: frame f stands at f·(n_frame−1)/(n−1), between two of them.
        """
        n_trained = len(self.time_embedding)
        if n <= n_trained:
            return self.time_embedding[:n]
        moment = torch.arange(n, device=self.time_embedding.device) * (n_trained - 1) / (n - 1)
        before = moment.floor().long()
        after = (before + 1).clamp(max=n_trained - 1)
        share = (moment - before).unsqueeze(-1).to(self.time_embedding.dtype)          # (n,1)
        # F.embedding, not an index: that one's gradient adds up in the order in which threads come, another each time.
        return torch.lerp(F.embedding(before, self.time_embedding), F.embedding(after, self.time_embedding), share)

    def resample(self, features):
        """(M,F,S,D) features of M images that have equally many frames -> (M,R,D)"""
        media = taken_apart(features, self.time(features.shape[1]))
        x = self.latents.unsqueeze(0)  # the first layer asks the same of all images
        for layer in self.layers:
            x = layer(x, media)
        return self.norm(x)

    def forward(self, media, frame_mask=None):
        whole = frame_mask is None or bool(frame_mask.all())
        b, n, f = media.shape[:3] if frame_mask is None else frame_mask.shape
        if media.ndim == 5:
            media = media.flatten(0, 2) if whole else media[frame_mask]                # (M,S,D_in), M real frames
        features = self.project(media)                                                 # (M,S,D)
        if whole:
            return self.resample(features.unflatten(0, (b * n, f))).unflatten(0, (b, n))
        # Where lengths differ, images with equally many frames go together. Padding is not masked but left out: a picture
        # beside a clip of 8 frames would otherwise pay for all 8, and time is counted in a clip's own frames.
        length = frame_mask.flatten(0, 1).sum(1)                                       # (B*N,) frames of each image
        of_frame = length.repeat_interleave(length)                                    # (M,) the same, for each frame
        visual, place = [], []
        for n_real in length.unique().tolist():                                        # seldom more than two or three
            place.append((length == n_real).nonzero().squeeze(1))
            if n_real == 0:  # no picture at all: nobody will look
                visual.append(features.new_zeros(len(place[-1]), *self.latents.shape))
            else:
                visual.append(self.resample(features[of_frame == n_real].unflatten(0, (-1, n_real))))
        order = torch.cat(place).argsort()                                             # back to where each image stood
        return torch.cat(visual).index_select(0, order).unflatten(0, (b, n))           # (B,N,R,D)
