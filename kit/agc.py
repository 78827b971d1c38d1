"""Clipping for networks without normalisation."""
import torch


@torch.no_grad()
def adaptive_gradient_clip(parameters, clip=0.01, eps=1e-3):
    """AGC, in place: no unit's gradient is longer than `clip` times its weight (Brock et al. 2021, eq. 3).

    G_i ← G_i · clip·max(‖W_i‖, eps) / ‖G_i‖  where that is smaller. A unit is an output channel or feature
    of a weight, and the whole of a vector or scalar. Without normalisation layers, a large step on a small
    weight is what makes an NFNet diverge.
    """
    def norm(x):
        """of each unit"""
        within = tuple(range(1, x.ndim)) if x.ndim > 1 else None
        return torch.linalg.vector_norm(x, dim=within, keepdim=True)

    for p in parameters:
        if p.grad is not None:
            longest = clip * norm(p).clamp(min=eps)
            p.grad.mul_((longest / norm(p.grad).clamp(min=1e-6)).clamp(max=1.0))
