"""Calls with arrays of a library in C, which may do what it likes while a call asks it for them."""

import gc
import weakref

import numpy as np
import pytest

import kvit
from support import exchange
from support.caches import make_case, poisoned
from support.exchange import code_of, lender, outstanding
from support.threads import run_side_by_side
from support.tolerances import assert_within


class Step:
    """Two queries of a case, and where their results go, lent by the library."""

    def __init__(self, rng):
        self.case = make_case(rng, [9, 3])
        self.q = self.case.queries(rng, 2, 4)
        self.op = kvit.Attention(self.case.view, 4)
        self.out = poisoned(self.q.shape, self.q.dtype)

    def lent(self, array, **changes):
        given = dict(code=code_of(array.dtype), bits=8 * array.itemsize, strides=None)
        return lender(array, **{**given, **changes})

    def indptr(self, **changes):
        return self.lent(np.array([0, 1, 2], np.int32), **changes)

    def assert_right(self, out):
        state, bound = self.case.expect(self.q)
        assert_within(out, state.out, bound)


@pytest.fixture
def step(rng):
    return Step(rng)


def test_a_call_gives_its_loans_back_when_it_ends(step):
    before = outstanding()
    q, out, lse = step.lent(step.q), step.lent(step.out), step.lent(np.zeros((2, 4), np.float32))
    found = step.op(q, step.case.view, step.case.page_table, out=out, lse=lse, query_indptr=step.indptr())
    assert found is out and outstanding() == before
    step.assert_right(step.out)
    with pytest.raises(kvit.ShapeError, match="query_indptr has shape"):
        step.op(q, step.case.view, step.case.page_table, query_indptr=step.indptr(shape=(2,)))
    gc.collect()
    assert outstanding() == before


def test_memory_that_the_library_lets_go_of_during_a_call_stays_until_the_call_ends(step):
    # The library drops the queries when it is asked for query_indptr, which is after them.
    array = step.q.copy()
    q, gone, found = step.lent(array), weakref.ref(array), []
    del array

    def drop():
        exchange.module().drop(q)
        gc.collect()
        found.append(gone() is not None)

    out = step.op(q, step.case.view, step.case.page_table, out=step.out, query_indptr=step.indptr(before=drop))
    gc.collect()
    assert out is step.out and found == [True] and gone() is None
    step.assert_right(step.out)


def test_a_library_that_fails_during_a_call_leaves_everything_as_it_was(step):
    def fail():
        raise OSError("the disk is full")

    before = outstanding()
    untouched = step.out.tobytes()
    with pytest.raises(kvit.LayoutError, match="the Lender does not lend its memory: the disk is full"):
        step.op(
            step.lent(step.q), step.case.view, step.case.page_table,
            out=step.lent(step.out), query_indptr=step.indptr(before=fail),
        )  # fmt: skip
    gc.collect()
    assert step.out.tobytes() == untouched and outstanding() == before


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        (dict(flags=exchange.READ_ONLY), kvit.LayoutError, "out is read-only and would be written"),
        (dict(device=(exchange.CUDA, 0)), kvit.DeviceError, "out is on cuda:0, the call on host"),
        (dict(flags=exchange.IS_COPIED), kvit.LayoutError, "exports a copy of its memory"),
        (dict(shape=(2, 4)), kvit.ShapeError, "out has shape"),
    ],
    ids=["read-only", "device", "copy", "shape"],
)
def test_an_output_that_does_not_fit_is_refused_and_not_written(step, changes, error, words):
    untouched = step.out.tobytes()
    with pytest.raises(error, match=words):
        step.op(step.q, step.case.view, step.case.page_table, out=step.lent(step.out, **changes))
    assert step.out.tobytes() == untouched


def test_calls_of_several_threads_share_the_librarys_arrays(step):
    q = step.lent(step.q)

    def attend(_):
        out = poisoned(step.q.shape, step.q.dtype)
        for _ in range(20):
            step.op(q, step.case.view, step.case.page_table, out=step.lent(out), query_indptr=step.indptr())
        return out.tobytes()

    expected = step.op(q, step.case.view, step.case.page_table).numpy().tobytes()
    assert run_side_by_side(attend, 4) == [expected] * 4


def test_a_view_and_a_table_keep_their_loans_as_long_as_they_live(step):
    pool, pages = np.zeros((3, 16, 2, 64), np.float16), np.zeros((2, 4), np.int32)
    before = outstanding()
    view = kvit.CacheView(step.lent(pool), step.lent(pool))
    table = kvit.PageTable(step.lent(pages), lengths=step.lent(np.ones(2, np.int32)))
    gc.collect()
    assert outstanding() == before + 4 and (view.k.pointer, table.num_sequences) == (pool.ctypes.data, 2)
    with pytest.raises(kvit.ShapeError, match="pages has shape"):
        kvit.PageTable(step.lent(pages), lengths=step.lent(np.ones(3, np.int32)))
    del view, table
    gc.collect()
    assert outstanding() == before
