"""The kernel of all attention here."""
import torch
import torch.nn.functional as F

# Where matrix products in bfloat16 take half the time, but attention's kernel as long forward and five
# times as long backward.
SLOW_IN_BFLOAT16 = ('cpu',)
# Queries at a time under a causal mask. Whole, the kernel computes what the mask hides, a half of all. (Of
# 14 rows of 350 tokens, 4 heads: 32 ms instead of 42 forward and backward, two cores.)
BLOCK = {'cpu': 128}


def attention(q, k, v, mask=None, causal=False, scale=None):
    """softmax(scale · q kᵀ) v: q (…,T,d), k and v (…,S,d) -> (…,T,d). scale: 1/√d if None.

    mask (…,T,S): bool, True where a query sees a key, or a number to add to their score; causal: no query
    sees a key beyond its own place (a mask has to say so, too). This is F.scaled_dot_product_attention, in
    float32 where bfloat16 would be slower, and in blocks where a mask hides what is beyond.
    """
    if q.dtype == torch.bfloat16 and q.device.type in SLOW_IN_BFLOAT16:
        with torch.autocast(q.device.type, enabled=False):
            mask = mask.float() if mask is not None and mask.dtype != torch.bool else mask
            return attention(*(x.float() for x in (q, k, v)), mask, causal, scale).to(q.dtype)
    size = BLOCK.get(q.device.type)
    if causal and mask is not None and size and q.shape[-2] > size:
        return causal_blocks(q, k, v, mask, scale, size)
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal and mask is None, scale=scale)


def causal_blocks(q, k, v, mask, scale, size):
    """The same, of a causal mask: each block of `size` queries meets the keys up to its end alone."""
    return torch.cat([
        F.scaled_dot_product_attention(q[..., i:i + size, :], k[..., :i + size, :], v[..., :i + size, :],
                                       attn_mask=mask[..., i:i + size, :i + size], scale=scale)
        for i in range(0, q.shape[-2], size)], dim=-2)
