"""Forks while other threads compute: a child goes on where it can, refuses where it cannot, and never hangs."""

import os

import pytest

from support.processes import run_idle, run_python

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")

# Forks again and again while four threads call. A child that hangs is ended by its alarm, which its status shows.
FORKS = """
import warnings
# Python 3.12 and newer warn of what these tests are about.
warnings.filterwarnings("ignore", ".* is multi-threaded, use of fork", DeprecationWarning)
def statuses_of_children(child, count=8):
    found = []
    for _ in range(count):
        number = os.fork()
        if number == 0:
            signal.alarm(10)
            status = 1
            try:
                status = child()
            except BaseException as error:
                print(repr(error), file=sys.stderr, flush=True)
            os._exit(status)
        found.append(os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]))
    return found

def keep_calling(work):
    begun = threading.Barrier(5)
    def run(i):
        work(i)
        begun.wait()
        while True:
            work(i)
    for i in range(4):
        threading.Thread(target=run, args=(i,), daemon=True).start()
    begun.wait()
"""

HOST = f"""
import os, signal, sys, threading
import numpy as np
import kvit
{FORKS}
rng = np.random.default_rng(0)
rows = rng.standard_normal((2, 400, 2, 64)).astype(np.float16)
q = rng.standard_normal((2, 8, 64)).astype(np.float16)
cache = kvit.PagedCache(60, 16, 2, 64, dtype="float16", device="host")
seqs = [cache.sequence(), cache.sequence()]
cache.append(seqs, *rows, [300, 100])
table = cache.table(seqs)
"""


@pytest.mark.parametrize("launch", ["direct", "graph"])
def test_a_child_finds_the_host_as_between_two_calls(launch):
    # The child calls the very operations, and streams, that the parent's threads were in: one for each launch at a
    # time, so that locks are held nearly always. Their workspaces must be zero, or the bits would be others.
    program = f"""{HOST}
ops = [kvit.Attention(cache.view, 8, launch={launch!r}) for _ in range(4)]
streams = [kvit.Stream("host") for _ in range(3)]
streams.append(streams[0])
outs = [np.zeros_like(q) for _ in range(4)]
expected = np.asarray(ops[0](q, cache.view, table))
def work(i):
    ops[i](q, cache.view, table, out=outs[i], stream=streams[i])
def child():
    for i in range(4):
        outs[i][:] = np.nan
        work(i)
        streams[i].synchronize()
        assert (outs[i] == expected).all()
        assert not ops[i].workspace.numpy().any()
    with kvit.Graph.capture(streams[0]) as graph:
        work(0)
    graph.launch()
    fresh = cache.sequence()
    cache.append([fresh], *rows[:, :5])
    kvit.attention(q[:1], cache, [fresh])
    return 7
keep_calling(work)
print(statuses_of_children(child) == [7] * 8)
"""
    assert run_python(program) == (0, "True", "")


def test_a_child_may_be_forked_by_a_child():
    program = f"""{HOST}
op = kvit.Attention(cache.view, 8)
out = np.zeros_like(q)
def work(i):
    op(q, cache.view, table, out=out)
def grandchild():
    work(0)
    return 7
def child():
    keep_calling(work)
    return 7 if statuses_of_children(grandchild, 4) == [7] * 4 else 1
keep_calling(work)
print(statuses_of_children(child, 4) == [7] * 4)
"""
    assert run_python(program) == (0, "True", "")


@pytest.mark.parametrize("call", ["attend", "attend_by_graph", "write_by_graph"])
def test_a_child_of_a_process_that_uses_a_gpu_is_told_so(tmp_path, call):
    program = f"""
import os, signal, threading
import host_calls, kvit
{FORKS}
case = host_calls.Case("cuda:0")
call = getattr(case, {call!r})
call()
def child():
    launches = count("launches") + count("graph_launches")
    for use in (call, case.stream.synchronize, lambda: kvit.Buffer.empty((4,), "uint8", "cuda:0")):
        try:
            use()
        except kvit.DriverError as error:
            assert error.status == 3 and "forked after CUDA was used in its parent: start it by spawn" in str(error)
        else:
            return 2
    assert count("launches") + count("graph_launches") == launches
    del case.stream, case.q
    return 7
keep_calling(lambda i: call())
found = statuses_of_children(child)
call()
"""
    assert run_idle(tmp_path, program) == [7] * 8
