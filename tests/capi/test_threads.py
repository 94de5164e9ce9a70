"""Eight threads at once, each with operations of its own, on views and tables that they share."""

import gc
import sys
import threading
from ctypes import byref, pointer

import numpy as np
import pytest

import kvit
from support import capi, tolerances
from support.caches import make_case, poisoned, to_device
from support.memory import used_memory

THREADS, ROUNDS = 8, 25


def run(work):
    """work(i) in eight threads that start together; the first exception is raised here."""
    barrier, problems = threading.Barrier(THREADS), []

    def each(i):
        try:
            barrier.wait()
            work(i)
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=each, args=(i,)) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems:
        raise problems[0]


def test_operations_of_eight_threads_do_not_disturb_each_other(api, rng, device):
    case = make_case(rng, [20, 3, 0, 33], device=device)
    view, table = api.view(case.view), capi.table_of(case.page_table)
    queries = [case.queries(rng, 4, 8) for _ in range(THREADS)]
    streams = [kvit.Stream(device) if device != "host" else None for _ in range(THREADS)]
    outs = [to_device(poisoned(q.shape, q.dtype), device) for q in queries]
    places = [to_device(q, device) for q in queries]
    if device != "host":
        kvit.Stream.default(device).synchronize()

    def work(i):
        stream = None if streams[i] is None else streams[i].handle
        op = api.op(view, query_heads=8)
        arguments = [pointer(capi.tensor(x)) for x in (places[i], outs[i])]
        for _ in range(ROUNDS):
            api.attention(op, view, byref(table), *arguments, None, None, stream)
        api.op_check(op, stream, None)
        api.op_destroy(op)

    run(work)
    for q, out in zip(queries, outs, strict=True):
        state, bound = case.expect(q)
        tolerances.assert_within(out.numpy(), state.out, bound)
    api.view_destroy(view)


def test_handles_may_come_and_go_in_eight_threads(api, rng):
    case = make_case(rng, [20])
    shared = api.view(case.view)

    def work(i):
        mine = [api.view(case.view) for _ in range(ROUNDS)]
        op = api.op(shared, query_heads=8)
        for view in mine:
            assert api.ask("view_query", view, capi.ViewInfo).page_size == 16
            api.view_destroy(view)
        for view in mine:
            assert api.table.view_destroy(view) == capi.STATUSES.index("HANDLE")
        api.op_destroy(op)

    run(work)
    api.view_destroy(shared)


def test_a_view_that_goes_while_others_use_it_is_refused_and_no_more(api, rng):
    case = make_case(rng, [20])
    view, table = api.view(case.view), capi.table_of(case.page_table)
    q = case.queries(rng, 1, 8)
    statuses = [set() for _ in range(THREADS)]
    ops = [api.op(view, query_heads=8) for _ in range(THREADS)]

    def work(i):
        out = np.zeros_like(q)
        arguments = [pointer(capi.tensor(x)) for x in (q, out)]
        for step in range(ROUNDS):
            if i == 0 and step == ROUNDS // 2:
                api.view_destroy(view)
            statuses[i].add(api.table.attention(ops[i], view, byref(table), *arguments, None, None, None))

    run(work)
    for op in ops:
        api.op_destroy(op)
    assert set.union(*statuses) == {0, capi.STATUSES.index("HANDLE")}


def memory_in_use(device):
    """(blocks of Python's allocator, bytes of the device)."""
    gc.collect()
    return sys.getallocatedblocks(), 0 if device == "host" else used_memory(device)


@pytest.mark.parametrize("launch", [capi.DIRECT, capi.GRAPH])
def test_thousands_of_calls_from_eight_threads_leak_nothing(api, rng, device, launch):
    calls = 40 if device == "host" else 1250  # the host computes, a GPU only gets launches
    case = make_case(rng, [20, 3], device=device)
    view, table = api.view(case.view), capi.table_of(case.page_table)
    kinds = (capi.APPEND, capi.ATTENTION)
    ops = [[api.op(view, kind, query_heads=8, launch=launch) for kind in kinds] for _ in range(THREADS)]
    q, out, k, v = (
        capi.tensor(to_device(poisoned((2, heads, 64), case.cache.k.dtype), device)) for heads in (8, 8, 2, 2)
    )

    def work(i):
        append, attention = ops[i]
        for _ in range(calls):
            assert api.table.append(append, view, byref(table), byref(k), byref(v), None, None) == 0
            assert api.table.attention(attention, view, byref(table), byref(q), byref(out), None, None, None) == 0
            # A refusal, with its words, must not leak either.
            assert api.table.attention(append, view, None, None, None, None, None, None) != 0
        api.op_check(attention, None, None)

    run(work)  # whatever is made once is made now
    blocks, num_bytes = memory_in_use(device)
    run(work)
    after = memory_in_use(device)
    assert after[0] - blocks < THREADS * calls / 2  # a block for each call would be more than twice that
    assert after[1] <= num_bytes
    for op in [op for pair in ops for op in pair]:
        api.op_destroy(op)
    api.view_destroy(view)
