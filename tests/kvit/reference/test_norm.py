"""kvit.reference.norm: RMSNorm as its definition has it, whatever the order of its sums."""

import numpy as np
import pytest

from kvit import reference
from support.caches import BFLOAT16


@pytest.mark.parametrize("head_dim, rotary_dim", [(64, 0), (64, 64), (128, 48), (256, 256)])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_rows_are_normalised_as_in_float64(rng, offset, head_dim, rotary_dim):
    rows = (rng.standard_normal((20, 3, head_dim)) * np.exp(rng.uniform(-5, 5, (20, 3, 1)))).astype(np.float32)
    weight = rng.standard_normal(head_dim).astype(BFLOAT16)
    found = reference.normalise(rows, reference.RowNorm(weight, 1e-5, offset), rotary_dim)
    exact = rows.astype(np.float64)
    exact /= np.sqrt((exact**2).mean(-1, keepdims=True) + 1e-5)
    exact *= offset + weight.astype(np.float64)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, exact, rtol=4e-6, atol=1e-30)  # some roundings of 2^-24, and those of the sum


def test_every_channel_counts_once_in_any_order(rng):
    # One channel at a time: if a vec8 were left out or counted twice, its row would be wrong by a factor.
    rows = np.eye(128, dtype=np.float32) * 2
    norm = reference.RowNorm(np.ones(128, np.float32), 1e-12)
    for rotary_dim in (0, 16, 48, 112, 128):
        found = reference.normalise(rows, norm, rotary_dim)
        np.testing.assert_allclose(np.diag(found), np.sqrt(128), rtol=1e-6)
