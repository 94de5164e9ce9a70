"""Multi-head latent attention: rows of V are the first channels of the rows of K, in the same memory.

Chosen: 576 and 512 channels, DeepSeek's latent row of 512 beside 64 that turn, with 1 to 128 query heads and several
new tokens; 512 and 512, where K is V; small pages and odd ones. Memory of no token is NaN.
"""

import numpy as np
import pytest

import kvit
from kvit import reference
from support import tolerances
from support.caches import BFLOAT16, FLOAT16, make_table, poisoned, to_device
from support.tolerances import assert_within

LATENT, TURNING = 512, 64
OF_BOXES = [("tma", 8), ("tma", 16), ("tma", 64), ("tma", 128)]  # pages of whole boxes: by warp groups


class Latent:
    """Rows of K, those of V within them, in the reference's words and on a device."""

    def __init__(self, rng, lengths, *, page_size=16, k_dim=LATENT + TURNING, dtype=BFLOAT16, device="host"):
        slots = [-(-length // page_size) for length in lengths]
        order = rng.permutation(sum(slots) + 2).astype(np.int32)
        pages = np.split(order[: sum(slots)], np.cumsum(slots)[:-1])
        self.device, self.dtype = device, dtype
        self.table, self.page_table = reference.Table(pages, lengths), make_table(pages, lengths, "dense", device)
        self.rows = poisoned((len(order), page_size, 1, k_dim), dtype)
        self.buffer = to_device(self.rows, device)
        self.cache = reference.Cache(self.rows, self.rows[..., :LATENT])
        self.view = kvit.CacheView(self.part(0, k_dim), self.part(0, LATENT))

    def part(self, begin, end):
        """Channels [begin, end) of all rows, in the buffer."""
        shape, strides = (*self.rows.shape[:-1], end - begin), self.rows.strides
        pointer = self.buffer.pointer + begin * self.rows.itemsize
        return kvit.Tensor.from_pointer(
            pointer, shape, self.buffer.dtype, self.device, strides=strides, owner=self.buffer
        )

    def fill(self, rng):
        k = rng.standard_normal((sum(self.table.lengths), 1, self.rows.shape[-1])).astype(self.dtype)
        reference.append(self.cache, self.table, k, k[..., :LATENT], self.table.lengths)
        self.buffer.copy_from(self.rows)

    def attend(self, q, counts, **options):
        op = kvit.Attention(self.view, q.shape[1], tokens_per_sequence=max(counts), **options)
        indptr = to_device(np.cumsum([0, *counts]).astype(np.int32), self.device)
        out = to_device(poisoned((*q.shape[:2], LATENT), self.dtype), self.device)
        lse = to_device(poisoned(q.shape[:2], np.dtype(np.float32)), self.device)
        op(to_device(q, self.device), self.view, self.page_table, query_indptr=indptr, out=out, lse=lse)
        op.check()
        return op, out.numpy(), lse.numpy()

    def assert_right(self, q, counts, **options):
        op, out, lse = self.attend(q, counts, **options)
        options.pop("kernel", None), options.pop("split_tokens", None)
        state = reference.paged_attention(q, self.cache, self.table, counts, **options)
        positive = reference.Cache(self.rows, np.abs(self.rows[..., :LATENT]))
        magnitude = reference.paged_attention(q, positive, self.table, counts, **options).out
        assert_within(out, state.out, tolerances.attention_bound(magnitude, q.dtype))
        assert_within(lse, state.lse, tolerances.LSE)
        return op


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16], ids=str)
@pytest.mark.parametrize("copies, page_size", [("cp_async", 1), ("cp_async", 5), ("cp_async", 64), *OF_BOXES])
@pytest.mark.parametrize("heads", [1, 16, 70])
def test_latent_rows(rng, device, heads, copies, page_size, dtype):
    case = Latent(rng, [70, 3, 0, 40], page_size=page_size, dtype=dtype, device=device)
    case.fill(rng)
    q = (rng.standard_normal((3, heads, 576)) / 4).astype(dtype)
    op = case.assert_right(q, [1, 1, 0, 1], kernel={"copies": copies})
    assert op.kernel.axes["head_dim"] == "576x512"


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("heads, counts", [(3, [30, 1, 0, 25]), (16, [5, 2, 5, 0]), (100, [1, 0, 2, 0])], ids=str)
def test_several_tokens_and_rows_that_end_anywhere(rng, device, heads, counts, causal):
    """Row tiles of many tokens, of parts of tokens, and some that are not full; tiles that some rows do not see."""
    case = Latent(rng, [100, 64, 128, 70], device=device)
    case.fill(rng)
    q = (rng.standard_normal((sum(counts), heads, 576)) / 4).astype(BFLOAT16)
    case.assert_right(q, counts, kernel={"copies": "tma"}, causal=causal)


@pytest.mark.parametrize("special", [np.nan, np.inf])
def test_what_is_hidden_or_infinite_reaches_only_who_sees_it(rng, device, special):
    """In channels of either warp group, in tokens that some rows of a tile see and others do not."""
    case = Latent(rng, [90], device=device)
    case.fill(rng)
    pages, places = case.table.places(case.cache, 0)
    for token, channel in ((70, 3), (70, 300), (85, 511), (89, 0)):
        case.rows[pages[token], places[token], 0, channel] = special
    case.buffer.copy_from(case.rows)
    q = np.zeros((30, 4, 576), BFLOAT16)  # every seen token weighs the same: what is infinite stays in its channel
    _, out, _ = case.attend(q, [30], kernel={"copies": "tma"})
    state = reference.paged_attention(q, case.cache, case.table, [30])
    np.testing.assert_array_equal(np.isfinite(out.astype(np.float64)), np.isfinite(state.out))
    finite = np.isfinite(state.out)
    assert_within(out.astype(np.float64)[finite], state.out[finite], 0.02)


def test_scores_that_rise_late_move_both_groups(rng, device):
    """The largest score in a token of either half of a tile, in one tile after another."""
    case = Latent(rng, [256], device=device)
    case.fill(rng)
    pages, places = case.table.places(case.cache, 0)
    for i, token in enumerate((3, 40, 70, 120, 130, 170, 200, 250)):
        case.rows[pages[token], places[token], 0, 512:] = 0.75 * i
    case.buffer.copy_from(case.rows)
    q = np.concatenate([np.zeros((1, 64, 512)), np.ones((1, 64, 64))], -1).astype(BFLOAT16)
    case.assert_right(q, [1], kernel={"copies": "tma"}, scale=1.0)


def test_many_row_tiles_on_few_ctas_are_joined(rng, device):
    case = Latent(rng, [300, 130, 64, 5], device=device)
    case.fill(rng)
    q = (rng.standard_normal((4, 70, 576)) / 4).astype(BFLOAT16)
    case.assert_right(q, [1, 1, 1, 1], kernel={"copies": "tma"})
    first, second = (case.attend(q, [1, 1, 1, 1], kernel={"copies": "tma"})[1].view(np.uint16) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_keys_that_are_values(rng, device):
    case = Latent(rng, [70, 33], k_dim=LATENT, device=device)
    case.fill(rng)
    assert case.view.shares_kv
    case.assert_right((rng.standard_normal((3, 64, 512)) / 4).astype(BFLOAT16), [1, 2], window=(40, None))


def test_latent_rows_with_options(rng, device):
    case = Latent(rng, [200, 33], device=device)
    case.fill(rng)
    q = (rng.standard_normal((5, 16, 576)) / 4).astype(BFLOAT16)
    case.assert_right(q, [4, 1], window=(128, None), softcap=20.0)


def test_splits_give_the_same_bits_twice(rng, device):
    case = Latent(rng, [400, 33], device=device)
    case.fill(rng)
    q = (rng.standard_normal((2, 32, 576)) / 4).astype(BFLOAT16)
    case.assert_right(q, [1, 1], split_tokens=128)
    first, second = (case.attend(q, [1, 1], split_tokens=128)[1].view(np.uint16) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_rows_are_appended_in_two_parts_and_turned_in_one_launch(rng, device):
    """K of the append is what turns, V the latent part: two views of the same rows."""
    lengths, counts = [37, 3, 20], [5, 3, 20]
    case = Latent(rng, lengths, device=device)
    latent, turning = (rng.standard_normal((sum(counts), 1, n)).astype(BFLOAT16) for n in (LATENT, TURNING))
    q = rng.standard_normal((sum(counts), 16, TURNING)).astype(BFLOAT16)
    rope = kvit.Rope(TURNING, base=10000.0, interleaved=True)
    parts = kvit.CacheView(case.part(LATENT, LATENT + TURNING), case.part(0, LATENT))
    op, queries = kvit.Append(parts, rope=rope), to_device(q, device)
    indptr = to_device(np.cumsum([0, *counts]).astype(np.int32), device)
    op(to_device(turning, device), to_device(latent, device), parts, case.page_table, q=queries, query_indptr=indptr)
    op.check()
    positions = [length - count + i for length, count in zip(lengths, counts, strict=True) for i in range(count)]
    rotation = reference.Rotation(rope.steps, rope.interleaved, rope.attention_factor, rope.axes)
    turned = reference.rotate(turning, positions, rotation)
    reference.append(case.cache, case.table, np.concatenate([latent, turned], -1), latent, counts)
    np.testing.assert_array_equal(case.buffer.numpy().view(np.uint16), case.rows.view(np.uint16))
    np.testing.assert_array_equal(
        queries.numpy().view(np.uint16), reference.rotate(q, positions, rotation).view(np.uint16)
    )


def test_rows_of_v_elsewhere_are_refused_with_the_reason(rng):
    k, v = (np.zeros((2, 16, 1, n), BFLOAT16) for n in (576, 512))
    with pytest.raises(kvit.LayoutError, match="the first channels of the rows of K"):
        kvit.Attention(kvit.CacheView(k, v), 16)


def test_an_operation_over_shared_rows_refuses_a_view_of_others(rng):
    case = Latent(rng, [20])
    case.fill(rng)
    op = kvit.Attention(case.view, 16)
    apart = kvit.CacheView(case.rows, case.rows[..., :LATENT].copy())
    with pytest.raises(kvit.LayoutError, match="the first channels of the rows of K"):
        op(to_device(np.zeros((1, 16, 576), BFLOAT16), "host"), apart, case.page_table)
