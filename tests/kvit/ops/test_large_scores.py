"""Scores far beyond those of any model: right up to a limit, NaN from there on, and never a number that is wrong."""

import numpy as np
import pytest

import kvit
from kvit import reference
from kvit.selection import registry
from support import tolerances
from support.built import is_built
from support.caches import BFLOAT16, FLOAT16, make_case, to_device
from support.tolerances import assert_within

LIMIT = 2.0**28 / np.log2(np.e)  # docs/attention.md
CHANNELS = 64
KERNELS = [
    entry.symbol.removeprefix("kvit_")
    for family in ("decode", "prefill")
    for entry in registry.candidates(family, dtype="f16", kv="b16", head_dim=CHANNELS)
]
EVERY_KERNEL = pytest.mark.parametrize("kernel", KERNELS)
# Of keys and queries: all scores of a row are value^2 * 64 / 8. The last of 200 keys may have another.
BELOW = [1000.0, 4500.0]  # 8e6, 1.6e8
BEYOND = [5000.0, 10000.0, 20000.0, 60000.0]


def attend(rng, device, dtype, kernel, value, last=None, new_tokens=1, scale=None):
    """(out, lse, the reference's): of a sequence beside one of everyday numbers."""
    case = make_case(rng, [200, 30], dtype=dtype, device=device)
    k, v = rng.standard_normal((2, 230, 2, CHANNELS)).astype(dtype)
    k[:200] = value
    k[199] = value if last is None else last
    v[:200] = np.clip(v[:200], -1, 1)
    reference.append(case.cache, case.table, k, v, [200, 30])
    for buffer, array in zip(case.buffers, (case.cache.k, case.cache.v), strict=True):
        buffer.copy_from(array)
    counts = [new_tokens, 1]
    q = rng.standard_normal((new_tokens + 1, 8, CHANNELS)).astype(dtype)
    q[:new_tokens] = abs(value)
    symbol = f"kvit_{kernel}".replace("f16", "bf16" if dtype is BFLOAT16 else "f16")
    if not any(entry.symbol == symbol and is_built(entry, device) for entry in registry.all()):
        pytest.skip(f"needs {symbol} for this GPU: KVIT_ARCHS and KVIT_KERNELS say what is built")
    op = kvit.Attention(case.view, 8, kernel=symbol, scale=scale)
    lse = to_device(np.zeros(q.shape[:2], np.float32), device)
    indptr = to_device(np.cumsum([0, *counts]).astype(np.int32), device)
    out = op(to_device(q, device), case.view, case.page_table, lse=lse, query_indptr=indptr).numpy()
    op.check()
    state, bound = case.expect(q, counts, scale=scale)
    return out, lse.numpy(), state, bound


def assert_others_are_right(out, lse, state, bound, first):
    assert_within(out[first:], state.out[first:], bound[first:])
    assert_within(lse[first:], state.lse[first:], tolerances.LSE)


@EVERY_KERNEL
@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16], ids=str)
@pytest.mark.parametrize("value", BELOW)
def test_below_the_limit_equal_scores_weigh_the_same(rng, device, dtype, kernel, value):
    out, lse, state, bound = attend(rng, device, dtype, kernel, value)
    assert np.abs(state.lse[0]).max() < LIMIT
    assert_within(lse[:1], state.lse[:1], np.abs(state.lse[:1]) * 2.0**-20)
    if kernel.startswith("prefill"):
        # The first tile's scores are rounded before their base is known, and a float32 of that size is off by up to 8:
        # so the mean is one of other weights.
        assert (np.abs(out[:1]).astype(np.float64) < 1).all()
        assert_others_are_right(out, lse, state, bound, 1)
    else:  # all weights are off by one factor, up to 2^8, which costs no digits
        assert_within(out, state.out, bound)


@EVERY_KERNEL
@pytest.mark.parametrize("value", BELOW)
def test_below_the_limit_the_largest_score_takes_all(rng, device, kernel, value):
    out, _, state, bound = attend(rng, device, FLOAT16, kernel, value / 2, value)
    assert_within(out, state.out, bound)


@EVERY_KERNEL
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("value", BEYOND)
def test_beyond_the_limit_rows_are_nan_and_others_are_right(rng, device, kernel, value, sign):
    out, lse, state, bound = attend(rng, device, FLOAT16, kernel, sign * value, new_tokens=3)
    assert (np.abs(state.lse[:3]) >= LIMIT).all()
    assert np.isnan(out[:3]).all() and np.isnan(lse[:3]).all()
    assert_others_are_right(out, lse, state, bound, 3)


@EVERY_KERNEL
@pytest.mark.parametrize("scale", [1e30, -1e30, 1e34, -1e34])
def test_scores_near_the_ends_of_float32_are_not_taken_for_no_keys(rng, device, kernel, scale):
    out, lse, *_ = attend(rng, device, FLOAT16, kernel, 10.0, scale=scale)
    assert np.isnan(out[:1]).all() and np.isnan(lse[:1]).all()
