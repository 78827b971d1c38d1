"""The kernel of all attention here."""
import torch
import torch.nn.functional as F

# Where matrix products in bfloat16 take half the time, but attention's kernel as long forward and five
# times as long backward.
SLOW_IN_BFLOAT16 = ('cpu',)


def attention(q, k, v, mask=None, causal=False):
    """softmax(q kᵀ/√d) v: q (…,T,d), k and v (…,S,d) -> (…,T,d).

    mask (…,T,S): bool, True where a query sees a key, or a number to add to their score; causal: it sees
    the keys up to its own place. This is F.scaled_dot_product_attention, in float32 where bfloat16 would be
    slower.
    """
    if q.dtype == torch.bfloat16 and q.device.type in SLOW_IN_BFLOAT16:
        with torch.autocast(q.device.type, enabled=False):
            mask = mask.float() if mask is not None and mask.dtype != torch.bool else mask
            wide = (x.float() for x in (q, k, v))
            return F.scaled_dot_product_attention(*wide, attn_mask=mask, is_causal=causal).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
