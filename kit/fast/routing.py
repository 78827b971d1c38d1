"""Cross-attention of text to the one image that each token sees: no score that a mask would throw away.

The obvious way is a T × N·R score matrix with most of it masked: N times the work. Instead the tokens of
each image are cut into chunks of C; each chunk meets its image's R visual tokens in a dense little
attention. Where text is spread evenly, chunk m is all the text of image m; elsewhere C = ⌈T/N⌉ and an image
may have several chunks or none. Either way there are at most 2N chunks and 2T chunk places a sequence (and
one chunk at least): the cost does not grow with N.

Shapes: as elsewhere, and M chunks of C tokens, of all sequences.
"""
from dataclasses import dataclass
from functools import cache

import torch

from kit.fast.attention import attention


@dataclass
class Route:
    """Which tokens look at which image, for a batch of sequences."""
    token: torch.Tensor  # (M*C,) which token (of B*T) sits at each place; unused places hold token 0
    image: torch.Tensor  # (M,)   which image (of all B*N) each chunk looks at
    whole: bool          # chunk m is image m's, for all m: keys and values need no copying
    place: torch.Tensor  # (B*T,) where each token sits; 0 if it sees nothing
    seen: torch.Tensor   # (B,T)  whether the token sees any image
    chunk: int           # C


@cache  # every batch asks
def one_image_per_token(rule):
    """Whether by a rule of xattn.SEES a token sees the image of its index and no other, so that
    `routed_attention` is the same as xattn.masked_attention. This asks the rule itself, so that an edited one
    is obeyed."""
    return all(rule(image, index) == (image == index) for image in range(1, 66) for index in range(66))


def route_tokens(seen):
    """seen (B,T,N) bool, which image each token sees: one or none -> Route

        tokens       a  b  c  d  e      of two images a sees none, b and c the first: chunks hold C = 2
        chunks       (b c) of image 1, (d e) of image 2:  token = b c d e,  place of b c d e = 0 1 2 3
    """
    b, t, n_image = seen.shape
    device = seen.device
    image = seen.int().argmax(-1)                                                         # (B,T) which, …
    seen = seen.any(-1)                                                                   # … if any
    first = torch.arange(b, device=device)[:, None] * n_image                        # (B,1) of a row's images
    owner = (first + image).flatten()                                                # (B*T,) which of all B*N
    token = seen.flatten().nonzero().squeeze(1)                                         # (K,) tokens that see
    token = token[owner[token].argsort(stable=True)]                                      # … sorted by image
    count = torch.bincount(owner[token], minlength=b * n_image)                           # tokens per image
    longest = int(count.max())
    whole = longest > 0 and b * n_image * longest <= 2 * b * t               # one chunk per image is no waste
    chunk = longest if whole else -(-t // n_image)                                        # C
    n_chunk = torch.ones_like(count) if whole else (count + chunk - 1) // chunk           # chunks per image
    n_chunk[0].clamp_(min=1)  # where no token sees any image, all parameters have a gradient still, of zero
    first_chunk = n_chunk.cumsum(0) - n_chunk
    before = count.cumsum(0) - count                                                # tokens of earlier images
    rank = torch.arange(len(token), device=device) - before[owner[token]]             # place within its image
    place = first_chunk[owner[token]] * chunk + rank                                      # (K,)
    image = torch.repeat_interleave(torch.arange(len(count), device=device), n_chunk)     # (M,)
    token_at = torch.zeros(len(image) * chunk, dtype=torch.long, device=device).index_copy(0, place, token)
    place_of = torch.zeros(b * t, dtype=torch.long, device=device).index_copy(0, token, place)
    return Route(token_at, image, whole, place_of, seen, chunk)


def routed_attention(q, k, v, seen):
    """xattn.masked_attention, where no token sees more than one image.

    q (B,T,H,d), k and v (B,N,H,R,d), seen (B,T,N) bool -> (B,T,H,d), zero where a token sees nothing.
    """
    if k.shape[1] == 1:  # nothing to route: captioned pictures, and an answer that is written word by word
        out = attention(q.transpose(1, 2), k[:, 0], v[:, 0]).transpose(1, 2)              # (B,T,H,d)
        return out.masked_fill(~seen[..., None], 0.0)
    return attention_along(route_tokens(seen), q, k, v)


def attention_along(route, q, k, v):
    """`routed_attention` where the Route is known."""
    q_chunk = q.flatten(0, 1).index_select(0, route.token)                                # (M*C,H,d)
    q_chunk = q_chunk.unflatten(0, (-1, route.chunk)).transpose(1, 2)                     # (M,H,C,d)
    k, v = (x.flatten(0, 1) for x in (k, v))                                              # (B*N,H,R,d) each
    if not route.whole:
        k, v = (x.index_select(0, route.image) for x in (k, v))                           # (M,H,R,d) each
    out = attention(q_chunk, k, v).transpose(1, 2).flatten(0, 1)                  # (M*C,H,d), nothing to mask
    out = out.index_select(0, route.place).view_as(q)                                     # (B,T,H,d)
    return out.masked_fill(~route.seen[..., None, None], 0.0)
