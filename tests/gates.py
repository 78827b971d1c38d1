"""Gates opened by how far, whatever a gate is made of."""
import torch

from xattn import gate


def open_gates(layer, x, d):
    """Set the two parameters of a gated layer so that its gates are open as far as x and d say, from 0 to
    1."""
    open_gate(layer.alpha_x, x)
    open_gate(layer.alpha_d, d)


@torch.no_grad()
def open_gate(alpha, wanted):
    low, high = -20.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if gate(alpha.fill_(middle)) < wanted else (low, middle)
    assert abs(gate(alpha) - wanted) < 1e-6
