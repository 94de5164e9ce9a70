"""Numbers of the 16-bit types, and rows of them."""

import numpy as np


def is_finite(x):
    """np.isfinite of any bit patterns: of a signalling NaN of bfloat16 numpy 2.2 asks with a warning."""
    with np.errstate(invalid="ignore"):
        return np.isfinite(x)


def numbers(dtype):
    """Every number of T, once: 65536 bit patterns without NaN and infinity."""
    everything = np.arange(2**16, dtype=np.uint16).view(dtype)
    return everything[is_finite(everything)]


def typical_rows(rng, dtype, count=2000, channels=64):
    """Rows whose ranges differ by many powers of two, and whose scales are normal numbers of T."""
    size = np.exp2(rng.uniform(-5, 12, (count, 1)))
    return (rng.standard_normal((count, channels)) * size).astype(dtype)
