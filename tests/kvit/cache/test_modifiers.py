"""kvit.attention with windows, chunks, spans, trees, softcap, sinks, ALiBi and temperature; and calls in a graph."""

import numpy as np
import pytest

import kvit
from kvit import reference
from support.caches import assert_cache_attention, make_case, new_cache, new_tokens, poisoned, to_device
from support.modified import branches, on_device
from support.tolerances import assert_within

HEADS, LENGTHS, COUNTS = 4, [70, 9], [3, 2]


@pytest.fixture
def filled(rng, device):
    cache = new_cache(device)
    sequences, contents = [], []
    for length in LENGTHS:
        sequences.append(cache.sequence())
        contents.append(new_tokens(rng, length))
        sequences[-1].append(*(to_device(rows, device) for rows in contents[-1]))
    return cache, sequences, contents


def query(rng, cache):
    return rng.standard_normal((sum(COUNTS), HEADS, 64)).astype(new_tokens(rng, 1).dtype)


@pytest.mark.parametrize(
    "options",
    [{"window": 5}, {"chunk": 8}, {"softcap": 1.0}, {"window": (5, 2), "causal": False}, {"softcap": 2.0, "chunk": 30}],
)
def test_numbers_are_passed_on(rng, filled, options):
    cache, sequences, contents = filled
    assert_cache_attention(cache, sequences, contents, query(rng, cache), COUNTS, **options)


def test_arrays_are_passed_on_and_the_same_ones_find_the_same_operation(rng, filled):
    cache, sequences, contents = filled
    q = query(rng, cache)
    plain = {"sinks": [0.0, 1.0, -1.0, 2.0], "alibi": [0.5, 0.1, 0.0, 1.0], "temperature": [1.0, 0.5]}
    arrays = on_device(plain, cache.device)
    for _ in range(3):
        out, lse = kvit.attention(to_device(q, cache.device), cache, sequences, COUNTS, return_lse=True, **arrays)
    assert len(cache.operations) == 1
    kvit.attention(to_device(q, cache.device), cache, sequences, COUNTS, sinks=on_device(plain, cache.device)["sinks"])
    assert len(cache.operations) == 2
    for tokens, (k, v) in zip(reference.token_ranges(COUNTS), contents, strict=True):
        state = reference.attention(q[tokens], k, v, **plain)
        assert_within(out.numpy()[tokens], state.out, 0.05)
        assert_within(lse.numpy()[tokens], state.lse, 1e-4)


def test_spans_and_trees_are_passed_on(rng, filled):
    cache, sequences, contents = filled
    q, tree = query(rng, cache), np.concatenate([branches(rng, count, 1) for count in COUNTS])
    spans = np.array([[66, 69], [66, 69], [0, 0], [7, 9], [7, 9]], np.int32)
    for options in ({"spans": spans}, {"tree": tree}, {"spans": spans, "window": 2}):
        given = {name: to_device(x, cache.device) if isinstance(x, np.ndarray) else x for name, x in options.items()}
        out = kvit.attention(to_device(q, cache.device), cache, sequences, COUNTS, **given).numpy()
        for tokens, (k, v) in zip(reference.token_ranges(COUNTS), contents, strict=True):
            own = {name: x[tokens] if isinstance(x, np.ndarray) else x for name, x in options.items()}
            assert_within(out[tokens], reference.attention(q[tokens], k, v, **own).out, 0.05)


def test_a_captured_call_reads_its_arrays_afresh(rng, device):
    case = make_case(rng, LENGTHS, device=device)
    stream, q = kvit.Stream(device), case.queries(rng, 6, HEADS)
    held = {
        "spans": to_device(np.zeros((6, 2), np.int32), device),
        "tree": to_device(np.zeros((6, 1), np.int64), device),
    }
    sinks = to_device(np.zeros(HEADS, np.float32), device)
    op = kvit.Attention(case.view, HEADS, sinks=sinks, spans=True, tree=True)
    rows, out = to_device(q, device), to_device(poisoned(q.shape, q.dtype), device)
    with kvit.Graph.capture(stream) as graph:
        op(rows, case.view, case.page_table, out=out, stream=stream, **held)
    trees = np.concatenate([branches(rng, 3, 1) for _ in LENGTHS])
    for tree, level in ((np.full((6, 1), 7), 0.0), (trees, 1.5)):
        held["tree"].copy_from(tree.astype(np.int64))
        sinks.copy_from(np.full(HEADS, level, np.float32))
        graph.launch(stream)
        stream.synchronize()
        state, bound = case.expect(q, [3, 3], tree=tree, sinks=[level] * HEADS)
        assert_within(out.numpy(), state.out, bound)
