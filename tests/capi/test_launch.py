"""launch and reads_ahead in C: operations that launch by a graph, or read ahead, give the bits of those that do not."""

import ctypes
from ctypes import byref, pointer

import numpy as np
import pytest

import kvit
from support import capi, tolerances
from support.caches import make_case, new_tokens, poisoned, to_device
from support.threads import run_side_by_side

QUERY_HEADS = 8


def arguments(*buffers):
    return [pointer(capi.tensor(buffer)) for buffer in buffers]


@pytest.fixture
def case(rng, device):
    return make_case(rng, [20, 3, 33], device=device)


@pytest.fixture
def view(api, case):
    made = api.view(case.view)
    yield made
    api.view_destroy(made)


def test_each_call_gives_the_bits_of_direct_launches(api, rng, device, case, view):
    q = case.queries(rng, 3, QUERY_HEADS)
    k, v = (to_device(rows, device) for rows in new_tokens(rng, 6))
    table, on_device = capi.table_of(case.page_table), to_device(q, device)
    found = []
    for launch in (capi.DIRECT, capi.GRAPH):
        ops = [api.op(view, kind, query_heads=QUERY_HEADS, launch=launch) for kind in range(3)]
        out = to_device(poisoned(q.shape, q.dtype), device)
        rows = [to_device(poisoned(k.shape, q.dtype), device) for _ in "kv"]
        api.append(ops[capi.APPEND], view, byref(table), *arguments(k, v), None, None)
        api.gather(ops[capi.GATHER], view, byref(table), *arguments(*rows), None, None)
        api.attention(ops[capi.ATTENTION], view, byref(table), *arguments(on_device, out), None, None, None)
        for op in ops:
            api.op_check(op, None, None)
            api.op_destroy(op)
        found.append([buffer.numpy().view(np.uint16) for buffer in (out, *rows)])
    for direct, graph in zip(*found, strict=True):
        assert not (direct == 0xFFFF).all(axis=-1).any()
        np.testing.assert_array_equal(graph, direct)


def test_calls_follow_each_other_with_other_arguments_and_streams(api, rng, device, case, view):
    # No two begin with the same batch, and none is waited for before the last is given.
    op = api.op(view, query_heads=QUERY_HEADS, launch=capi.GRAPH)
    cases = [make_case(rng, lengths, device=device) for lengths in ([7], [50, 2], [0, 9, 31], [64])]
    streams = [kvit.Stream(device) for _ in range(2)]
    queries = [each.queries(rng, len(each.table.lengths), QUERY_HEADS) for each in cases]
    outs = [to_device(poisoned(q.shape, q.dtype), device) for q in queries]
    on_device, views = [to_device(q, device) for q in queries], [api.view(each.view) for each in cases]
    if device != "host":
        kvit.Stream.default(device).synchronize()
    for i, each in enumerate(cases):
        table, stream = capi.table_of(each.page_table), streams[i % 2].handle
        api.attention(op, views[i], byref(table), *arguments(on_device[i], outs[i]), None, None, stream)
    for stream in streams:
        api.op_check(op, stream.handle, None)
    for each, q, out in zip(cases, queries, outs, strict=True):
        state, bound = each.expect(q)
        tolerances.assert_within(out.numpy(), state.out, bound)
    for handle in views:
        api.view_destroy(handle)
    api.op_destroy(op)


def test_a_call_is_captured_like_any_other(api, rng, device, case, view):
    op = api.op(view, query_heads=QUERY_HEADS, launch=capi.GRAPH)
    q, stream = case.queries(rng, 3, QUERY_HEADS), kvit.Stream(device)
    out, table = to_device(poisoned(q.shape, q.dtype), device), capi.table_of(case.page_table)
    given = [*arguments(to_device(q, device), out), None, None, stream.handle]
    with kvit.Graph.capture(stream) as graph:
        api.attention(op, view, byref(table), *given)
    stream.synchronize()
    assert (out.numpy().view(np.uint16) == 0xFFFF).all()
    state, bound = case.expect(q)
    for launch in (graph.launch, lambda: api.attention(op, view, byref(table), *given), graph.launch):
        out.fill_bytes(0xFF, stream)
        launch()
        api.op_check(op, stream.handle, None)
        tolerances.assert_within(out.numpy(), state.out, bound)
    api.op_destroy(op)


def test_threads_make_call_and_destroy_operations_of_their_own(api, rng, device, case, view):
    table = capi.table_of(case.page_table)
    queries = [case.queries(rng, 3, QUERY_HEADS) for _ in range(8)]
    places = [to_device(q, device) for q in queries]
    outs = [to_device(poisoned(q.shape, q.dtype), device) for q in queries]
    streams = [kvit.Stream(device) for _ in queries]
    if device != "host":
        kvit.Stream.default(device).synchronize()

    def work(i):
        stream = streams[i].handle
        for _ in range(5):
            op = api.op(view, query_heads=QUERY_HEADS, launch=capi.GRAPH)
            for _ in range(10):
                api.attention(op, view, byref(table), *arguments(places[i], outs[i]), None, None, stream)
            api.op_check(op, stream, None)
            api.op_destroy(op)
            status = api.table.attention(op, view, byref(table), *arguments(places[i], outs[i]), None, None, stream)
            assert capi.STATUSES[status] == "HANDLE"

    run_side_by_side(work)
    for q, out in zip(queries, outs, strict=True):
        state, bound = case.expect(q)
        tolerances.assert_within(out.numpy(), state.out, bound)


@pytest.mark.parametrize("launch", [capi.DIRECT, capi.GRAPH])
def test_calls_that_read_ahead_give_the_same_bits_behind_the_append_of_the_new_tokens(
    api, rng, device, case, view, launch
):
    # The rows of the new tokens are NaN until the append in front has written them: reading one too early shows.
    table = capi.table_of(case.page_table)
    k, v = (to_device(rows, device) for rows in new_tokens(rng, 3))
    q = case.queries(rng, 3, QUERY_HEADS)
    queries = to_device(q, device)
    unwritten = [to_device(poisoned(k.shape, q.dtype), device) for _ in "kv"]
    append = api.op(view, capi.APPEND)
    ops = [api.op(view, query_heads=QUERY_HEADS, launch=launch, reads_ahead=ahead) for ahead in (0, 1)]
    found = []
    for ahead, op in enumerate(ops):
        text = ctypes.create_string_buffer(4096)
        api.op_explain(op, text, 4096, None)
        assert (b"\n  ahead      lengths, page tables and old K and V are read before" in text.value) == ahead
        outs = [to_device(poisoned(q.shape, q.dtype), device) for _ in range(5)]
        for out in outs:
            for rows in (unwritten, (k, v)):
                api.append(append, view, byref(table), *arguments(*rows), None, None)
            api.attention(op, view, byref(table), *arguments(queries, out), None, None, None)
        api.op_check(op, None, None)
        found += [out.numpy().view(np.uint16) for out in outs]
    assert not (found[0] == 0xFFFF).all(axis=-1).any()
    assert not np.isnan(found[0].view(q.dtype).astype(np.float32)).any()
    for bits in found[1:]:
        np.testing.assert_array_equal(bits, found[0])
    for op in (append, *ops):
        api.op_destroy(op)


@pytest.mark.parametrize("kind", range(3))
def test_an_operation_explains_how_it_is_launched(api, view, kind):
    for launch, word in ((capi.DIRECT, b"direct"), (capi.GRAPH, b"graph")):
        op = api.op(view, kind, query_heads=QUERY_HEADS, launch=launch)
        text = ctypes.create_string_buffer(4096)
        api.op_explain(op, text, 4096, None)
        assert b"\n  launch     " + word in text.value
        api.op_destroy(op)


@pytest.mark.parametrize("kind", range(3))
def test_an_unknown_launch_is_refused_with_those_that_would_do(api, view, kind):
    for launch in (2, -1, 2**31 - 1):
        words = rf"launch is {launch}; give KVIT_LAUNCH_DIRECT \(0\) or KVIT_LAUNCH_GRAPH \(1\)"
        with pytest.raises(capi.Refused, match=words) as error:
            api.op(view, kind, query_heads=QUERY_HEADS, launch=launch)
        assert error.value.status == "ARGUMENT"


def test_options_of_before_there_was_a_choice_are_read_no_further(api, view):
    # What lies behind the 48 bytes of an older caller is not its options, and says nothing.
    options = capi.options(capi.OpOptions, view=view, query_heads=QUERY_HEADS, launch=77, reads_ahead=-1)
    options.size = capi.OpOptions.launch.offset
    assert options.size == 48
    op = api.make("op_create", options)
    text = ctypes.create_string_buffer(4096)
    api.op_explain(op, text, 4096, None)
    assert b"launch     direct" in text.value and b"\n  ahead " not in text.value
    api.op_destroy(op)
