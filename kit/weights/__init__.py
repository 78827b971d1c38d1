"""Weights: what others have published, in; our own checkpoints, in and out."""
from kit.weights.published import gpt2, gpt2_sizes, nfnet, nfnet_sizes
