"""Calls from C into a stream that is being captured: the graph does them again, on what its arguments hold by then."""

from ctypes import byref, pointer

import numpy as np
import pytest

import kvit
from kvit import reference
from support import capi, tolerances
from support.caches import BFLOAT16, NO_PAGE, poisoned, to_device

KV_HEADS, QUERY_HEADS, HEAD_DIM, PAGE_SIZE, SLOTS = 2, 8, 64, 4, 5


class Engine:
    """A C host's decode step, append and then attention, with the reference doing the same beside it."""

    def __init__(self, api, rng, device, lengths):
        self.api, self.rng, self.stream, self.held = api, rng, kvit.Stream(device), list(lengths)
        count = len(lengths)
        self.pages = rng.permutation(count * SLOTS).astype(np.int32).reshape(count, SLOTS)
        pools = [poisoned((count * SLOTS, PAGE_SIZE, KV_HEADS, HEAD_DIM), BFLOAT16) for _ in range(2)]
        self.cache = reference.Cache(*pools, "NHD")
        reference.append(self.cache, self.plain(), *self.rows(sum(lengths), KV_HEADS), lengths)
        self.pools = [to_device(pool, device) for pool in pools]
        new, queries = (
            poisoned((count, KV_HEADS, HEAD_DIM), BFLOAT16),
            poisoned((count, QUERY_HEADS, HEAD_DIM), BFLOAT16),
        )
        self.k, self.v, self.q, self.out = (to_device(rows, device) for rows in (new, new, queries, queries))
        self.slots = to_device(np.full((count, SLOTS), NO_PAGE, np.int32), device)
        self.lengths = to_device(np.zeros(count, np.int32), device)
        self.view = api.view(kvit.CacheView(*self.pools))
        self.append, self.attention = (
            api.op(self.view, kind, query_heads=QUERY_HEADS) for kind in (capi.APPEND, capi.ATTENTION)
        )

    def close(self):
        self.stream.synchronize()
        for op in (self.append, self.attention):
            self.api.op_destroy(op)
        self.api.view_destroy(self.view)

    def rows(self, count, heads):
        return self.rng.standard_normal((2, count, heads, HEAD_DIM)).astype(BFLOAT16)

    def used(self):
        return [-(-length // PAGE_SIZE) for length in self.held]

    def plain(self):
        return reference.Table([row[:used] for row, used in zip(self.pages, self.used(), strict=True)], self.held)

    def call(self):
        """What the host does in a step. The structs may go when it is done; the memory may not."""
        table = capi.table(self.slots, self.lengths)
        k, v, q, out = (pointer(capi.tensor(buffer)) for buffer in (self.k, self.v, self.q, self.out))
        stream = self.stream.handle
        self.api.append(self.append, self.view, byref(table), k, v, None, stream)
        self.api.attention(self.attention, self.view, byref(table), q, out, None, None, stream)

    def step(self, launch):
        """One new token for each sequence, all written in place before `launch`."""
        self.held = [length + 1 for length in self.held]
        (k, v), (q, _) = self.rows(len(self.held), KV_HEADS), self.rows(len(self.held), QUERY_HEADS)
        slots = np.full(self.pages.shape, NO_PAGE, np.int32)
        for row, pages, used in zip(slots, self.pages, self.used(), strict=True):
            row[:used] = pages[:used]
        fresh = ((self.k, k), (self.v, v), (self.q, q), (self.slots, slots), (self.lengths, np.int32(self.held)))
        for buffer, array in fresh:
            buffer.copy_from(array)
        self.out.fill_bytes(0xFF)
        self.out.stream.synchronize()
        launch()
        for op in (self.append, self.attention):
            self.api.op_check(op, self.stream.handle, None)
        reference.append(self.cache, self.plain(), k, v)
        state = reference.paged_attention(q, self.cache, self.plain())
        positive = reference.Cache(self.cache.k, np.abs(self.cache.v), "NHD")
        magnitude = reference.paged_attention(q, positive, self.plain()).out
        tolerances.assert_within(self.out.numpy(), state.out, tolerances.attention_bound(magnitude, BFLOAT16))


@pytest.fixture
def engine(api, rng, device):
    # From nothing, from the middle of a page, and up to the end of one.
    made = Engine(api, rng, device, [0, 6, 8])
    yield made
    made.close()


def test_a_step_that_was_captured_follows_growing_sequences(engine):
    with kvit.Graph.capture(engine.stream) as graph:
        engine.call()
    for _ in range(10):
        engine.step(graph.launch)


def test_nothing_runs_while_it_is_captured(engine):
    engine.out.fill_bytes(0xFF)
    engine.out.stream.synchronize()
    with kvit.Graph.capture(engine.stream):
        engine.call()
    engine.stream.synchronize()
    assert (engine.out.numpy().view(np.uint16) == 0xFFFF).all()


def test_calls_and_launches_of_their_graph_take_turns(engine):
    engine.step(engine.call)
    with kvit.Graph.capture(engine.stream) as graph:
        engine.call()
    for launch in (graph.launch, engine.call, graph.launch):
        engine.step(launch)


def test_a_refusal_leaves_the_capture_as_it_was(engine):
    with kvit.Graph.capture(engine.stream) as graph:
        with pytest.raises(capi.Refused, match="q is NULL"):
            engine.api.attention(engine.attention, engine.view, None, None, None, None, None, engine.stream.handle)
        engine.call()
    engine.step(graph.launch)


def test_a_stream_of_the_host_is_known_while_it_lives(api, rng):
    engine = Engine(api, rng, "host", [5])
    engine.step(engine.call)
    gone = kvit.Stream("host").handle
    for handle in (gone, 77, engine.stream.handle + 8):
        refused = f"stream is {handle:#x}, which is none of the host's; give NULL"
        table, rows = capi.table(engine.slots, engine.lengths), pointer(capi.tensor(engine.q))
        with pytest.raises(capi.Refused, match=refused) as error:
            api.attention(engine.attention, engine.view, byref(table), rows, rows, None, None, handle)
        assert error.value.status == "DEVICE"
        with pytest.raises(capi.Refused, match=refused):
            api.op_check(engine.attention, handle, None)
    engine.close()
