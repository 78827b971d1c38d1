"""Tolerances that follow from the dtype and the size of what is compared.

Another processor, or another number of threads, adds up the same numbers in another order. Each addition
rounds by at most half of ε = 2⁻²³ (float32) or 2⁻⁵² (float64) of its result. So an element is not off by a
share of itself, for it may be what two large numbers nearly cancelled to: it is off by a share of the
tensor it is in.
"""
import pytest
import torch

EPS = 2 ** -23  # of float32
# 1e-4: a word's log p comes from logits of about 8, each after about a hundred roundings
LOG_P = 100 * 8 * EPS


def assert_near(found, expected, roundings):
    """Two tensors of one shape: ‖found - expected‖ ≤ roundings · ε · ‖expected‖, ε that of found's dtype."""
    assert found.shape == expected.shape
    off = (found.double() - expected.double()).norm().item()
    allowed = roundings * torch.finfo(found.dtype).eps * expected.double().norm().item()
    assert off <= allowed, f'off by {off:.3g}, allowed {allowed:.3g}'


def near_log_p(value, n_word):
    """The log p of an answer of n_word words: each may be off by LOG_P."""
    return pytest.approx(value, abs=n_word * LOG_P)
