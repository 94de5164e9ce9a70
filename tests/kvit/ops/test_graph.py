"""kvit.Graph: captured once, replayed over growing sequences with tokens, lengths and tables rewritten in place."""

import numpy as np
import pytest

import kvit
from kvit import reference
from support import tolerances
from support.caches import BFLOAT16, NO_PAGE, make_case, poisoned, to_device
from support.tolerances import assert_within

KV_HEADS, QUERY_HEADS, HEAD_DIM, PAGE_SIZE, SLOTS = 2, 8, 64, 16, 4


class Engine:
    """Sequences that grow by a captured append and attention; the reference does the same steps beside it."""

    def __init__(self, rng, device, lengths, rows):
        """`rows` of new tokens in each step, of all sequences together."""
        self.rng, self.device, self.stream = rng, device, kvit.Stream(device)
        num_sequences = len(lengths)
        order = rng.permutation(num_sequences * SLOTS).astype(np.int32)
        self.pages, self.held = order.reshape(num_sequences, SLOTS), list(lengths)
        pools = [poisoned((order.size, PAGE_SIZE, KV_HEADS, HEAD_DIM), BFLOAT16) for _ in range(2)]
        self.cache = reference.Cache(*pools, "NHD")
        reference.append(self.cache, self.plain(), *self.tokens(sum(lengths)), lengths)
        self.k_pool, self.v_pool = (to_device(pool, device) for pool in pools)
        self.view = kvit.CacheView(self.k_pool, self.v_pool)
        self.k, self.v = (to_device(poisoned((rows, KV_HEADS, HEAD_DIM), BFLOAT16), device) for _ in range(2))
        self.q, self.out = (to_device(poisoned((rows, QUERY_HEADS, HEAD_DIM), BFLOAT16), device) for _ in range(2))
        self.lse = to_device(poisoned((rows, QUERY_HEADS), np.dtype(np.float32)), device)
        self.indptr = to_device(np.zeros(num_sequences + 1, np.int32), device)
        self.lengths = to_device(np.zeros(num_sequences, np.int32), device)
        self.slots = to_device(np.full((num_sequences, SLOTS), NO_PAGE, np.int32), device)
        self.table = kvit.PageTable(self.slots, lengths=self.lengths)
        self.append, self.attention = kvit.Append(self.view), kvit.Attention(self.view, QUERY_HEADS)

    def tokens(self, count):
        return self.rng.standard_normal((2, count, KV_HEADS, HEAD_DIM)).astype(BFLOAT16)

    def used(self):
        return [-(-length // PAGE_SIZE) for length in self.held]

    def plain(self):
        return reference.Table([row[:used] for row, used in zip(self.pages, self.used(), strict=True)], self.held)

    def capture(self):
        with kvit.Graph.capture(self.stream) as graph:
            self.append(self.k, self.v, self.view, self.table, query_indptr=self.indptr, stream=self.stream)
            arguments = dict(out=self.out, lse=self.lse, query_indptr=self.indptr, stream=self.stream)
            self.attention(self.q, self.view, self.table, **arguments)
        return graph

    def step(self, graph, counts):
        """New tokens for the sequences: everything is rewritten in place, and the graph launched."""
        self.held = [length + count for length, count in zip(self.held, counts, strict=True)]
        k, v = self.tokens(sum(counts))
        q = self.rng.standard_normal((sum(counts), QUERY_HEADS, HEAD_DIM)).astype(BFLOAT16)
        slots = np.full((len(counts), SLOTS), NO_PAGE, np.int32)  # a page shows up in the table when it is needed
        for row, pages, used in zip(slots, self.pages, self.used(), strict=True):
            row[:used] = pages[:used]
        for buffer, array in (
            (self.k, k),
            (self.v, v),
            (self.q, q),
            (self.slots, slots),
            (self.lengths, np.array(self.held, np.int32)),
            (self.indptr, np.cumsum([0, *counts]).astype(np.int32)),
        ):
            buffer.copy_from(array)
        for buffer in (self.out, self.lse):
            buffer.fill_bytes(0xFF)
            buffer.stream.synchronize()
        graph.launch()
        self.stream.synchronize()
        self.append.check(self.stream)
        self.attention.check(self.stream)
        reference.append(self.cache, self.plain(), k, v, counts)
        state = reference.paged_attention(q, self.cache, self.plain(), counts)
        positive = reference.Cache(self.cache.k, np.abs(self.cache.v), self.cache.layout)
        magnitude = reference.paged_attention(q, positive, self.plain(), counts).out
        assert_within(self.out.numpy(), state.out, tolerances.attention_bound(magnitude, q.dtype))
        assert_within(self.lse.numpy(), state.lse, tolerances.LSE)


def test_a_captured_decode_step_follows_growing_sequences(rng, device):
    # Past the ends of pages, from the middle of one, and from nothing.
    engine = Engine(rng, device, [15, 0, 30], rows=3)
    graph = engine.capture()
    for _ in range(20):
        engine.step(graph, [1, 1, 1])


def test_which_sequences_the_new_tokens_belong_to_may_change_between_launches(rng, device):
    engine = Engine(rng, device, [5, 17, 0], rows=6)
    graph = engine.capture()
    for counts in ([1, 5, 0], [0, 0, 6], [2, 2, 2], [6, 0, 0]):
        engine.step(graph, counts)


def test_a_graph_gives_the_bits_of_the_calls_that_it_was_made_of(rng, device):
    case = make_case(rng, [40, 9, 0], device=device)
    stream = kvit.Stream(device)
    op = kvit.Attention(case.view, 8)
    q = to_device(case.queries(rng, 3, 8), device)
    out, again = (kvit.Buffer.empty(q.shape, "bfloat16", device, stream) for _ in range(2))
    with kvit.Graph.capture(stream) as graph:
        op(q, case.view, case.page_table, out=out, stream=stream)
    graph.launch()
    op(q, case.view, case.page_table, out=again, stream=stream)
    np.testing.assert_array_equal(out.numpy().view(np.uint16), again.numpy().view(np.uint16))


def test_scales_may_change_between_launches(rng, device):
    stream = kvit.Stream(device)
    pools = [
        kvit.Buffer.from_numpy(rng.integers(0, 64, (4, PAGE_SIZE, 2, 64), np.uint8), device) for _ in range(2)
    ]  # codes of finite numbers
    scale = kvit.Buffer.from_numpy(np.full(2, 0.5, np.float32), device)
    view = kvit.CacheView(*pools, kv="float8_e4m3", k_scale=scale, v_scale=scale)
    table = kvit.PageTable(
        to_device(np.array([[2, 0]], np.int32), device), lengths=to_device(np.array([25], np.int32), device)
    )
    op = kvit.Attention(view, 4)
    q = to_device(rng.standard_normal((1, 4, 64)).astype(BFLOAT16), device)
    out, expected = (kvit.Buffer.empty(q.shape, "bfloat16", device, stream) for _ in range(2))
    with kvit.Graph.capture(stream) as graph:
        op(q, view, table, out=out, stream=stream)
    found = []
    for value in (0.5, 2.0):
        scale.copy_from(np.full(2, value, np.float32))
        graph.launch()
        op(q, view, table, out=expected, stream=stream)
        found.append(out.numpy().view(np.uint16))
        np.testing.assert_array_equal(found[-1], expected.numpy().view(np.uint16))
    assert (found[0] != found[1]).any()


def test_gather_and_merge_are_captured(rng, device):
    case = make_case(rng, [20, 20], device=device)
    stream = kvit.Stream(device)
    op, gather = kvit.Attention(case.view, 4), kvit.Gather(case.view)
    q = to_device(case.queries(rng, 2, 4), device)
    out, merged = (kvit.Buffer.empty(q.shape, "bfloat16", device, stream) for _ in range(2))
    lse, merged_lse = (kvit.Buffer.empty(q.shape[:2], "float32", device, stream) for _ in range(2))
    k, v = (kvit.Buffer.empty((40, 2, 64), "bfloat16", device, stream) for _ in range(2))
    with kvit.Graph.capture(stream) as graph:
        op(q, case.view, case.page_table, out=out, lse=lse, stream=stream)
        kvit.merge_state(out, lse, out, lse, out=merged, lse=merged_lse, stream=stream)
        gather(case.view, case.page_table, out=(k, v), stream=stream)
    graph.launch()
    expected_k, expected_v, _ = reference.gather(case.cache, case.table)
    np.testing.assert_array_equal(k.numpy(), expected_k)
    np.testing.assert_array_equal(v.numpy(), expected_v)
    np.testing.assert_array_equal(merged.numpy(), out.numpy())  # the union of a state with its like: the same outputs
    assert_within(merged_lse.numpy(), lse.numpy() + np.log(2), tolerances.LSE)


def test_a_fault_of_a_launch_is_reported_by_the_operation(rng, device):
    case = make_case(rng, [20, 20], device=device)
    stream = kvit.Stream(device)
    op = kvit.Attention(case.view, 4)
    q = to_device(case.queries(rng, 2, 4), device)
    out = kvit.Buffer.empty(q.shape, "bfloat16", device, stream)
    with kvit.Graph.capture(stream) as graph:
        op(q, case.view, case.page_table, out=out, stream=stream)
    graph.launch()
    op.check(stream)
    case.page_table.lengths.copy_from(np.array([20, 3000], np.int32))
    graph.launch()
    with pytest.raises(kvit.PageTableError, match="sequence 1 has length 3000"):
        op.check(stream)
    assert np.isnan(out.numpy()[1].astype(np.float32)).all()


def test_a_graph_outlives_everything_that_it_was_captured_from(rng, device):
    case = make_case(rng, [20, 20], device=device)
    stream = kvit.Stream(device)
    q = case.queries(rng, 2, 4)
    out = kvit.Buffer.empty(q.shape, "bfloat16", device, stream)
    on_device, op = to_device(q, device), kvit.Attention(case.view, 4)
    with kvit.Graph.capture(stream) as graph:
        op(on_device, case.view, case.page_table, out=out, stream=stream)
    state, bound = case.expect(q)
    del on_device, op, case
    poison = [kvit.Buffer.empty(size, "uint8", device) for size in (1 << 20, 1 << 16, 1 << 12, 1 << 10)]
    for buffer in poison:  # whatever was given back is NaN now
        buffer.fill_bytes(0xFF)
        buffer.stream.synchronize()
    graph.launch()
    assert_within(out.numpy(), state.out, bound)


def test_a_call_without_out_cannot_be_captured(rng, device):
    case = make_case(rng, [20], device=device)
    stream = kvit.Stream(device)
    op, q = kvit.Attention(case.view, 4), to_device(case.queries(rng, 1, 4), device)
    with pytest.raises(kvit.DriverError, match="being captured"), kvit.Graph.capture(stream):
        op(q, case.view, case.page_table, stream=stream)
