"""kvit.merge_state and kvit.merge_states: against the reference, and what they refuse."""

import ml_dtypes
import numpy as np
import pytest

import kvit
from kvit import reference
from support import tolerances
from support.caches import BFLOAT16, FLOAT16, make_case, make_table, on_gpu, poisoned, to_device, view_like
from support.tolerances import assert_within

FLOAT32 = np.dtype(np.float32)
DTYPES = [BFLOAT16, FLOAT16, FLOAT32]


def make_parts(rng, parts, shape, dtype):
    """outs [parts, *shape] and lses: of every part some rows are empty, by either infinity, and hold NaN."""
    outs = rng.standard_normal((parts, *shape)).astype(dtype)
    lses = (3 * rng.standard_normal(outs.shape[:3])).astype(np.float32)
    is_empty = rng.integers(4, size=lses.shape) == 0
    lses[is_empty], outs[is_empty] = rng.choice([-np.inf, np.inf], is_empty.sum()), np.nan
    return outs, lses


def expect(outs, lses, dtype):
    """What merging gives, and how far a result may lie from it."""
    read = np.where(np.isinf(lses)[..., None], 0, outs.astype(np.float64))
    return reference.merge_states(zip(outs, lses, strict=True)), tolerances.merge_bound(read, dtype)


def on_device(arrays, device):
    return [to_device(array, device) for array in arrays]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [64, 128, 34])  # 34: no power of two, and rows that end inside a vector
def test_merging_two_halves_of_the_keys_is_the_reference(rng, device, dtype, head_dim):
    padded = -(-head_dim // 8) * 8
    arrays = [rng.standard_normal((5, 6, padded)).astype(dtype) for _ in range(2)]
    lses = [rng.standard_normal((5, 6)).astype(np.float32) * 3 for _ in range(2)]
    lses[0][0], lses[1][1], lses[0][2], lses[1][2] = [-np.inf] * 4  # the first empty, the second, both
    arrays[0][0], arrays[1][1], arrays[0][2], arrays[1][2] = [np.nan] * 4  # what nobody may read
    parts = [view_like(to_device(array, device), array, array[..., :head_dim]) for array in arrays]
    out, lse = kvit.merge_state(parts[0], to_device(lses[0], device), parts[1], to_device(lses[1], device))
    a, b = ((array[..., :head_dim], side) for array, side in zip(arrays, lses, strict=True))
    state = reference.merge_state(a, b)
    largest = tolerances.merge_bound([np.where(np.isneginf(side)[..., None], 0, x) for x, side in (a, b)], dtype)
    assert_within(out.numpy(), state.out, largest)
    assert_within(lse.numpy(), state.lse, tolerances.LSE)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_lse_of_plus_infinity_is_that_of_no_keys(rng, device, dtype):
    # Rows: the first side empty, the second, both, one by either infinity, none. What an empty side holds is not read.
    arrays = [rng.standard_normal((5, 2, 64)).astype(dtype) for _ in range(2)]
    lses = [np.zeros((5, 2), np.float32) for _ in range(2)]
    lses[0][:4, :], lses[1][1:4, :] = [[np.inf], [0], [np.inf], [np.inf]], [[np.inf], [np.inf], [-np.inf]]
    for array, lse in zip(arrays, lses, strict=True):
        array[np.isinf(lse)] = np.nan
    parts = [to_device(array, device) for pair in zip(arrays, lses, strict=True) for array in pair]
    out, lse = kvit.merge_state(*parts)
    state = reference.merge_state(*zip(arrays, lses, strict=True))
    found = out.numpy().astype(np.float32)
    np.testing.assert_array_equal(found[:2], np.stack([arrays[1][0], arrays[0][1]]).astype(np.float32))
    assert (found[2:4] == 0).all() and np.isneginf(lse.numpy()[2:4]).all()
    assert_within(lse.numpy(), state.lse, tolerances.LSE)
    assert_within(found[4], state.out[4], tolerances.merge_bound((arrays[0][4], arrays[1][4]), dtype))


@pytest.mark.parametrize("parts", [1, 2, 3, 4, 5, 16, 17, 40])  # around four at once, and sixteen a launch
@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT32], ids=str)
def test_any_number_of_parts_is_the_reference(rng, device, parts, dtype):
    outs, lses = make_parts(rng, parts, (3, 5, 64), dtype)
    state, bound = expect(outs, lses, dtype)
    for merged in (
        kvit.merge_states(on_device(outs, device), on_device(lses, device)),
        kvit.merge_states(to_device(outs, device), to_device(lses, device)),
    ):
        assert_within(merged[0].numpy(), state.out, bound)
        assert_within(merged[1].numpy(), state.lse, tolerances.LSE)


def test_a_list_of_parts_and_stacked_parts_give_the_same_bits(rng, device):
    outs, lses = make_parts(rng, 16, (3, 5, 64), FLOAT16)
    listed = kvit.merge_states(on_device(outs, device), on_device(lses, device))
    stacked = kvit.merge_states(to_device(outs, device), to_device(lses, device))
    for a, b in zip(listed, stacked, strict=True):
        np.testing.assert_array_equal(a.numpy().view(np.uint8), b.numpy().view(np.uint8))


@pytest.mark.parametrize(("dtype", "into"), [(FLOAT32, FLOAT16), (FLOAT32, BFLOAT16), (FLOAT16, FLOAT32)], ids=str)
@pytest.mark.parametrize("parts", [3, 18])
def test_the_result_may_have_another_type_than_the_parts(rng, device, dtype, into, parts):
    outs, lses = make_parts(rng, parts, (3, 5, 34), dtype)
    out = to_device(poisoned((3, 5, 34), into), device)
    state, bound = expect(outs, lses, into)
    kvit.merge_states(on_device(outs, device), on_device(lses, device), out=out)
    assert_within(out.numpy(), state.out, bound)


def test_sums_are_rounded_once(device):
    # Equal weights. Merged one after the other into bfloat16, whose numbers here lie 2**-7 apart, every step gives 1.
    outs = np.array([1 + 2**-7, 1, 1 + 2**-7, 1 + 2**-7], BFLOAT16)[:, None, None, None].repeat(64, axis=3)
    out, _ = kvit.merge_states(to_device(outs, device), to_device(np.zeros((4, 1, 1), np.float32), device))
    assert (out.numpy().astype(np.float32) == 1 + 2**-7).all()  # of 1 + 0.75 * 2**-7, which lies between the two


def test_a_nan_among_the_lses_makes_its_row_nan_alone(rng, device):
    outs, lses = rng.standard_normal((3, 2, 4, 64)).astype(FLOAT16), np.zeros((3, 2, 4), np.float32)
    lses[1, 0, 2] = np.nan
    out, lse = (x.numpy() for x in kvit.merge_states(to_device(outs, device), to_device(lses, device)))
    assert np.isnan(out[0, 2]).all() and np.isnan(lse[0, 2])
    assert np.isnan(lse).sum() == 1 and np.isnan(out).sum() == 64


def test_what_was_given_is_returned(rng, device):
    outs, lses = make_parts(rng, 2, (3, 5, 64), FLOAT16)
    out, lse = np.empty((3, 5, 64), FLOAT16), np.empty((3, 5), np.float32)
    if device != "host":
        out, lse = to_device(out, device), to_device(lse, device)
    found = kvit.merge_states(on_device(outs, device), on_device(lses, device), out=out, lse=lse)
    assert found[0] is out and found[1] is lse


def test_no_tokens_are_merged_into_none():
    out, lse = kvit.merge_states([np.empty((0, 4, 64), FLOAT16)] * 2, [np.empty((0, 4), np.float32)] * 2)
    assert out.shape == (0, 4, 64) and lse.shape == (0, 4)


def test_attention_over_two_halves_of_a_cache_merges_into_attention_over_all(rng, device):
    case = make_case(rng, [96], page_size=16, device=device)
    q = case.queries(rng, 1, 8)
    pages = case.table.pages[0]
    states = []
    for part in (pages[:2], pages[2:]):
        table = make_table([part], [len(part) * 16], "dense", device)
        lse = kvit.Buffer.empty((1, 8), "float32", device)
        states += [kvit.Attention(case.view, 8)(to_device(q, device), case.view, table, lse=lse), lse]
    out, lse = kvit.merge_state(*states)
    state, bound = case.expect(q)
    assert_within(out.numpy(), state.out, 2 * bound)  # rounded to the dtype twice: by the halves, and by the merge
    assert_within(lse.numpy(), state.lse, tolerances.LSE)


def test_merge_refuses_rows_of_half_words():
    out, lse = poisoned((2, 4, 33), BFLOAT16), np.zeros((2, 4), np.float32)
    with pytest.raises(kvit.ShapeError, match="head_dim 33; bfloat16 needs an even one"):
        kvit.merge_state(out, lse, out, lse)
    with pytest.raises(kvit.ShapeError, match="out has head_dim 33; float16 needs an even one"):
        kvit.merge_state(*[out.astype(np.float32), lse] * 2, out=out.astype(FLOAT16))


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
            kvit.merge_state(*arguments, out=target)
    assert (target.view(np.uint16) == 0xFFFF).all()


def test_merge_refuses_lists_that_do_not_fit():
    out, lse = poisoned((2, 4, 64), FLOAT16), np.zeros((2, 4), np.float32)
    for error, match, arguments in [
        (kvit.ShapeError, "there are 0 outs and 0 lses", ([], [])),
        (kvit.ShapeError, "there are 2 outs and 1 lses", ([out, out], [lse])),
        (kvit.ShapeError, "outs is a list and lses a ndarray", ([out], lse[None])),
        (kvit.ShapeError, r"outs\[1\] has shape", ([out, out[:1]], [lse, lse])),
        (kvit.ShapeError, "lses has shape", (out[None], lse[None, :1])),
        (kvit.ShapeError, "no parts", (np.empty((0, 2, 4, 64), FLOAT16), np.empty((0, 2, 4), np.float32))),
        (kvit.DtypeError, r"lses\[0\] is float64", ([out], [lse.astype(np.float64)])),
    ]:
        with pytest.raises(error, match=match):
            kvit.merge_states(*arguments)


def test_merge_of_a_dtype_that_was_not_built_says_which_were():
    out, lse = poisoned((2, 4, 64), np.dtype(ml_dtypes.float8_e4m3fn)), np.zeros((2, 4), np.float32)
    with pytest.raises(kvit.KernelMissing, match="dtype=f8e4m3fn|dtype=f8e4m3.*f16, bf16, f32"):
        kvit.merge_state(out, lse, out, lse)
    with pytest.raises(kvit.KernelMissing, match="dtype=f16 out=bf16"):
        kvit.merge_state(*[poisoned((2, 4, 64), FLOAT16), lse] * 2, out=poisoned((2, 4, 64), BFLOAT16))
