"""Threads, forks and the end of the process: calls side by side give the bits of calls in a row, and leave nothing."""

import gc
import os
import sys
import sysconfig

import numpy as np
import pytest

import kvit
from support.caches import make_case, to_device
from support.memory import used_memory
from support.processes import run_python
from support.threads import run_side_by_side
from support.tolerances import assert_within

NUM_THREADS, STREAMS_OF_A_THREAD = 8, 4


class Call:
    """One attention on a stream of its own, with what it must give."""

    def __init__(self, seed, device, lengths=None, query_heads=4):
        rng = np.random.default_rng(seed)
        # Lengths that differ from call to call: a call that reads another's memory gives other bits.
        self.case = make_case(rng, lengths or [5 + seed, 40 + 3 * seed], device=device)
        self.stream = kvit.Stream(device)
        self.op = kvit.Attention(self.case.view, query_heads)
        q = self.case.queries(rng, len(self.case.table.lengths), query_heads)
        self.q = to_device(q, device)
        self.out = kvit.Buffer.empty(q.shape, "bfloat16", device, self.stream)
        self.run()
        self.expected = self.bits()
        state, bound = self.case.expect(q)
        assert_within(self.out.numpy(), state.out, bound)

    def run(self, **changes):
        arguments = dict(out=self.out, stream=self.stream) | changes
        return self.op(self.q, self.case.view, self.case.page_table, **arguments)

    def bits(self):
        return self.out.numpy().view(np.uint16)


def devices_like(device):
    """Two GPUs where there are two: threads take turns on them."""
    if device == "host":
        return [device]
    from kvit._native.driver import num_gpus

    return [f"cuda:{i}" for i in range(min(2, num_gpus()))]


def test_many_threads_on_many_streams_give_the_bits_of_one(device):
    devices = devices_like(device)
    calls = [
        [Call(STREAMS_OF_A_THREAD * i + j, devices[i % len(devices)]) for j in range(STREAMS_OF_A_THREAD)]
        for i in range(NUM_THREADS)
    ]

    def work(i):
        for _ in range(25):
            for call in calls[i]:
                call.out.fill_bytes(0xFF, call.stream)
                call.run()
            for call in calls[i]:
                np.testing.assert_array_equal(call.bits(), call.expected)
                call.op.check(call.stream)

    run_side_by_side(work)


def test_threads_may_share_an_operation_and_its_stream(device):
    # Its workspace serves one call at a time: the stream puts them in order.
    shared = Call(1, device)
    outs = [kvit.Buffer.empty(shared.q.shape, "bfloat16", device, shared.stream) for _ in range(NUM_THREADS)]

    def work(i):
        for _ in range(50):
            shared.run(out=outs[i])
        return outs[i].numpy().view(np.uint16)

    for found in run_side_by_side(work):
        np.testing.assert_array_equal(found, shared.expected)


def test_threads_may_capture_and_launch_graphs_of_their_own(device):
    calls = [Call(seed, device) for seed in range(NUM_THREADS)]

    def work(i):
        call = calls[i]
        for _ in range(10):
            with kvit.Graph.capture(call.stream) as graph:
                call.run()
            call.out.fill_bytes(0xFF, call.stream)
            graph.launch()
            np.testing.assert_array_equal(call.bits(), call.expected)

    run_side_by_side(work)


def test_threads_may_launch_one_graph_on_streams_of_their_own(device):
    # Launches of a graph wait for each other, or they would share its operation's workspace.
    call = Call(3, device)
    with kvit.Graph.capture(call.stream) as graph:
        call.run()

    def work(_):
        stream = kvit.Stream(device)
        for _ in range(20):
            graph.launch(stream)
        stream.synchronize()

    run_side_by_side(work)
    np.testing.assert_array_equal(call.bits(), call.expected)


def what_lives(calls):
    """References to what calls are given, how many Tensors there are, and memory blocks of Python."""
    gc.collect()
    references = [
        sys.getrefcount(thing)
        for call in calls
        for thing in (call.q, call.out, call.stream, call.op, call.case.view, call.case.page_table)
    ]
    return references, sum(isinstance(thing, kvit.Tensor) for thing in gc.get_objects()), sys.getallocatedblocks()


def test_ten_thousand_calls_from_eight_threads_leave_nothing(device):
    # Of nothing, so that each is soon over, and of so many heads that lost outputs would show.
    calls = [Call(seed, device, [0], query_heads=64) for seed in range(NUM_THREADS)]
    misshapen = np.zeros((2, 64, 64), np.uint16)

    def work(i, rounds):
        call = calls[i]
        for _ in range(rounds):
            call.run()
            call.run(out=None)  # allocated, and given back at once
            call.run(stream=None if device == "host" else call.stream.handle, out=None)
            with pytest.raises(kvit.ShapeError):
                call.run(out=misshapen)
        call.stream.synchronize()

    run_side_by_side(lambda i: work(i, 10))  # loads, caches and pools that stay
    references, tensors, blocks = what_lives(calls)
    used = used_memory(device)
    run_side_by_side(lambda i: work(i, 10_000 // NUM_THREADS // 4 + 1))
    after_references, after_tensors, after_blocks = what_lives(calls)
    assert after_references == references
    assert after_tensors == tensors
    assert after_blocks - blocks < 500  # what threads and pytest keep; one block a call would be 10,000
    # A pool counts exactly; malloc keeps some of what it got back, but no 5,000 outputs of 8 KiB.
    assert used_memory(device) - used <= (16 << 20 if device == "host" else 0)


STEP = """
import os, sys, threading, numpy
import kvit
device = sys.argv[1]
def step():
    "A small attention: a sequence of three equal tokens gives their value."
    cache = kvit.PagedCache(4, 16, 1, 64, device=device)
    sequence = cache.sequence()
    ones = kvit.Tensor.wrap(kvit.Buffer.from_numpy(numpy.full((3, 1, 64), 0x3F80, numpy.uint16), device), "bfloat16")
    cache.append([sequence], ones, ones)
    out = kvit.attention(kvit.Tensor.wrap(ones), cache, [sequence]).numpy()
    assert (out.astype(numpy.float32) == 1).all()
"""


def test_threads_that_are_the_first_to_use_kvit_load_each_kernel_once(device):
    program = f"""{STEP}
from kvit.selection import registry
from kvit._native.module import Kernel
found, barrier = [], threading.Barrier(8)
def work():
    barrier.wait()
    kernels = registry.candidates("decode", copies="cp_async", kv="i8", variant="plain")  # which every build has
    found.append([Kernel.load(entry, device) for entry in kernels])
    step()
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(found), {{id(kernel) for kernel in found[0]}} == {{id(kernel) for kernels in found for kernel in kernels}})
"""
    assert run_python(program, device) == (0, "8 True", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_fork_before_the_first_use_is_as_good_as_its_parent(device):
    program = f"""{STEP}
child = os.fork()
step()
if child == 0:
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert run_python(program, device) == (0, "7", "")


def test_the_process_ends_silently_while_threads_still_work(device):
    program = f"""{STEP}
from kvit import Graph, Stream, Buffer
stream = Stream(device)
kept = Buffer.empty(64, "float32", device, stream)
with Graph.capture(stream) as graph:
    kept.fill_bytes(0, stream)
cycle = [graph, kept, stream]
cycle.append(cycle)
begun = threading.Barrier(5)
def work():
    step()
    begun.wait()
    while True:
        step()
for _ in range(4):
    threading.Thread(target=work, daemon=True).start()
begun.wait()
graph.launch()
"""
    for _ in range(3):  # threads are cut off at another point each time
        assert run_python(program, device) == (0, "", "")


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="needs a free-threaded Python")
def test_a_free_threaded_python_turns_the_gil_on_for_kvit_and_says_so():
    # What the modules share is guarded by the GIL: they must not say that they can do without.
    program = """
import sys, warnings
import numpy
before = sys._is_gil_enabled()
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import kvit
    kvit.Buffer
print(before, sys._is_gil_enabled(), ["global interpreter lock" in str(warning.message) for warning in caught])
"""
    assert run_python(program) == (0, "False True [True]", "")
