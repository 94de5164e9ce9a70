"""Windows, chunks, spans, trees, softcap, sinks, ALiBi and temperature by prefill's kernels: each alone against the
reference, where hidden keys hold NaN, and what is equal bit for bit. test_modifiers_together.py combines them."""

import numpy as np
import pytest

import kvit
from support.caches import BFLOAT16, FLOAT16, make_case, make_table, to_device
from support.modified import (
    assert_modified,
    attend,
    beyond,
    branches,
    on_device,
    poison_unseen,
    prompt_kernel,
    spans_of,
)
from support.modified import assert_same_bits as assert_same
from support.quantised import Quantised

# Two query heads for each KV head, so that a row tile has 64 tokens and a tile of keys 64 or 128: a row tile and a bit
# behind many keys; a decode step among prompts; a prompt alone, of a row tile and a token; more tokens than a tree has
# bits, and as many; nothing; fewer rows than a warp has, at the end of two tiles.
LENGTHS, COUNTS = [300, 1, 65, 260, 192, 40, 256], [70, 1, 65, 129, 128, 0, 3]
HEADS = 4


@pytest.fixture
def case(rng, device):
    return make_case(rng, LENGTHS, device=device)


@pytest.fixture
def q(rng, case):
    return case.queries(rng, sum(COUNTS), HEADS)


@pytest.fixture(params=["cp_async", "tma"])
def copies(request):
    return request.param


@pytest.fixture
def kernel(copies, device):
    return prompt_kernel(copies, 64, device)


def each(name, values, of_tma):
    """Every value with cp.async, and some with warp groups, whose emulation takes six times as long."""
    pairs = [("cp_async", value) for value in values] + [("tma", value) for value in of_tma]
    return pytest.mark.parametrize(("copies", name), pairs)


# One key; less than a tile; the ends of tiles and next to them; as many keys as new tokens; all keys and more.
@each("window", [1, 2, 33, 63, 64, 65, 127, 128, 129, 256, 1000], [1, 65, 128, 1000])
def test_a_window_shows_the_last_keys_alone(case, q, kernel, window):
    hidden = poison_unseen(case, COUNTS, window=window)
    assert (hidden > LENGTHS[5]) == (window < 254)  # besides those of the sequence without queries
    assert_modified(case, q, COUNTS, kernel, window=window)


@each("window", [(5, 1), (5, 3), (None, 2), (100, 70), (1, 1), (None, 200)], [(5, 3), (100, 70)])
def test_a_window_has_two_sides_where_queries_are_not_causal(case, q, kernel, window):
    poison_unseen(case, COUNTS, window=window, causal=False)
    assert_modified(case, q, COUNTS, kernel, window=window, causal=False)


@pytest.mark.parametrize("causal", [True, False])
@each("chunk", [1, 5, 64, 100, 128, 250, 1000], [5, 128])
def test_a_query_sees_its_own_chunk(case, q, kernel, chunk, causal):
    poison_unseen(case, COUNTS, chunk=chunk, causal=causal)
    assert_modified(case, q, COUNTS, kernel, chunk=chunk, causal=causal)


@each("window", [None, 3, 64], [3])
def test_a_span_shows_its_keys_to_its_queries(case, q, kernel, window):
    # An image within a tile of new tokens, one across tiles, one that began before them, and one of a whole sequence.
    spans = spans_of(LENGTHS, COUNTS, (0, 240, 250), (3, 140, 220), (3, 100, 135), (2, 0, 65))
    poison_unseen(case, COUNTS, spans=spans, window=window)
    out, _ = assert_modified(case, q, COUNTS, kernel, spans=spans, window=window)
    without, _ = attend(case, q, COUNTS, kernel, window=window)
    assert not (out[75] == without[75]).all()


@pytest.mark.parametrize("words", [1, 2])
@each("window", [None, 1, 5, 30], [5])  # a window counts along the branch
def test_a_tree_shows_a_query_its_branch(rng, case, q, kernel, words, window):
    # 70 and 65 new tokens are a tree of two words and a chain of one; 128 the largest tree; 129 always a chain.
    tree = np.concatenate([branches(rng, count, words) for count in COUNTS])
    poison_unseen(case, COUNTS, tree=tree, window=window)
    assert_modified(case, q, COUNTS, kernel, tree=tree, window=window)


def test_bits_of_a_tree_may_be_any(rng, case, q, kernel):
    # Not only those of branches: later tokens, gaps, and none at all. Positions count what a query sees.
    drawn = [[int(rng.integers(2**63)) ** 2 & (1 << count) - 1 for _ in range(count)] for count in COUNTS]
    bits = [0 if i % 7 == 0 else x for i, x in enumerate(x for row in drawn for x in row)]
    tree = np.array([[x & 2**64 - 1, x >> 64] for x in bits], np.uint64).view(np.int64)
    assert_modified(case, q, COUNTS, kernel, tree=tree, window=40, alibi=[0.5, 0.25, 0.0, 1.0])


@pytest.mark.parametrize("words", [1, 2])
def test_bits_of_no_new_token_say_nothing(rng, case, q, kernel, words):
    tree = np.concatenate([branches(rng, count, words) for count in COUNTS])
    options = {"window": 5, "alibi": [0.5, 0.25, 0.0, 1.0]}
    assert_same(*(attend(case, q, COUNTS, kernel, tree=x, **options) for x in (beyond(tree, COUNTS), tree)))


def test_siblings_do_not_see_each_other_whatever_they_hold(rng, device, kernel):
    # Token 1 and token 2 are two tries for the place behind token 0, and each holds NaN in turn.
    for bad, good in ((1, 2), (2, 1)):
        case = make_case(rng, [20], device=device)
        page, place = case.table.places(case.cache, 0)
        for store in case.cache.stores():
            store.data[page[17 + bad], place[17 + bad]] = np.nan
        for buffer, array in zip(case.buffers, (case.cache.k, case.cache.v), strict=True):
            buffer.copy_from(array)
        out, lse = attend(case, case.queries(rng, 3, HEADS), [3], kernel, tree=[[0b1], [0b11], [0b101]])
        assert np.isnan(out[bad].astype(np.float32)).all() and np.isnan(lse[bad]).all()
        assert np.isfinite(out[[0, good]].astype(np.float32)).all() and np.isfinite(lse[[0, good]]).all()


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16], ids=str)
@each("cap", [50.0, 1.0, 1e-3, 1e4], [1.0])
def test_scores_are_capped(rng, device, kernel, dtype, cap):
    case = make_case(rng, LENGTHS, dtype=dtype, device=device)
    assert_modified(case, case.queries(rng, sum(COUNTS), HEADS), COUNTS, kernel, softcap=cap, scale=1.0)


# Far below every score, among them, and far above: 200 more is more than a float32's exponent holds.
@pytest.mark.parametrize("sinks", [[-200.0, -1.0, 0.5, 3.0], [200.0, 0.0, -np.inf, 20.0]])
def test_a_sink_joins_the_sum_once_however_many_share_the_work(case, q, kernel, sinks):
    assert_modified(case, q, COUNTS, kernel, sinks=sinks)
    assert_modified(case, q, COUNTS, kernel, sinks=sinks, split_tokens=128)
    assert_modified(case, q, COUNTS, kernel, sinks=sinks, window=4)


def test_a_query_that_sees_nothing_gives_zeros_and_its_sink(rng, device, kernel):
    case = make_case(rng, [2, 0], device=device)
    q = case.queries(rng, 2 * 40, HEADS)
    out, lse = attend(case, q, [40, 40], kernel, sinks=[1.0, -2.0, 0.0, -np.inf])
    for nothing in (slice(0, 38), slice(40, 80)):  # before the first key, and without any
        assert not out[nothing].any()
        np.testing.assert_allclose(lse[nothing], np.tile([1.0, -2.0, 0.0, -np.inf], (lse[nothing].shape[0], 1)), 1e-6)
    out, lse = attend(case, q, [40, 40], kernel, window=3)
    assert not out[:38].any() and np.isneginf(lse[:38]).all() and np.isfinite(lse[38:40]).all()


def test_alibi_takes_a_slope_for_each_position_between(case, q, kernel):
    slopes = [2.0 ** -(2 * i) for i in range(HEADS)]
    assert_modified(case, q, COUNTS, kernel, alibi=slopes)
    assert_modified(case, q, COUNTS, kernel, alibi=slopes, causal=False)


@pytest.mark.parametrize("words", [1, 2])
def test_alibi_counts_along_the_branch_of_a_tree(rng, case, q, kernel, words):
    tree = np.concatenate([branches(rng, count, words) for count in COUNTS])
    assert_modified(case, q, COUNTS, kernel, alibi=[0.5, 0.25, 1.0, 2.0], tree=tree)


# As Llama 4 has it, in steps; and fewer positions than tokens: the last one goes on.
@each("positions", [1, 30, 400], [30])
def test_a_query_s_temperature_is_that_of_its_position(case, q, kernel, positions):
    temperature = 1 + 0.7 * np.log(np.arange(positions) // 16 + 1)
    assert_modified(case, q, COUNTS, kernel, temperature=temperature)


# --- shapes and codecs ----------------------------------------------------------------------------------------------

EVERYTHING = {
    "window": 90,
    "softcap": 5.0,
    "sinks": [0.0, -1.0, 2.0, 0.5],
    "alibi": [0.1, 0.0, 0.2, 0.01],
    "temperature": [1.0, 1.5, 0.5],
}


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16], ids=str)
@pytest.mark.parametrize(("copies", "head_dim"), [(c, d) for c in ("cp_async", "tma") for d in (64, 128, 256)])
def test_every_head_dim_and_dtype(rng, device, copies, head_dim, dtype):
    case = make_case(rng, LENGTHS, head_dim=head_dim, dtype=dtype, device=device)
    poison_unseen(case, COUNTS, window=90)
    assert_modified(case, case.queries(rng, sum(COUNTS), HEADS), COUNTS, prompt_kernel(copies, head_dim, device),
                    **EVERYTHING)  # fmt: skip


@each("group", [1, 3, 8, 12, 160], [3])  # tokens begin and end anywhere in a row tile, or fill several
def test_any_group(rng, device, kernel, group):
    counts = [9, 1] if group == 160 else COUNTS
    case = make_case(rng, [60, 70] if group == 160 else LENGTHS, device=device)
    poison_unseen(case, counts, window=35)
    alibi = np.linspace(0, 1, 2 * group)
    assert_modified(case, case.queries(rng, sum(counts), 2 * group), counts, kernel, window=35, alibi=alibi)


@pytest.mark.parametrize("layout", ["NHD", "HND"])
@each("page_size", [1, 5, 16, 64, 100], [8, 64])
def test_any_page_size_and_layout(rng, device, kernel, layout, page_size):
    case = make_case(rng, [190, 0, 133], page_size=page_size, layout=layout, device=device)
    poison_unseen(case, [150, 0, 23], window=35)
    assert_modified(case, case.queries(rng, 173, HEADS), [150, 0, 23], kernel, window=35)


@pytest.mark.parametrize("page_size", [16, 32])
def test_pages_outside_a_window_are_not_looked_up(rng, device, kernel, page_size):
    # An engine may have given them away: their ids are of no page, and no fault is reported. 40 new tokens behind 360:
    # a window of 20 of the first begins at 341, inside a page, and inside a tile that has pages before that.
    case = make_case(rng, [400], page_size=page_size, device=device)
    q = to_device(case.queries(rng, 40, HEADS), device)
    op = kvit.Attention(case.view, HEADS, window=20, kernel=kernel)
    pages = np.array([case.table.pages[0]], np.int32)
    first, found = 341 // page_size, []
    for given_away in (0, first):
        pages[0, :given_away] = -1
        found.append(op(q, case.view, make_table(list(pages), [400], "dense", device)).numpy().view(np.uint16))
        op.check()
    np.testing.assert_array_equal(*found)
    pages[0, first] = -1
    op(q, case.view, make_table(list(pages), [400], "dense", device))
    with pytest.raises(kvit.PageTableError, match=f"page {first} of sequence 0"):
        op.check()


# --- what is equal, bit for bit -------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", [None, 128])
def test_what_hides_and_changes_nothing_is_the_plain_kernel_bit_for_bit(case, q, kernel, split):
    plain = attend(case, q, COUNTS, {**kernel, "variant": "plain"}, split)
    every = [
        {"window": 300}, {"window": 2**31 - 1}, {"chunk": 2**31 - 1}, {"sinks": [-np.inf] * HEADS},
        {"temperature": [1.0]}, {"spans": np.zeros((sum(COUNTS), 2))}, {"window": (300, 1)},
    ]  # fmt: skip
    together = {name: value for options in every for name, value in options.items()}
    for options in [{}, *every] if kernel["copies"] == "cp_async" else [{}, together]:
        assert_same(attend(case, q, COUNTS, kernel, split, **options), plain)


@each("count", [1, 8, 64, 128], [128])
def test_a_tree_without_branches_is_a_chain_bit_for_bit(rng, device, kernel, count):
    case = make_case(rng, [300], device=device)
    q = case.queries(rng, count, HEADS)
    chain = [[2 ** (i + 1) - 1 & 2**64 - 1, (2 ** (i + 1) - 1) >> 64] for i in range(count)]
    tree = np.array(chain, np.uint64).view(np.int64)
    # Where heads are cut, since all row tiles of a tree are as long as the sequence, and those of a chain are not.
    assert_same(attend(case, q, [count], kernel, 128, tree=tree), attend(case, q, [count], kernel, 128))


@each(
    "options",
    [{}, {"window": 70}, {"chunk": 100}, {"softcap": 5.0, "sinks": [0.0, 1.0, 2.0, 3.0]}],
    [{"window": 70, "softcap": 5.0, "sinks": [0.0, 1.0, 2.0, 3.0]}],
)
def test_a_sequence_has_its_bits_in_any_batch(rng, device, case, q, kernel, options):
    out, lse = attend(case, q, COUNTS, kernel, 128, **options)
    begins = np.cumsum([0, *COUNTS])
    for sequence, count in enumerate(COUNTS):
        rows = slice(begins[sequence], begins[sequence] + count)
        one = make_case(np.random.default_rng(0), [LENGTHS[sequence]], device=device)
        one.view = case.view
        one.page_table = make_table([case.table.pages[sequence]], [LENGTHS[sequence]], "dense", device)
        alone = attend(one, np.ascontiguousarray(q[rows]), [count], kernel, 128, **options)
        assert_same(alone, (out[rows], lse[rows]))


@each("split", [None, 128], [None])
def test_long_prompts_and_many_sequences_are_shared_by_many_ctas(rng, device, kernel, split):
    # Row tiles that lanes count together: of one sequence, of a warp's lanes, and of more sequences than those.
    for lengths in ([900], [500, 700, 1], [1] * 20 + [400] + [40] * 15):
        counts = [min(length, 380) for length in lengths]
        case = make_case(rng, lengths, device=device)
        q = case.queries(rng, sum(counts), HEADS)
        poison_unseen(case, counts, window=150)
        first = assert_modified(case, q, counts, kernel, split, window=150)
        assert_same(attend(case, q, counts, kernel, split, window=150), first)


def test_arrays_may_be_rewritten_under_a_captured_graph(rng, case, q, kernel):
    device, counts = case.device, COUNTS
    stream = kvit.Stream(device)
    sinks = on_device({"sinks": [0.0] * HEADS}, device)["sinks"]
    spans, tree = (to_device(np.zeros((sum(counts), 2), dtype), device) for dtype in (np.int32, np.int64))
    op = kvit.Attention(case.view, HEADS, kernel=kernel, window=50, sinks=sinks, spans=True, tree=True)
    indptr = to_device(np.cumsum([0, *counts]).astype(np.int32), device)
    queries, out = to_device(q, device), to_device(np.zeros_like(q), device)
    with kvit.Graph.capture(stream) as graph:
        op(queries, case.view, case.page_table, query_indptr=indptr, spans=spans, tree=tree, out=out, stream=stream)
    for step in range(3):
        new = {
            "sinks": [float(step + i) for i in range(HEADS)],
            "spans": spans_of(LENGTHS, counts, (0, 232 + step, 290), (3, 140, 200 + step)),
            "tree": np.concatenate([branches(rng, count, 2) for count in counts]),
        }
        for held, name, dtype in ((sinks, "sinks", np.float32), (spans, "spans", np.int32), (tree, "tree", np.int64)):
            held.copy_from(np.asarray(new[name], dtype))
        graph.launch()
        stream.synchronize()
        op.check(stream)
        expected, _ = assert_modified(case, q, counts, kernel, window=50, **new)
        np.testing.assert_array_equal(out.numpy().view(np.uint16), expected.view(np.uint16))


# --- which kernel ---------------------------------------------------------------------------------------------------


def test_prompts_with_options_are_given_to_prefill_and_steps_to_decode(case):
    found = {
        tokens: kvit.Attention(case.view, 8, tokens_per_sequence=tokens, window=100).kernel
        for tokens in (1, 8, 13, 4096)
    }
    assert {tokens: kernel.family for tokens, kernel in found.items()} == {
        1: "decode", 8: "decode", 13: "prefill", 4096: "prefill",
    }  # fmt: skip
    assert all(kernel.axes["variant"] == "general" for kernel in found.values())
    text = kvit.Attention(case.view, 8, tokens_per_sequence=100, softcap=30.0).explain()
    assert text.startswith("kvit_prefill__") and "scores capped at 30" in text


def test_codecs_without_a_general_prefill_kernel_have_decode_s(rng, device):
    case = Quantised(("int8", "int8"), [70], head_dim=64, device=device, rng=rng)
    kernel = kvit.Attention(case.view, 8, tokens_per_sequence=64, window=9).kernel
    assert kernel.axes["variant"] == "general" and kernel.axes["kv"] == "i8"
