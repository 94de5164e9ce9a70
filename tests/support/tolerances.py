"""How far a kernel's result may lie from the reference: `kvit selfcheck` and the tests hold it to the same bounds."""

from __future__ import annotations

import numpy as np

from kvit._cli.compare import CODED_SCORE_BOUND as SCORE_QUANTISED
from kvit._cli.compare import LSE_BOUND as LSE
from kvit._cli.compare import attention_bound, merge_bound

__all__ = ["LSE", "SCORE_QUANTISED", "assert_within", "attention_bound", "merge_bound"]


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
