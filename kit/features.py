"""Two caches: the pixels of pictures, and the frozen encoder's features of them. And `drop_channels`, which
leaves some of the features out in training.

Pages show the same pictures again and again, and the encoder changes only in its own stage (and when it is
fine-tuned: then nothing is kept). So a picture is decoded once and encoded once, as far as the limits on
memory allow, and both are kept under the `key` that names its exact pixels.
"""
import numpy as np
import torch
import torch.nn.functional as F

from data import load_pixels


class Kept(dict):
    """A dict of tensors that drops the oldest when it holds more than `limit` bytes."""

    def __init__(self, limit):
        super().__init__()
        self.limit, self.size = limit, 0

    def keep(self, key, tensor):
        self[key] = tensor
        self.size += tensor.nbytes
        while self.size > self.limit and len(self) > 1:
            self.drop(next(iter(self)))

    def drop(self, key):
        if key in self:
            self.size -= self.pop(key).nbytes

    def clear(self):
        super().clear()
        self.size = 0


class Pixels:
    """pixels(media) -> (F,3,height,width) uint8 of one Media, decoded once. Raises BadItem if that cannot be
    done."""

    def __init__(self, image_size, n_frame, limit=512 << 20):
        self.image_size, self.n_frame, self.kept = image_size, n_frame, Kept(limit)

    def __call__(self, media):
        if media.key in self.kept:
            return self.kept[media.key]
        pixels = torch.from_numpy(load_pixels(media, self.image_size, self.n_frame))
        if media.key:
            self.kept.keep(media.key, pixels)
        return pixels


class FrozenFeatures:
    """features, frame_mask = FrozenFeatures(vision, pixels, device)(media)

    media: B lists of data.Media. -> features (frames,S,D_v) float32 of their frames, one after the other, and
    frame_mask (B,N,F) bool, which says where each frame belongs, on `device`; (None, None) if there is no
    picture at all.

    The encoder always runs on batches of exactly CHUNK frames, padded if there are fewer: the order of its
    sums may depend on the batch size, and a resumed run must find the same features as one that was never
    interrupted, bit for bit, whatever else is in the batch.
    """
    CHUNK = 32

    def __init__(self, vision, pixels, device='cpu', limit=1 << 30):
        self.vision, self.pixels, self.device, self.kept = vision, pixels, device, Kept(limit)

    @torch.no_grad()
    def encode(self, pixels):
        """(frames,3,height,width) uint8 -> (frames,S,D_v) float32"""
        out = []
        for part in pixels.split(self.CHUNK):
            full = torch.zeros(self.CHUNK, *part.shape[1:], dtype=torch.uint8)
            full[:len(part)] = part
            with torch.autocast(torch.device(self.device).type, enabled=False):  # in its own number format
                grid = self.vision(self.vision.normalise(full.to(self.device)))        # (CHUNK,S,D_v)
            out.append(grid[:len(part)].float().cpu())
        return torch.cat(out)

    def __call__(self, media):
        found, new = {}, {}
        for m in (m for row in media for m in row):
            name = m.key or id(m)  # a picture without a key is encoded but not kept
            if name in self.kept:
                found[name] = self.kept[name]
            else:
                new[name] = m
        if new:
            frames = [self.pixels(m) for m in new.values()]
            encoded = self.encode(torch.cat(frames)).split([len(f) for f in frames])
            for (name, m), f in zip(new.items(), encoded):
                found[name] = f.clone()  # a copy: a view would keep the whole batch in memory
                if m.key:
                    self.kept.keep(name, found[name])
        features = [[found[m.key or id(m)] for m in row] for row in media]           # each (F,S,D_v)
        mask = mask_of([[len(f) for f in row] for row in features])                  # (B,N,F)
        if mask is None:
            return None, None
        return torch.cat([f for row in features for f in row]).to(self.device), mask.to(self.device)


def stack_frames(media, frames):
    """B lists of Media -> (B,N,F,…) tensor, zero where there is no frame, and frame_mask (B,N,F) bool.

    `frames(media)` gives one of them as a tensor (F,…): its pixels, or its features. Without any: (None,
    None).
    """
    arrays = [[frames(m) for m in row] for row in media]
    mask = mask_of([[len(a) for a in row] for row in arrays])
    if mask is None:
        return None, None
    real = torch.cat([a for row in arrays for a in row])                          # one frame after the other
    stacked = real.new_zeros(*mask.shape, *real.shape[1:])
    stacked[mask] = real
    return stacked, mask


def mask_of(lengths):
    """How many frames each picture has, in B lists -> (B,N,F) bool, True where there is a frame; None
    without any."""
    n = max(len(row) for row in lengths)
    if n == 0:
        return None
    lengths = torch.tensor([row + [0] * (n - len(row)) for row in lengths])       # (B,N)
    return torch.arange(int(lengths.max())) < lengths.unsqueeze(-1)


def drop_channels(features, frame_mask, sequences, share):
    """Frozen features (frames,S,D_v) of the pictures of `sequences` (data.Encoded) -> the same, each place at
    unit variance, with a random share of each picture's channels zeroed, different ones each time.

    *Why.* A frozen encoder knows its training pictures by heart, and a few of its channels are enough to
    tell them apart. Those say nothing about something new. A model that cannot rely on any single channel
    learns what many of them agree on.

    *Why at unit variance first*, as Flamingo.resample will see them: features as they come are mostly
    above zero. Leaving some out would move the mean of a place, and the norm would pass that on to all
    channels. (That norm comes again after this, and brings what is left back to unit variance: no 1/(1-p) is
    needed.)
    """
    if features is None or share == 0:
        return features
    draws = [np.random.default_rng(s.seed).random((len(s.media), features.shape[-1]), np.float32)
             for s in sequences]
    kept = torch.from_numpy(np.concatenate(draws) >= share).to(features)               # (pictures,D_v)
    n_frame = frame_mask.sum(-1)[frame_mask.any(-1)]                                   # (pictures,)
    features = F.layer_norm(features, features.shape[-1:])
    return features * kept.repeat_interleave(n_frame, dim=0).unsqueeze(1)              # (frames,S,D_v)
