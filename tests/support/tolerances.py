"""How far a kernel's result may lie from the reference, by dtype, and why. The only place that holds such numbers."""

from __future__ import annotations

import ml_dtypes
import numpy as np

# Half the distance from 1 to the next number: the largest relative error of one rounding to nearest.
UNIT_ROUNDOFF = {
    np.dtype(ml_dtypes.bfloat16): 2.0**-8,
    np.dtype(np.float16): 2.0**-11,
    np.dtype(np.float32): 2.0**-24,
}

# A score is a sum over head_dim / 16 <= 16 matrix steps, which tensor cores truncate at about 2**-22 of the largest
# term; with channels of order one, terms and scores stay below 16. The log of the sum adds one rounding of a number of
# that size.
LSE = 16 * 16 * 2.0**-22


# With coded keys the products carry an offset of up to 1024 under codes up to 255, so a step may lose 2**-22 of a sum
# some five times the scores' range: a thousandth of a unit covers it with channels and scores of order ten.
SCORE_QUANTISED = 2.0**-9


def attention_bound(magnitude: np.ndarray, dtype: np.dtype | type) -> np.ndarray:
    """Largest |error| of each output element.

    magnitude  attention over |v| instead of v: the sum of weight * |value| that an output is made of

    The weights are rounded to the dtype before they meet V, each off by one unit roundoff; the output is rounded once
    more. All else happens in float32, a quarter of a roundoff covers it, and the weights of f16 that are too small to
    be exact.
    """
    return 2.25 * UNIT_ROUNDOFF[np.dtype(dtype)] * magnitude


def merge_bound(out_a: np.ndarray, out_b: np.ndarray, dtype: np.dtype | type) -> np.ndarray:
    """Largest |error| of merge_states: a mean in float32 (a few roundings of 2**-24), rounded once to the dtype."""
    largest = np.maximum(np.abs(out_a).astype(np.float64), np.abs(out_b).astype(np.float64))
    return (UNIT_ROUNDOFF[np.dtype(dtype)] + 16 * UNIT_ROUNDOFF[np.dtype(np.float32)]) * largest


def assert_within(actual: np.ndarray, expected: np.ndarray, bound: np.ndarray | float) -> None:
    """Every element within its bound; NaN and infinity exactly where they are expected."""
    actual, expected = np.asarray(actual).astype(np.float64), np.asarray(expected)
    assert actual.shape == expected.shape
    special = ~np.isfinite(expected)
    np.testing.assert_array_equal(actual[special], expected[special])
    error = np.abs(np.where(special, 0.0, actual - np.where(special, 0.0, expected)))
    bound = np.where(special, 0.0, bound)
    worst = np.unravel_index(np.argmax(np.nan_to_num(error, nan=np.inf) - bound), error.shape) if error.size else ()
    assert (error <= bound).all(), (
        f"{np.count_nonzero(~(error <= bound))} of {error.size} elements are off; the worst at {worst}: "
        f"{actual[worst]} instead of {expected[worst]}, {error[worst]} > {bound[worst]}"
    )
