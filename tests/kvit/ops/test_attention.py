"""kvit.Attention on raw buffers: against the reference, and what they refuse."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kvit
from kvit import reference
from support import tolerances
from support.caches import BFLOAT16, FLOAT16, make_case, poisoned, to_device, view_like
from support.tolerances import assert_within


def attend(case, q, counts=None, **options):
    """(out, lse) of one call in numpy. `counts`: ragged, through an indptr; None: equally many."""
    op = kvit.Attention(case.view, q.shape[1], **options)
    out = to_device(poisoned(q.shape, q.dtype), case.device)
    lse = to_device(poisoned(q.shape[:2], np.dtype(np.float32)), case.device)
    indptr = None if counts is None else to_device(np.cumsum([0, *counts]).astype(np.int32), case.device)
    result = op(to_device(q, case.device), case.view, case.page_table, out=out, lse=lse, query_indptr=indptr)
    assert result is out
    op.check()
    return out.numpy(), lse.numpy()


def assert_attention(case, q, counts=None, **options):
    """One call gives what the reference gives, and leaves the cache as it was."""
    before = case.pools_on_device()
    out, lse = attend(case, q, counts, **options)
    each = len(q) // max(1, len(case.table.lengths))
    state, bound = case.expect(q, [each] * len(case.table.lengths) if counts is None else counts, **options)
    assert_within(out, state.out, bound)
    assert_within(lse, state.lse, tolerances.LSE)
    for pool, old in zip(case.pools_on_device(), before, strict=True):
        np.testing.assert_array_equal(pool, old)


# 100 tokens cross a tile of 64; 64 ends with one; 1 is the least; 0 is nothing; 257 needs several tiles and their
# split.
LENGTHS = [100, 64, 1, 0, 257]


@pytest.mark.parametrize("group", [1, 3, 8, 12])  # below, at and above the rows of the smallest kernel; 3 divides none
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16], ids=str)
def test_decode_is_the_reference(rng, device, dtype, head_dim, group):
    case = make_case(rng, LENGTHS, head_dim=head_dim, dtype=dtype, device=device)
    assert_attention(case, case.queries(rng, len(LENGTHS), 2 * group))


@pytest.mark.parametrize(
    "page_size", [1, 5, 16, 64, 100]
)  # pages smaller than a warp's tokens, odd, a tile, across tiles
@pytest.mark.parametrize("table", ["dense", "ragged"])
@pytest.mark.parametrize(
    ("layout", "storage"), [("NHD", "pools"), ("HND", "pools"), ("NHD", "halves"), ("HND", "halves"), ("NHD", "padded")]
)
def test_any_page_size_layout_and_table_give_the_same(rng, device, layout, storage, table, page_size):
    case = make_case(rng, [70, 0, 33], page_size=page_size, layout=layout, storage=storage, table=table, device=device)
    assert_attention(case, case.queries(rng, 3, 8))


@pytest.mark.parametrize("causal", [True, False])
def test_several_new_tokens_see_each_other_only_if_they_may(rng, device, causal):
    case = make_case(rng, [70, 5, 64], device=device)
    assert_attention(case, case.queries(rng, 3 * 5, 8), causal=causal)  # the second sequence is all new


@pytest.mark.parametrize("kv_heads", [1, 2, 3, 4, 6, 8, 12])
def test_heads_are_dealt_out_to_partitions_of_the_grid(rng, device, kv_heads):
    # More heads than partitions, as many, and one partition where grid and heads have no common divisor; fewer tiles on
    # a partition than it has CTAs (the last batch), and heads that several CTAs share (the first).
    for lengths in ([700, 0, 130], [1]):
        case = make_case(rng, lengths, kv_heads=kv_heads, device=device)
        q = case.queries(rng, len(lengths), 2 * kv_heads)
        assert_attention(case, q)
        op = kvit.Attention(case.view, 2 * kv_heads)
        partitions = math.gcd(op.grid, kv_heads)
        shares = f"{kv_heads // partitions} of {kv_heads} KV heads on {op.grid // partitions} of the CTAs"
        assert f"partitions {partitions}, each of {shares}" in op.explain()


def test_sequences_may_have_different_numbers_of_new_tokens(rng, device):
    counts = [3, 0, 100, 1]  # of which the third has more rows than one row tile of any kernel
    case = make_case(rng, [70, 20, 100, 1], device=device)
    assert_attention(case, case.queries(rng, sum(counts), 4), counts)


def test_queries_before_the_first_key_give_zeros(rng, device):
    case = make_case(rng, [2, 0], device=device)
    q = case.queries(rng, 2 * 4, 4)
    assert_attention(case, q)  # four queries of a sequence of two tokens: the first two see nothing
    out, lse = attend(case, q)
    assert not out[:2].any() and np.isneginf(lse[:2]).all()
    assert not out[4:].any() and np.isneginf(lse[4:]).all()


def test_the_scale_is_the_caller_s(rng, device):
    case = make_case(rng, [40], device=device)
    assert_attention(case, case.queries(rng, 1, 4), scale=0.7)


def test_scores_far_apart_neither_overflow_nor_vanish(rng, device):
    case = make_case(rng, [130], device=device)
    q = case.queries(rng, 1, 4)
    out, lse = attend(case, q, scale=50.0)  # scores of a few thousand: exp of them is no float
    state, bound = case.expect(q, scale=50.0)
    assert_within(out, state.out, bound * 4)  # float32 scores of 2**11 are off by 2**-12, their weights by as much
    assert_within(lse, state.lse, 2**-8)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 150), min_size=1, max_size=5),
    page_size=st.integers(1, 70),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 20),
    layout=st.sampled_from(["NHD", "HND"]),
    table=st.sampled_from(["dense", "ragged"]),
    causal=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
def test_any_shape_is_the_reference(lengths, page_size, kv_heads, group, layout, table, causal, seed, data):
    rng = np.random.default_rng(seed)
    case = make_case(rng, lengths, page_size=page_size, kv_heads=kv_heads, layout=layout, table=table)
    counts = [data.draw(st.integers(0, 6)) for _ in lengths]
    assert_attention(case, case.queries(rng, sum(counts), kv_heads * group), counts, causal=causal)


def test_rows_of_q_out_and_lse_may_lie_anywhere(rng, device):
    case = make_case(rng, [40, 9], device=device)
    wide = poisoned((2, 8 + 3, 64 + 16), BFLOAT16)
    wide[:, 1:9, 8:72] = case.queries(rng, 2, 8)
    q_base = to_device(wide, device)
    out_base, lse_base = (
        to_device(poisoned(wide.shape, BFLOAT16), device),
        to_device(np.zeros((8, 7), np.float32), device),
    )
    q = view_like(q_base, wide, wide[:, 1:9, 8:72])
    out = view_like(out_base, wide, wide[:, 1:9, 8:72])
    lse = kvit.Tensor.from_pointer(lse_base.pointer + 8, (2, 8), "float32", device, strides=(4, 28), owner=lse_base)
    kvit.Attention(case.view, 8)(q, case.view, case.page_table, out=out, lse=lse)
    state, bound = case.expect(wide[:, 1:9, 8:72])
    written = out_base.numpy()
    assert_within(written[:, 1:9, 8:72], state.out, bound)
    assert_within(lse_base.numpy()[:, 2:4].T, state.lse, tolerances.LSE)
    written[:, 1:9, 8:72] = poisoned((2, 8, 64), BFLOAT16)
    np.testing.assert_array_equal(written.view(np.uint16), 0xFFFF)


def test_the_same_inputs_give_the_same_bits_wherever_the_pages_are(rng, device):
    lengths, page_size = [300, 17], 16
    case = make_case(rng, lengths, page_size=page_size, device=device)
    q = case.queries(rng, 2, 8)
    out, lse = attend(case, q)
    again, _ = attend(case, q)
    np.testing.assert_array_equal(out, again)
    moved = make_case(np.random.default_rng(1), lengths, page_size=page_size, device=device, spare_pages=9)
    k, v, _ = reference.gather(case.cache, case.table)
    reference.append(moved.cache, moved.table, k, v, lengths)
    for buffer, array in zip(moved.buffers, (moved.cache.k, moved.cache.v), strict=True):
        buffer.copy_from(array)
    there, lse_there = attend(moved, q)
    np.testing.assert_array_equal(out, there)
    np.testing.assert_array_equal(lse, lse_there)


def test_one_operation_serves_views_of_other_pages_and_lengths(rng, device):
    first, second = (
        make_case(rng, [30], device=device),
        make_case(rng, [200, 3], page_size=5, layout="NHD", device=device),
    )
    op = kvit.Attention(first.view, 4, kernel={"copies": "cp_async"})  # which serve pages of any size
    for case in (first, second):
        q = case.queries(rng, len(case.table.lengths), 4)
        state, bound = case.expect(q)
        assert_within(op(to_device(q, device), case.view, case.page_table).numpy(), state.out, bound)


def test_an_empty_call_launches_nothing(rng, device):
    case = make_case(rng, [], device=device)
    out = kvit.Attention(case.view, 4)(to_device(case.queries(rng, 0, 4), device), case.view, case.page_table)
    assert out.shape == (0, 4, 64)


def test_the_workspace_is_exactly_what_it_says_and_does_not_grow_with_the_batch(rng, device):
    case = make_case(rng, [20], device=device)
    op = kvit.Attention(case.view, 8)
    rows = op.kernel.axes["rows"]
    assert op.workspace_bytes == op.workspace.nbytes == 256 + op.grid * 2 * rows * (64 + 2) * 4


def test_a_workspace_may_be_shared_by_operations_of_the_same_kernel(rng, device):
    case = make_case(rng, [200, 70], device=device)
    first = kvit.Attention(case.view, 8)
    second = kvit.Attention(case.view, 8, causal=False, workspace=first.workspace)
    q = case.queries(rng, 2, 8)
    for op in (first, second, first):
        state, bound = case.expect(q)  # one query each: causal or not is the same
        assert_within(op(to_device(q, device), case.view, case.page_table).numpy(), state.out, bound)
    with pytest.raises(kvit.ShapeError, match=f"workspace has 64 bytes.*needs {first.workspace_bytes}"):
        kvit.Attention(case.view, 8, workspace=kvit.Buffer.empty(64, "uint8", device))


def test_the_kernel_is_the_one_that_wastes_least(rng):
    view = make_case(rng, [4]).view
    rows = {(heads, each): kvit.Attention(view, heads, tokens_per_sequence=each).kernel.axes["rows"] for heads, each in
            [(8, 1), (16, 1), (18, 1), (8, 2), (8, 3), (64, 1)]}  # fmt: skip
    assert rows == {(8, 1): 8, (16, 1): 8, (18, 1): 16, (8, 2): 8, (8, 3): 16, (64, 1): 16}


def test_a_kernel_may_be_asked_for_by_name_or_by_its_axes(rng, device):
    case = make_case(rng, [70, 33], device=device)
    q = case.queries(rng, 2, 8)
    taller = kvit.Attention(case.view, 8, kernel={"rows": 16})
    assert taller.kernel.axes["rows"] == 16 != kvit.Attention(case.view, 8).kernel.axes["rows"]
    assert kvit.Attention(case.view, 8, kernel=taller.kernel.symbol).kernel is taller.kernel
    state, bound = case.expect(q)
    assert_within(taller(to_device(q, device), case.view, case.page_table).numpy(), state.out, bound)
    with pytest.raises(kvit.KernelMissing, match=f"kernel='fastest'.*choose from.*{taller.kernel.symbol}"):
        kvit.Attention(case.view, 8, kernel="fastest")


def test_strides_that_nobody_takes_do_not_limit_the_choice():
    memory = kvit.Buffer.empty(1 << 16, "uint8", "host")

    def multiple(shape, strides):
        pool = kvit.Tensor.from_pointer(memory.pointer, shape, "bfloat16", "host", strides=strides, owner=memory)
        return kvit.Attention(kvit.CacheView(pool, pool), 4).plan.choice.call.stride_multiple

    assert multiple((4, 8, 2, 64), (2304, 288, 144, 2)) == 144  # rows of 72 channels, of which 64 are read
    assert multiple((1, 8, 2, 64), (7, 256, 128, 2)) == 128  # there is one page, and no way to the next
    assert multiple((1, 1, 1, 64), (7, 5, 3, 2)) % 16 == 0
