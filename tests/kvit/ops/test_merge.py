"""kvit.merge_states: against the reference, and what it refuses."""

import ml_dtypes
import numpy as np
import pytest

import kvit
from kvit import reference
from support import tolerances
from support.caches import BFLOAT16, FLOAT16, make_case, make_table, on_gpu, poisoned, to_device, view_like
from support.tolerances import assert_within


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16, np.dtype(np.float32)], ids=str)
@pytest.mark.parametrize("head_dim", [64, 128, 34])  # 34: no power of two, and rows that end inside a vector
def test_merging_two_halves_of_the_keys_is_the_reference(rng, device, dtype, head_dim):
    padded = -(-head_dim // 8) * 8
    arrays = [rng.standard_normal((5, 6, padded)).astype(dtype) for _ in range(2)]
    lses = [rng.standard_normal((5, 6)).astype(np.float32) * 3 for _ in range(2)]
    lses[0][0], lses[1][1], lses[0][2], lses[1][2] = [-np.inf] * 4  # the first empty, the second, both
    arrays[0][0], arrays[1][1], arrays[0][2], arrays[1][2] = [np.nan] * 4  # what nobody may read
    parts = [view_like(to_device(array, device), array, array[..., :head_dim]) for array in arrays]
    out, lse = kvit.merge_states(parts[0], to_device(lses[0], device), parts[1], to_device(lses[1], device))
    a, b = ((array[..., :head_dim], side) for array, side in zip(arrays, lses, strict=True))
    state = reference.merge_states(a, b)
    largest = tolerances.merge_bound(*(np.where(np.isneginf(side)[..., None], 0, x) for x, side in (a, b)), dtype)
    assert_within(out.numpy(), state.out, largest)
    assert_within(lse.numpy(), state.lse, tolerances.LSE)


def test_attention_over_two_halves_of_a_cache_merges_into_attention_over_all(rng, device):
    case = make_case(rng, [96], page_size=16, device=device)
    q = case.queries(rng, 1, 8)
    pages = case.table.pages[0]
    states = []
    for part in (pages[:2], pages[2:]):
        table = make_table([part], [len(part) * 16], "dense", device)
        lse = kvit.Buffer.empty((1, 8), "float32", device)
        states += [kvit.Attention(case.view, 8)(to_device(q, device), case.view, table, lse=lse), lse]
    out, lse = kvit.merge_states(*states)
    state, bound = case.expect(q)
    assert_within(out.numpy(), state.out, 2 * bound)  # rounded to the dtype twice: by the halves, and by the merge
    assert_within(lse.numpy(), state.lse, tolerances.LSE)


def test_merge_refuses_rows_of_half_words():
    out, lse = poisoned((2, 4, 33), BFLOAT16), np.zeros((2, 4), np.float32)
    with pytest.raises(kvit.ShapeError, match="head_dim 33; bfloat16 needs an even one"):
        kvit.merge_states(out, lse, out, lse)


def test_merge_refuses_states_that_do_not_fit():
    out, lse = poisoned((2, 4, 64), BFLOAT16), np.zeros((2, 4), np.float32)
    target = poisoned((2, 4, 64), BFLOAT16)
    for error, match, arguments in [
        (kvit.ShapeError, "out_b has shape", (out, lse, out[:, :2], lse)),
        (kvit.ShapeError, "lse_b has shape", (out, lse, out, lse[:1])),
        (kvit.DtypeError, "out_b is float16; it must be bfloat16", (out, lse, out.astype(np.float16), lse)),
        (kvit.DtypeError, "lse_a is float64", (out, lse.astype(np.float64), out, lse)),
        (kvit.DeviceError, "lse_b is on cuda:0", (out, lse, out, on_gpu((2, 4), "float32"))),
    ]:
        with pytest.raises(error, match=match):
            kvit.merge_states(*arguments, out=target)
    assert (target.view(np.uint16) == 0xFFFF).all()


def test_merge_of_a_dtype_that_was_not_built_says_which_were():
    out, lse = poisoned((2, 4, 64), np.dtype(ml_dtypes.float8_e4m3fn)), np.zeros((2, 4), np.float32)
    with pytest.raises(kvit.KernelMissing, match="dtype=f8e4m3fn|dtype=f8e4m3.*f16, bf16, f32"):
        kvit.merge_states(out, lse, out, lse)
