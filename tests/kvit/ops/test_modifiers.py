"""Windows, chunks, spans, trees, softcap, sinks, ALiBi and temperature: each alone against the reference, and what is
equal bit for bit. tests/kvit/ops/test_modifiers_together.py combines them."""

import numpy as np
import pytest

import kvit
from support.built import need_copies
from support.caches import BFLOAT16, FLOAT16, make_case, to_device
from support.modified import assert_modified, attend, beyond, branches, on_device, poison_unseen, spans_of
from support.modified import assert_same_bits as assert_same

# Of one token and of several tiles; as many new tokens as keys; a length at which windows end with a tile (of 128).
LENGTHS, COUNTS = [300, 1, 7, 257, 40], [1, 1, 7, 12, 0]
HEADS = 4


@pytest.fixture
def case(rng, device):
    return make_case(rng, LENGTHS, device=device)


@pytest.fixture
def q(rng, case):
    return case.queries(rng, sum(COUNTS), HEADS)


# One key; less than a lane's, a warp's and a CTA's tokens; the ends of tiles and next to them; all keys and more.
@pytest.mark.parametrize("window", [1, 2, 9, 32, 33, 100, 128, 129, 256, 257, 1000])
@pytest.mark.parametrize("rows", [8, 16])
def test_a_window_shows_the_last_keys_alone(case, q, window, rows):
    hidden = poison_unseen(case, COUNTS, window=window)
    assert (hidden > LENGTHS[4]) == (window < 300)  # besides those of the sequence without queries
    assert_modified(case, q, COUNTS, {"rows": rows}, window=window)


@pytest.mark.parametrize("window", [(5, 1), (5, 3), (None, 2), (200, 7), (1, 1)])
def test_a_window_has_two_sides_where_queries_are_not_causal(case, q, window):
    poison_unseen(case, COUNTS, window=window, causal=False)
    assert_modified(case, q, COUNTS, window=window, causal=False)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("chunk", [1, 5, 64, 128, 250, 256, 1000])  # 256: a chunk begins between the new tokens of 257
def test_a_query_sees_its_own_chunk(case, q, chunk, causal):
    poison_unseen(case, COUNTS, chunk=chunk, causal=causal)
    assert_modified(case, q, COUNTS, chunk=chunk, causal=causal)


@pytest.mark.parametrize("window", [None, 3, 64])
def test_a_span_shows_its_keys_to_its_queries(case, q, window):
    # An image within the new tokens; one that began before them, further back than a window; one of a whole sequence.
    spans = spans_of(LENGTHS, COUNTS, (2, 0, 7), (3, 100, 249), (3, 250, 255))
    poison_unseen(case, COUNTS, spans=spans, window=window)
    out, _ = assert_modified(case, q, COUNTS, spans=spans, window=window)
    without, _ = attend(case, q, COUNTS, window=window)
    assert not (out[2] == without[2]).all()


def test_spans_that_no_position_lies_in_change_nothing(case, q):
    # Before the sequence, behind the query, empty, the wrong way round, and beyond all keys.
    wild = np.array([[-5, 0], [-(2**31), 0], [3, 3], [2**31 - 1, 5], [2**30, 2**31 - 1]], np.int32)
    spans = np.resize(wild, (sum(COUNTS), 2))
    assert_same(attend(case, q, COUNTS, spans=spans), attend(case, q, COUNTS, kernel={"variant": "general"}))


@pytest.mark.parametrize("words", [1, 2])
@pytest.mark.parametrize("window", [None, 1, 2, 5])  # a window counts along the branch
def test_a_tree_shows_a_query_its_branch(rng, case, q, words, window):
    tree = np.concatenate([branches(rng, count, words) for count in COUNTS])
    poison_unseen(case, COUNTS, tree=tree, window=window)
    assert_modified(case, q, COUNTS, tree=tree, window=window)


@pytest.mark.parametrize("words", [1, 2])
def test_bits_of_no_new_token_say_nothing(rng, case, q, words):
    # Positions count the bits of a query: a window, slopes and temperatures would see those of no token.
    tree = np.concatenate([branches(rng, count, words) for count in COUNTS])
    options = {"window": 5, "alibi": [0.5, 0.25, 1.0, 2.0], "temperature": [*np.linspace(0.5, 1.5, 200)]}
    full = beyond(tree, COUNTS)
    assert (full != tree).any(1).all()
    assert_same(attend(case, q, COUNTS, tree=full, **options), attend(case, q, COUNTS, tree=tree, **options))
    assert_modified(case, q, COUNTS, tree=full, **options)


def test_siblings_do_not_see_each_other_whatever_they_hold(rng, device):
    # Token 1 and token 2 are two tries for the place behind token 0, and each holds NaN in turn.
    for bad, good in ((1, 2), (2, 1)):
        case = make_case(rng, [20], device=device)
        page, place = case.table.places(case.cache, 0)
        for store in case.cache.stores():
            store.data[page[17 + bad], place[17 + bad]] = np.nan
        for buffer, array in zip(case.buffers, (case.cache.k, case.cache.v), strict=True):
            buffer.copy_from(array)
        out, lse = attend(case, case.queries(rng, 3, HEADS), [3], tree=[[0b1], [0b11], [0b101]])
        assert np.isnan(out[bad].astype(np.float32)).all() and np.isnan(lse[bad]).all()
        assert np.isfinite(out[[0, good]].astype(np.float32)).all() and np.isfinite(lse[[0, good]]).all()


@pytest.mark.parametrize("count", [1, 8, 64])
def test_a_tree_without_branches_is_a_chain_bit_for_bit(rng, device, count):
    case = make_case(rng, [300], device=device)
    q = case.queries(rng, count, HEADS)
    tree = np.array([[2 ** (i + 1) - 1] for i in range(count)], np.uint64).view(np.int64)
    # Where heads are cut, since all row tiles of a tree are as long as the sequence, and those of a chain are not.
    kernel, split = {"copies": "cp_async", "rows": 8}, 128
    assert_same(attend(case, q, [count], kernel, split, tree=tree), attend(case, q, [count], kernel, split))


@pytest.mark.parametrize(("count", "words"), [(64, 1), (65, 1), (65, 2), (128, 2), (129, 2)])
def test_more_new_tokens_than_bits_are_a_chain(rng, device, count, words):
    case = make_case(rng, [140], device=device)
    lonely = np.zeros((count, words), np.uint64)  # every token sees itself and the old ones
    for i in range(min(count, 64 * words)):
        lonely[i, i // 64] = 2 ** (i % 64)
    assert_modified(case, case.queries(rng, count, HEADS), [count], tree=lonely.view(np.int64))


@pytest.mark.parametrize("cap", [50.0, 1.0, 1e-3, 1e4])
@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16], ids=str)
def test_scores_are_capped(rng, device, dtype, cap):
    case = make_case(rng, LENGTHS, dtype=dtype, device=device)
    assert_modified(case, case.queries(rng, sum(COUNTS), HEADS), COUNTS, softcap=cap, scale=1.0)


# Far below every score, among them, and far above: 200 more is more than a float32's exponent holds.
@pytest.mark.parametrize("sinks", [[-200.0, -1.0, 0.5, 3.0], [200.0, 0.0, -np.inf, 20.0]])
def test_a_sink_joins_the_sum_once_however_many_share_the_work(case, q, sinks):
    assert_modified(case, q, COUNTS, sinks=sinks)
    assert_modified(case, q, COUNTS, sinks=sinks, split_tokens=128)
    assert_modified(case, q, COUNTS, sinks=sinks, window=4)


def test_a_query_that_sees_nothing_gives_zeros_and_its_sink(rng, device):
    case = make_case(rng, [2, 0], device=device)
    q = case.queries(rng, 2 * 4, HEADS)
    out, lse = attend(case, q, [4, 4], sinks=[1.0, -2.0, 0.0, -np.inf])
    for nothing in (slice(0, 2), slice(4, 8)):  # before the first key, and without any
        assert not out[nothing].any()
        np.testing.assert_allclose(lse[nothing], np.tile([1.0, -2.0, 0.0, -np.inf], (lse[nothing].shape[0], 1)), 1e-6)
    out, lse = attend(case, q, [4, 4], window=3)
    assert not out[:2].any() and np.isneginf(lse[:2]).all() and np.isfinite(lse[2:4]).all()


def test_alibi_takes_a_slope_for_each_position_between(case, q):
    slopes = [2.0 ** -(2 * i) for i in range(HEADS)]
    assert_modified(case, q, COUNTS, alibi=slopes)
    assert_modified(case, q, COUNTS, alibi=slopes, causal=False)


def test_alibi_counts_along_the_branch_of_a_tree(rng, case, q):
    tree = np.concatenate([branches(rng, count, 1) for count in COUNTS])
    assert_modified(case, q, COUNTS, alibi=[0.5, 0.25, 1.0, 2.0], tree=tree)


# As Llama 4 has it, in steps; and fewer positions than tokens: the last one goes on.
@pytest.mark.parametrize("positions", [1, 30, 400])
def test_a_query_s_temperature_is_that_of_its_position(case, q, positions):
    temperature = 1 + 0.7 * np.log(np.arange(positions) // 16 + 1)
    assert_modified(case, q, COUNTS, temperature=temperature)


# --- what is equal, bit for bit -------------------------------------------------------------------------------------


@pytest.mark.parametrize("copies", ["cp_async", "registers"])
@pytest.mark.parametrize("split", [None, 512])
def test_what_hides_and_changes_nothing_is_the_plain_kernel_bit_for_bit(case, q, copies, split, device):
    need_copies(copies, device)
    kernel = {"copies": copies}
    plain = attend(case, q, COUNTS, kernel, split)
    for options in (
        {"window": 300}, {"window": 2**31 - 1}, {"chunk": 2**31 - 1}, {"sinks": [-np.inf] * HEADS},
        {"temperature": [1.0]}, {"spans": np.zeros((sum(COUNTS), 2))}, {"window": (300, 1)},
    ):  # fmt: skip
        assert_same(attend(case, q, COUNTS, kernel, split, **options), plain)


@pytest.mark.parametrize(
    "options", [{}, {"window": 70}, {"chunk": 100}, {"softcap": 5.0, "sinks": [0.0, 1.0, 2.0, 3.0]}]
)
def test_a_sequence_has_its_bits_in_any_batch_and_a_query_those_that_it_has_alone(rng, device, options):
    # 2000 keys are many splits; the window begins behind most, so that nobody computes those.
    case = make_case(rng, [2000, 40], device=device)
    kernel, split = {"copies": "cp_async", "rows": 8, "variant": "general"}, 128
    q = case.queries(rng, 5 + 3, HEADS)
    out, lse = attend(case, q, [5, 3], kernel, split, **options)
    for i in range(5):
        one = make_case(np.random.default_rng(0), [1996 + i], device=device, spare_pages=40)
        one.view, one.device = case.view, case.device
        one.page_table = kvit.PageTable(
            case.page_table.pages[:1], lengths=to_device(np.array([1996 + i], np.int32), device)
        )
        alone, alone_lse = attend(one, q[i : i + 1], [1], kernel, split, **options)
        assert_same((alone[0], alone_lse[0]), (out[i], lse[i]))


def test_arrays_may_be_rewritten_in_place(case, q):
    held = on_device({"sinks": [0.0, 1.0, 2.0, 3.0]}, case.device)["sinks"]
    op = kvit.Attention(case.view, HEADS, sinks=held, tokens_per_sequence=max(COUNTS))
    indptr = to_device(np.cumsum([0, *COUNTS]).astype(np.int32), case.device)
    for sinks in ([0.0, 1.0, 2.0, 3.0], [3.0, 2.0, -1.0, 9.0]):
        held.copy_from(np.array(sinks, np.float32))
        out = op(to_device(q, case.device), case.view, case.page_table, query_indptr=indptr)
        np.testing.assert_array_equal(out.numpy(), attend(case, q, COUNTS, sinks=sinks)[0])


# Of more new tokens than its sequence is long, the first stand before it: a window from there does not end below 2^-31.
@pytest.mark.parametrize("window", [2**31 - 1, (2**31 - 1, 2**31 - 1), (None, 2**31 - 1), 5])
@pytest.mark.parametrize(
    "options", [{}, {"causal": False}, {"chunk": 2**31 - 1}, {"chunk": 64, "causal": False}], ids=str
)
def test_queries_before_their_sequence_see_what_a_window_shows_them(rng, device, window, options):
    lengths, counts = [64, 0], [67, 2]
    case = make_case(rng, lengths, device=device)
    assert_modified(case, case.queries(rng, sum(counts), HEADS), counts, window=window, **options)
