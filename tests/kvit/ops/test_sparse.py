"""Attention to entries that queries have chosen: of one token and of many, for all heads and for each.

Chosen: entries that are parts of pages, whole pages and several; choices with -1 between, behind the query and behind
the sequence; sequences of one token and of none. What nobody has chosen is NaN.
"""

import numpy as np
import pytest

import kvit
from kvit import reference
from support import tolerances
from support.caches import BFLOAT16, make_case, poisoned, to_device
from support.quantised import Quantised
from support.tolerances import assert_within

LENGTHS, COUNTS = [70, 1, 0, 33], [3, 1, 0, 2]


def choices(rng, lengths, counts, choosers, entries, entry_tokens):
    """[tokens, choosers, entries] different entries in no order, some of them none, or behind the sequence."""
    rows = []
    for length, count in zip(lengths, counts, strict=True):
        for _ in range(count * choosers):
            row = rng.permutation(max(-(-length // entry_tokens) + 2, entries))[:entries]
            row[rng.random(entries) < 0.2] = -1
            rows.append(row)
    return np.array(rows, np.int32).reshape(sum(counts), choosers, entries)


def attend(case, q, counts, indices, entry_tokens, per_head=False, **options):
    """(out, lse) of one call in numpy, from poisoned memory."""
    op = kvit.SparseAttention(
        case.view, q.shape[1], entry_tokens=entry_tokens, entries=indices.shape[2], queries=max(1, len(q)),
        per_head=per_head, **options,
    )  # fmt: skip
    out = to_device(poisoned((*q.shape[:2], case.view.v_dim), q.dtype), case.device)
    lse = to_device(poisoned(q.shape[:2], np.dtype(np.float32)), case.device)
    indptr = to_device(np.cumsum([0, *counts]).astype(np.int32), case.device)
    chosen = to_device(indices, case.device)
    got = op(to_device(q, case.device), case.view, case.page_table, chosen, query_indptr=indptr, out=out, lse=lse)
    op.check()
    assert got is out
    return out.numpy(), lse.numpy()


def poison_unchosen(case, counts, indices, entry_tokens):
    """Makes K and V of every token that no query of its sequence has chosen NaN; returns how many those are."""
    hidden = 0
    for sequence, tokens in enumerate(reference.token_ranges(counts)):
        length = case.table.lengths[sequence]
        chosen = [reference.chosen_keys(length, length, row, entry_tokens) for row in indices[tokens]]
        unchosen = np.setdiff1d(np.arange(length), np.concatenate([np.empty(0, int), *chosen]))
        page, place = case.table.places(case.cache, sequence)
        for store in case.cache.stores():
            store.data[page[unchosen], place[unchosen]] = np.nan
        hidden += len(unchosen)
    for buffer, array in zip(case.buffers, (case.cache.k, case.cache.v), strict=True):
        buffer.copy_from(array)
    return hidden


def assert_right(case, q, counts, indices, entry_tokens, per_head=False, **options):
    out, lse = attend(case, q, counts, indices, entry_tokens, per_head, **options)
    state = reference.sparse_attention(q, case.cache, case.table, indices, entry_tokens, counts, **options)
    values = reference.Cache(case.cache.k, np.abs(case.cache.v), case.cache.layout)
    magnitude = reference.sparse_attention(q, values, case.table, indices, entry_tokens, counts, **options).out
    assert_within(out, state.out, np.nan_to_num(tolerances.attention_bound(magnitude, q.dtype)))
    assert_within(lse, state.lse, tolerances.LSE)


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("page_size, entry_tokens", [(16, 1), (16, 4), (16, 16), (16, 64), (1, 1), (1, 4), (8, 8)])
def test_entries_of_any_size(rng, device, page_size, entry_tokens, layout, per_head):
    case = make_case(rng, LENGTHS, page_size=page_size, layout=layout, device=device)
    entries = {1: 24, 4: 8}.get(entry_tokens, 2)
    indices = choices(rng, LENGTHS, COUNTS, 2 if per_head else 1, entries, entry_tokens)
    assert poison_unchosen(case, COUNTS, indices, entry_tokens) > 0 or entry_tokens > 16
    assert_right(case, case.queries(rng, sum(COUNTS), 8), COUNTS, indices, entry_tokens, per_head)


@pytest.mark.parametrize("storage", ["halves", "padded"])
def test_rows_that_lie_otherwise(rng, device, storage):
    case = make_case(rng, LENGTHS, storage=storage, head_dim=96, device=device)
    indices = choices(rng, LENGTHS, COUNTS, 1, 8, 4)
    assert_right(case, case.queries(rng, sum(COUNTS), 8), COUNTS, indices, 4)


@pytest.mark.parametrize("causal", [True, False])
def test_softcap_and_sinks(rng, device, causal):
    case = make_case(rng, LENGTHS, device=device)
    indices = choices(rng, LENGTHS, COUNTS, 1, 8, 4)
    sinks = rng.standard_normal(8).astype(np.float32)
    q = case.queries(rng, sum(COUNTS), 8)
    out, lse = attend(
        case, q, COUNTS, indices, 4, causal=causal, softcap=5.0, sinks=to_device(sinks, device), scale=0.3
    )
    options = {"causal": causal, "softcap": 5.0, "sinks": sinks, "scale": 0.3}
    state = reference.sparse_attention(q, case.cache, case.table, indices, 4, COUNTS, **options)
    assert_within(out, state.out, 0.03)
    assert_within(lse, state.lse, tolerances.LSE)


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("pair", [("int8", "int8"), ("int4", "int4"), ("int8", "int4")], ids=str)
def test_codes(rng, device, pair, layout, per_head):
    case = Quantised(pair, [37, 3, 20], layout=layout, device=device, rng=rng)
    case.append(rng)
    counts = [2, 1, 1]
    indices = choices(rng, [37, 3, 20], counts, 2 if per_head else 1, 6, 4)
    q = rng.standard_normal((4, 8, 64)).astype(BFLOAT16)
    out, _ = attend(case, q, counts, indices, 4, per_head)
    state = reference.sparse_attention(q, case.cache, case.table, indices, 4, counts)
    largest = np.abs(case.cache.stores()[1].read(*case.table.places(case.cache, 0))).max()
    assert_within(out, state.out, 0.05 + 0.02 * largest)


def test_queries_that_choose_nothing_give_zeros(rng, device):
    case = make_case(rng, LENGTHS, device=device)
    indices = np.full((sum(COUNTS), 1, 3), -1, np.int32)
    out, lse = attend(case, case.queries(rng, sum(COUNTS), 8), COUNTS, indices, 4)
    assert (out == 0).all() and (lse == -np.inf).all()


def test_all_entries_are_all_tokens(rng, device):
    case = make_case(rng, LENGTHS, device=device)
    q = case.queries(rng, sum(COUNTS), 8)
    indices = np.broadcast_to(np.arange(20, dtype=np.int32), (sum(COUNTS), 1, 20)).copy()
    out, lse = attend(case, q, COUNTS, indices, 4)
    state, bound = case.expect(q, COUNTS)
    assert_within(out, state.out, np.nan_to_num(bound))
    assert_within(lse, state.lse, tolerances.LSE)


def test_a_page_that_does_not_exist_is_told_and_gives_nan(rng, device):
    case = make_case(rng, [40], device=device)
    pages = np.array([[0, 99, 1]], np.int32)
    table = kvit.PageTable(to_device(pages, device), lengths=to_device(np.array([40], np.int32), device))
    op = kvit.SparseAttention(case.view, 8, entry_tokens=4, entries=2, queries=1)
    q = to_device(case.queries(rng, 1, 8), device)
    out = op(q, case.view, table, to_device(np.array([[[5, 0]]], np.int32), device))
    with pytest.raises(kvit.PageTableError, match="99"):
        op.check()
    assert np.isnan(out.numpy().astype(np.float32)).all()
    op(q, case.view, table, to_device(np.array([[[0, 9]]], np.int32), device))
    op.check()  # nobody has chosen that page
    other = kvit.SparseAttention(case.view, 8, entry_tokens=4, entries=2, queries=1, faults=op.faults)
    other(q, case.view, table, to_device(np.array([[[5, 0]]], np.int32), device))
    with pytest.raises(kvit.PageTableError, match="99"):
        op.check()  # they share a record


def test_a_call_captures_into_a_graph_and_choices_may_change(rng, device):
    case = make_case(rng, LENGTHS, device=device)
    q = to_device(case.queries(rng, sum(COUNTS), 8), device)
    op = kvit.SparseAttention(case.view, 8, entry_tokens=4, entries=8, queries=8)
    first, second = (choices(rng, LENGTHS, COUNTS, 1, 8, 4) for _ in range(2))
    indices, indptr = to_device(first, device), to_device(np.cumsum([0, *COUNTS]).astype(np.int32), device)
    stream = kvit.Stream(device)
    out = kvit.Buffer.empty((sum(COUNTS), 8, 64), "bfloat16", device, stream)
    stream.synchronize()
    with kvit.Graph.capture(stream) as graph:
        op(q, case.view, case.page_table, indices, query_indptr=indptr, out=out, stream=stream)
    for chosen in (first, second):
        indices.copy_from(chosen)
        graph.launch()
        stream.synchronize()
        want, _ = attend(case, q.numpy(), COUNTS, chosen, 4)
        np.testing.assert_array_equal(out.numpy().view(np.uint16), want.view(np.uint16))


@pytest.mark.parametrize(
    "given, words",
    [
        ({"entry_tokens": 3}, "an entry is a part of a page, or whole pages"),
        ({"entry_tokens": 24}, "an entry is a part of a page, or whole pages"),
        ({"entries": 0}, "entries is 0; it must be 1 to"),
        ({"queries": 2**30}, "give fewer queries to a call"),
    ],
    ids=str,
)
def test_what_cannot_be_chosen_is_refused(rng, given, words):
    case = make_case(rng, [20])
    with pytest.raises(kvit.ShapeError, match=words):
        kvit.SparseAttention(case.view, 8, **{"entry_tokens": 4, "entries": 2, "queries": 1, **given})


def test_calls_that_do_not_fit_are_refused_before_anything_is_launched(rng):
    case = make_case(rng, [20])
    op = kvit.SparseAttention(case.view, 8, entry_tokens=4, entries=2, queries=1, per_head=True)
    q, indices = case.queries(rng, 1, 8), np.zeros((1, 2, 2), np.int32)
    with pytest.raises(kvit.ShapeError, match="has room for 1"):
        op(case.queries(rng, 2, 8), case.view, case.page_table, indices)
    with pytest.raises(kvit.ShapeError, match="choosers = 2"):
        op(q, case.view, case.page_table, indices[:, :1])
    with pytest.raises(kvit.LayoutError, match="indices"):
        op(q, case.view, case.page_table, np.zeros((1, 2, 4), np.int32)[..., ::2])
