"""launch="graph" of Attention, Append and Gather: the bits of launch="direct", for less of the caller's time."""

import gc
import sys
import threading

import numpy as np
import pytest

import kvit
from support.caches import make_case, new_cache, new_tokens, poisoned, to_device
from support.memory import used_memory
from support.processes import CALLS, run_idle, run_python
from support.threads import run_side_by_side
from support.tolerances import assert_within

QUERY_HEADS = 8


def bits(buffer):
    return buffer.numpy().view(np.uint16)


class Step:
    """One decode step on memory of its own, for an operation that others use too."""

    def __init__(self, seed, device):
        rng = np.random.default_rng(seed)
        # Another batch, other lengths and other pages each time: nothing of a call is like the one before it. Several
        # CTAs share the longer ones, in the operation's workspace.
        lengths = [5 + 60 * seed, 400 + 3 * seed, 0][: 1 + seed % 3]
        self.case = make_case(rng, lengths, device=device, page_size=(16, 8)[seed % 2])
        self.stream = kvit.Stream(device)
        q = self.case.queries(rng, len(lengths), QUERY_HEADS)
        self.q = to_device(q, device)
        self.out = to_device(poisoned(q.shape, q.dtype), device)
        self.q.stream.synchronize()
        self.state, self.bound = self.case.expect(q)

    def run(self, op, stream=None):
        op(self.q, self.case.view, self.case.page_table, out=self.out, stream=stream or self.stream)

    def check(self):
        assert_within(self.out.numpy(), self.state.out, self.bound)


@pytest.fixture
def steps(device):
    return [Step(seed, device) for seed in range(9)]


def by_graph(case):
    return kvit.Attention(case.view, QUERY_HEADS, launch="graph")


def test_calls_that_have_nothing_in_common_follow_each_other(device, steps):
    # None is waited for: what a later call sets must not reach an earlier one that is still under way.
    op, stream = by_graph(steps[0].case), kvit.Stream(device)
    for step in steps:
        step.run(op, stream)
    stream.synchronize()
    op.check(stream)
    for step in steps:
        step.check()


def test_attention_has_the_bits_of_direct_launches(device, steps):
    direct, graph = kvit.Attention(steps[0].case.view, QUERY_HEADS), by_graph(steps[0].case)
    for step in steps:
        step.run(direct)
        step.stream.synchronize()
        expected = bits(step.out)
        step.out.fill_bytes(0xFF, step.stream)
        step.run(graph)
        step.stream.synchronize()
        np.testing.assert_array_equal(bits(step.out), expected)


@pytest.mark.parametrize("extras", [False, True])
def test_append_and_gather_have_the_bits_of_direct_launches(rng, device, extras):
    # With a bias and a prefix a call goes another way through Python; the grid follows the number of tokens.
    lengths = [20, 3, 33]
    case = make_case(rng, lengths, device=device)
    options = {}
    if extras:
        options["k_bias"] = to_device(rng.standard_normal((2, 64)).astype(case.cache.k.dtype), device)
        options["prefix_lengths"] = to_device(np.array([1, 0, 2], np.int32), device)
    stream = kvit.Stream(device)
    found = {}
    for launch in ("direct", "graph"):
        append, gather = kvit.Append(case.view, launch=launch), kvit.Gather(case.view, launch=launch)
        found[launch] = []
        for each in (1, 3):
            k, v = (to_device(x, device) for x in new_tokens(np.random.default_rng(each), 3 * each))
            outs = [to_device(poisoned(k.shape, case.cache.k.dtype), device) for _ in "kv"]
            kvit.Stream.default(device).synchronize()
            append(k, v, case.view, case.page_table, stream=stream, **options)
            gather(case.view, case.page_table, out=outs, stream=stream)
            stream.synchronize()
            append.check(stream)
            gather.check(stream)
            found[launch] += [bits(out) for out in outs]
    for direct, graph in zip(found["direct"], found["graph"], strict=True):
        assert not (direct == 0xFFFF).all(axis=-1).any()
        np.testing.assert_array_equal(graph, direct)


def test_streams_and_threads_share_an_operation(device, steps):
    # Its workspace serves one call at a time: as its graph never runs beside itself, nobody has to order the streams.
    op = by_graph(steps[0].case)

    def work(i):
        for _ in range(20):
            steps[i].out.fill_bytes(0xFF, steps[i].stream)
            steps[i].run(op)
        steps[i].stream.synchronize()

    run_side_by_side(work, len(steps))
    op.check(steps[0].stream)
    for step in steps:
        step.check()


def test_a_step_is_captured_like_any_other(device, steps):
    step = steps[4]
    op = by_graph(step.case)
    with kvit.Graph.capture(step.stream) as graph:
        step.run(op)
    step.stream.synchronize()
    assert (bits(step.out) == 0xFFFF).all()
    for launch in (graph.launch, lambda: step.run(op), graph.launch):
        step.out.fill_bytes(0xFF, step.stream)
        launch()
        step.stream.synchronize()
        step.check()


def test_other_threads_launch_while_a_stream_is_captured(device, steps):
    op, captured = by_graph(steps[0].case), steps[3]
    with kvit.Graph.capture(captured.stream) as graph:
        thread = threading.Thread(target=lambda: [step.run(op) for step in steps[4:]])
        thread.start()
        captured.run(op)
        thread.join()
    for step in steps[4:]:
        step.stream.synchronize()
        step.check()
    graph.launch()
    captured.stream.synchronize()
    captured.check()


def test_a_fault_is_reported_as_ever(rng, device):
    case = make_case(rng, [20, 3], device=device)
    q = to_device(case.queries(rng, 2, QUERY_HEADS), device)
    op = by_graph(case)
    case.page_table.lengths.copy_from(np.array([20, 3000], np.int32))
    op(q, case.view, case.page_table)
    with pytest.raises(kvit.PageTableError, match="sequence 1 has length 3000"):
        op.check()


@pytest.mark.parametrize("kind", [lambda view, **o: kvit.Attention(view, 4, **o), kvit.Append, kvit.Gather])
def test_an_unknown_launch_is_refused_with_those_that_would_do(kind):
    view = new_cache().view
    for wrong in ("Graph", None, True):
        with pytest.raises(ValueError, match=f'launch is {wrong!r}; give "direct" or "graph"'):
            kind(view, launch=wrong)
    assert (kind(view).launch, kind(view, launch="graph").launch) == ("direct", "graph")


def test_explain_says_how_it_is_launched():
    view = new_cache().view
    assert "\n  launch     direct: the kernel itself" in kvit.Attention(view, 4).explain()
    assert "\n  launch     graph: a graph of the kernel" in kvit.Attention(view, 4, launch="graph").explain()


def test_operations_that_go_and_calls_that_are_made_leave_nothing(device):
    steps = [Step(seed, device) for seed in range(4)]

    def live(rounds):
        op = by_graph(steps[0].case)
        for _ in range(rounds):
            for step in steps:
                step.run(op)
        for step in steps:
            step.stream.synchronize()

    live(2)  # whatever is made once is made now
    gc.collect()
    kvit.Stream.default(device).synchronize()  # memory is given back in its order
    used, blocks = used_memory(device), sys.getallocatedblocks()
    references = [sys.getrefcount(thing) for step in steps for thing in (step.q, step.out, step.stream, step.case.view)]
    for _ in range(20):
        live(1 if device == "host" else 100)
    gc.collect()
    kvit.Stream.default(device).synchronize()
    after = [sys.getrefcount(thing) for step in steps for thing in (step.q, step.out, step.stream, step.case.view)]
    assert after == references
    assert sys.getallocatedblocks() - blocks < 100
    assert used_memory(device) - used <= (16 << 20 if device == "host" else 0)


def test_the_process_ends_silently_with_operations_alive(device):
    program = """
import sys, threading, numpy
import kvit
device = sys.argv[1]
pool = kvit.Buffer.from_numpy(numpy.zeros((2, 4, 16, 1, 64), numpy.uint16), device)
view = kvit.CacheView(*(kvit.Tensor.wrap(pool[i], "bfloat16") for i in range(2)))
pages, lengths = (kvit.Buffer.from_numpy(numpy.int32(x), device) for x in ([[0]], [3]))
table = kvit.PageTable(pages, lengths=lengths)
q = kvit.Tensor.wrap(kvit.Buffer.from_numpy(numpy.zeros((1, 4, 64), numpy.uint16), device), "bfloat16")
op = kvit.Attention(view, 4, launch="graph")
cycle = [op, kvit.Append(view, launch="graph")]
cycle.append(cycle)
begun = threading.Barrier(3)
def work():
    stream = kvit.Stream(device)
    op(q, view, table, stream=stream)
    begun.wait()
    while True:
        op(q, view, table, stream=stream)
for _ in range(2):
    threading.Thread(target=work, daemon=True).start()
begun.wait()
"""
    for _ in range(3):  # threads are cut off at another point each time
        assert run_python(program, device) == (0, "", "")


@pytest.mark.parametrize("call", ["attend_by_graph", "write_by_graph"])
def test_a_call_sets_one_graph_and_launches_it_within_its_budget(tmp_path, call):
    # On a driver that returns at once, so no GPU is needed and what is timed is kvit's own part.
    launches, graph_launches, graphs, allocations, blocks, us = run_idle(tmp_path, CALLS, call)
    assert (launches, graph_launches, graphs, allocations) == (0, 1000, 0, 0)
    assert blocks < 10  # the counts themselves
    assert us < 3.5
