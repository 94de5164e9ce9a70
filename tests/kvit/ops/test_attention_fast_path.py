"""kvit.Attention's quick way: which calls take it, that it computes and refuses the same; what a quick call costs."""

import sys

import numpy as np
import pytest

import kvit
from support.caches import BFLOAT16, make_case, new_cache, poisoned, to_device
from support.processes import CALLS, run_idle
from support.tolerances import LSE, assert_within


@pytest.fixture
def no_python(monkeypatch):
    """Fails every call that does not fit as it is."""

    def refuse(*arguments):
        raise AssertionError("this call went through Python")

    monkeypatch.setattr(kvit.Attention, "_fitting", refuse)


@pytest.mark.parametrize("storage", ["pools", "halves", "padded"])
@pytest.mark.parametrize("table", ["dense", "ragged"])
def test_what_fits_goes_straight_to_the_kernel(rng, device, no_python, storage, table):
    case = make_case(rng, [20, 0, 33], storage=storage, table=table, device=device)
    q = case.queries(rng, 6, 8)
    out, lse = kvit.Buffer.empty(q.shape, "bfloat16", device), kvit.Buffer.empty(q.shape[:2], "float32", device)
    starts = to_device(np.array([0, 1, 1, 6], np.int32), device)
    op, on_device = kvit.Attention(case.view, 8), to_device(q, device)
    for counts, indptr in (([2, 2, 2], None), ([1, 0, 5], starts)):
        assert op(on_device, case.view, case.page_table, out=out, lse=lse, query_indptr=indptr) is out
        state, bound = case.expect(q, counts)
        assert_within(out.numpy(), state.out, bound)
        assert_within(lse.numpy(), state.lse, LSE)


def test_an_output_is_allocated_if_absent(rng, device, no_python):
    case = make_case(rng, [20, 3], device=device)
    stream = kvit.Stream(device)
    q = case.queries(rng, 2, 4)
    out = kvit.Attention(case.view, 4)(to_device(q, device), case.view, case.page_table, stream=stream)
    assert out.stream is stream and (out.shape, str(out.dtype)) == (q.shape, "bfloat16")
    state, bound = case.expect(q)
    assert_within(out.numpy(), state.out, bound)


def test_arrays_of_others_are_wrapped_and_go_the_same_way(rng, no_python):
    case = make_case(rng, [20, 3])
    q = case.queries(rng, 2, 4)
    out, lse = poisoned(q.shape, BFLOAT16), poisoned(q.shape[:2], np.dtype(np.float32))
    indptr = np.array([0, 1, 2], np.int32)
    kvit.Attention(case.view, 4)(q, case.view, case.page_table, out=out, lse=lse, query_indptr=indptr)
    state, bound = case.expect(q)
    assert_within(out, state.out, bound)
    assert_within(lse, state.lse, LSE)


def test_a_right_call_makes_no_wrong_one_pass(rng):
    # Same operation, same other arguments, right after and right before a call that is right.
    case, other = make_case(rng, [20, 3]), make_case(rng, [20, 3], kv_heads=4)
    op = kvit.Attention(case.view, 8)
    q = to_device(case.queries(rng, 2, 8), "host")
    out, lse = to_device(poisoned(q.shape, BFLOAT16), "host"), kvit.Buffer.empty((2, 8), "float32", "host")
    locked = poisoned(q.shape, BFLOAT16)
    locked.flags.writeable = False
    right = dict(q=q, view=case.view, table=case.page_table, out=out, lse=lse, query_indptr=None)
    far = kvit.Tensor.from_pointer(1 << 20, q.shape, "bfloat16", "cuda:0")
    three = make_case(rng, [1, 1, 1]).page_table
    for error, wrong in (
        (kvit.ShapeError, dict(q=q[:1])),
        (kvit.ShapeError, dict(table=three)),
        (kvit.ShapeError, dict(view=other.view)),
        (kvit.ShapeError, dict(out=poisoned((3, 8, 64), BFLOAT16))),
        (kvit.ShapeError, dict(lse=poisoned((8, 2), np.dtype(np.float32)))),
        (kvit.ShapeError, dict(query_indptr=np.zeros(2, np.int32))),
        (kvit.DtypeError, dict(q=np.zeros(q.shape, np.float16))),
        (kvit.DtypeError, dict(out=np.zeros(q.shape, np.float16))),
        (kvit.DtypeError, dict(query_indptr=np.zeros(3, np.int64))),
        (kvit.DeviceError, dict(q=far)),
        (kvit.DeviceError, dict(out=far)),
        (kvit.LayoutError, dict(out=locked)),
        (kvit.LayoutError, dict(q=poisoned((2, 8, 65), BFLOAT16)[..., :64])),
        (TypeError, dict(view=new_cache())),
        (TypeError, dict(table=case.page_table.pages)),
    ):
        for changes in ({}, wrong, {}):
            arguments = right | changes
            positional = [arguments.pop(name) for name in ("q", "view", "table")]
            if not changes:
                out.fill_bytes(0xFF)
                op(*positional, **arguments)
                assert not np.isnan(out.numpy().astype(np.float32)).any()
                continue
            out.fill_bytes(0xFF)
            with pytest.raises(error):
                op(*positional, **arguments)
            assert (out.numpy().view(np.uint16) == 0xFFFF).all()


def test_a_call_keeps_none_of_its_arguments(rng, device):
    # Memory goes when its owner lets go of it, not when an operation is called the next time.
    case = make_case(rng, [20, 3], device=device)
    stream, op = kvit.Stream(device), kvit.Attention(case.view, 4)
    q = to_device(case.queries(rng, 2, 4), device)
    arguments = q, case.view, case.page_table, kvit.Buffer.empty(q.shape, "bfloat16", device, stream)
    before = [sys.getrefcount(argument) for argument in arguments]
    op(*arguments[:3], out=arguments[3], stream=stream)
    assert [sys.getrefcount(argument) for argument in arguments] == before


def test_check_waits_for_the_stream_of_the_last_call(rng, device):
    case = make_case(rng, [20, 3], device=device)
    stream, op = kvit.Stream(device), kvit.Attention(case.view, 4)
    op(to_device(case.queries(rng, 2, 4), device), case.view, case.page_table, stream=stream)
    op.check()
    assert op.faults.last_stream is stream and stream.is_done


@pytest.mark.parametrize("call", ["attend", "write"])
def test_a_call_is_one_launch_without_allocation_within_its_budget(tmp_path, call):
    # On a driver that returns at once, so no GPU is needed and what is timed is kvit's own part.
    launches, graph_launches, graphs, allocations, blocks, us = run_idle(tmp_path, CALLS, call)
    assert (launches, graph_launches, graphs, allocations) == (1000, 0, 0, 0)
    assert blocks < 10  # the counts themselves
    assert us < 3.5
