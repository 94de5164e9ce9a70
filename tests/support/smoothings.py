"""Smoothings of keys as models ask for them, in kvit's words and in the reference's."""

import numpy as np

import kvit
from kvit import reference


def smoothing_of(rng, kv_heads, head_dim, *, has_mean=True):
    """Means of several deviations and widths from a tenth to ten, both other ones in every head."""
    mean = rng.standard_normal((kv_heads, head_dim)).astype(np.float32) * 3 if has_mean else None
    width = np.exp(rng.uniform(-2.3, 2.3, (kv_heads, head_dim))).astype(np.float32)
    return kvit.KeySmoothing(mean, width)


def referred(smoothing):
    """The same in the reference's words."""
    return reference.Smoothing(smoothing.mean, smoothing.width)
