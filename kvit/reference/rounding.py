"""Rounds float64 results to a stored type in one step, to nearest even."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def rounded(x: ArrayLike, dtype: np.dtype | type) -> NDArray:
    """`x` in `dtype`, rounded once.

    Casts from float64 to the types of ml_dtypes go through float32 and so round twice: a value a hair above the middle
    of two bfloat16 becomes exactly the middle, and then falls. Rounding to odd on the way keeps the hair.
    """
    x, dtype = np.asarray(x, np.float64), np.dtype(dtype)
    if dtype in (np.float64, np.float32, np.float16):
        with np.errstate(over="ignore"):  # beyond the largest number is infinity, as on a GPU
            return x.astype(dtype)
    return _rounded_to_odd(x).astype(dtype)


def _rounded_to_odd(x: NDArray[np.float64]) -> NDArray[np.float32]:
    """float32 next to `x`: exact, or of the two neighbours the one whose last bit is set."""
    with np.errstate(over="ignore", invalid="ignore"):  # infinity minus infinity is no error to correct
        nearest = x.astype(np.float32)
        error = x - nearest
    even = (nearest.view(np.uint32) & 1) == 0
    toward_x = np.where(error > 0, np.float32(np.inf), np.float32(-np.inf)).astype(np.float32)
    inexact = np.isfinite(nearest) & (error != 0) & even
    return np.where(inexact, np.nextafter(nearest, toward_x), nearest).astype(np.float32)
