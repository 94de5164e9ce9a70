"""Handles: a stale one, one of another kind, or any number at all is recognised, and nothing of it is read."""

import ctypes
import gc
import threading
from ctypes import byref, c_void_p, pointer

import numpy as np
import pytest

import kvit
from support import capi
from support.caches import BFLOAT16, make_case, new_cache

KINDS = ("view", "op", "cache", "sequence", "step", "batch", "swapped")


def cache_options():
    return capi.options(capi.CacheOptions, pages=4, page_size=4, kv_heads=2, head_dim=64, device_type=1)


class Handles:
    """One live handle of each kind."""

    def __init__(self, api):
        self.api = api
        self.view = api.view(new_cache().view)
        self.op = api.op(self.view, query_heads=4)
        self.cache = api.make("cache_create", cache_options())
        self.sequence = api.make("sequence_create", self.cache)
        self.step, self.batch, self.swapped = c_void_p(), c_void_p(), c_void_p()
        members = (self.cache, byref(self.sequence), 1)
        api.batch_create(*members, None, byref(self.batch))
        api.step_create(*members, None, None, byref(self.step))
        api.cache_swap_out(self.cache, self.sequence, None, byref(self.swapped))

    def close(self):
        for kind in KINDS:
            getattr(self.api.table, f"{kind}_destroy")(getattr(self, kind))


@pytest.fixture
def handles(api):
    held = Handles(api)
    yield held
    held.close()


def uses(api, kind, handle):
    """Every call that takes such a handle, with arguments that are otherwise never looked at."""
    out = byref(c_void_p())
    calls = {
        "view": [("view_query", (handle, None)), ("view_destroy", (handle,))],
        "op": [
            ("op_query", (handle, None)),
            ("op_explain", (handle, None, 0, None)),
            ("op_check", (handle, None, None)),
            ("attention", (handle, None, None, None, None, None, None, None)),
            ("append", (handle, None, None, None, None, None, None)),
            ("gather", (handle, None, None, None, None, None, None)),
            ("op_destroy", (handle,)),
        ],
        "cache": [
            ("cache_query", (handle, None)),
            ("cache_append", (handle, None, 0, None, None, None, None)),
            ("cache_attention", (handle, None, 0, None, None, None, None, 0, 0, None)),
            ("cache_check", (handle, None, None)),
            ("sequence_create", (handle, out)),
            ("batch_create", (handle, None, 0, None, out)),
            ("step_create", (handle, None, 0, None, None, out)),
            ("cache_swap_out", (handle, None, None, out)),
            ("cache_swap_in", (handle, None, None, out)),
            ("cache_destroy", (handle,)),
        ],
        "sequence": [
            ("sequence_query", (handle, None)),
            ("sequence_fork", (handle, out)),
            ("sequence_truncate", (handle, 0)),
            ("sequence_destroy", (handle,)),
        ],
        "step": [
            ("step_append", (handle, 0, None, None, None, None)),
            ("step_attention", (handle, 0, None, None, None, None, None)),
            ("step_commit", (handle,)),
            ("step_destroy", (handle,)),
        ],
        "batch": [
            ("batch_query", (handle, None)),
            ("batch_use", (handle, None, 0)),
            ("batch_step", (handle, None, out)),
            ("batch_attention", (handle, 0, None, None, None, None, None)),
            ("batch_destroy", (handle,)),
        ],
        "swapped": [("swapped_query", (handle, None)), ("swapped_destroy", (handle,))],
    }
    for name, arguments in calls[kind]:
        yield name, lambda name=name, arguments=arguments: getattr(api, name)(*arguments)


@pytest.mark.parametrize("kind", KINDS)
def test_a_destroyed_handle_is_recognised_by_every_call(api, handles, kind):
    handle = getattr(handles, kind)
    getattr(api, f"{kind}_destroy")(handle)
    for name, call in uses(api, kind, handle):
        with pytest.raises(capi.Refused, match=f"HandleError: this kvit_{kind} was destroyed; create another") as error:
            call()
        assert error.value.status == "HANDLE", name


@pytest.mark.parametrize("kind", KINDS)
def test_a_handle_is_recognised_as_destroyed_when_its_place_is_used_again(api, handles, kind):
    old = getattr(handles, kind)
    getattr(api, f"{kind}_destroy")(old)
    others = [api.view(new_cache().view) for _ in range(5)]
    for _, call in uses(api, kind, old):
        with pytest.raises(capi.Refused, match="was destroyed"):
            call()
    for other in others:
        api.view_query(other, byref(capi.ViewInfo(ctypes.sizeof(capi.ViewInfo))))
        api.view_destroy(other)


@pytest.mark.parametrize("kind", KINDS)
def test_a_handle_of_another_kind_is_named(api, handles, kind):
    for other in KINDS:
        if other == kind:
            continue
        for _, call in uses(api, kind, getattr(handles, other)):
            with pytest.raises(capi.Refused, match=f"HandleError: this is a kvit_{other} and must be a kvit_{kind}"):
                call()


@pytest.mark.parametrize("kind", KINDS)
def test_null_is_no_handle(api, kind):
    for _, call in uses(api, kind, None):
        with pytest.raises(capi.Refused, match=f"the kvit_{kind} is NULL; give one that was created") as error:
            call()
        assert error.value.status == "ARGUMENT"


# An address, small numbers, all bits, and the handles' own form with an index and a generation that never were.
@pytest.mark.parametrize("word", [0x7F0012345678, 1, 0xFFFFFFFF, 2**64 - 1, 1 << 56, 1 << 56 | 1 << 24 | 0xFFFFFF,
                                  2 << 56 | 0xFFFF0000 << 24, 99 << 56 | 1 << 24], ids=hex)  # fmt: skip
@pytest.mark.parametrize("kind", KINDS)
def test_any_other_number_is_no_handle(api, handles, kind, word):
    for _, call in uses(api, kind, c_void_p(word)):
        with pytest.raises(capi.Refused, match="HandleError: 0x|HandleError: this is a") as error:
            call()
        assert error.value.status == "HANDLE"


def test_a_view_that_is_destroyed_is_refused_by_operations(api, handles):
    api.view_destroy(handles.view)
    with pytest.raises(capi.Refused, match="this kvit_view was destroyed"):
        api.attention(handles.op, handles.view, None, None, None, None, None, None)
    with pytest.raises(capi.Refused, match="this kvit_view was destroyed"):
        api.op(handles.view, query_heads=4)
    api.op_check(handles.op, None, None)  # and it did not stay taken


def test_handles_give_back_what_they_hold(api):
    def live():
        gc.collect()
        kinds = kvit.CacheView, kvit.Attention, kvit.Append, kvit.PagedCache, kvit.Sequence
        return [sum(isinstance(thing, kind) for thing in gc.get_objects()) for kind in kinds]

    cache = new_cache()
    before = live()
    made = [Handles(api) for _ in range(3)]
    appends = [api.op(each.view, capi.APPEND) for each in made]
    assert live() > before
    for each, append in zip(made, appends, strict=True):
        each.close()
        api.op_destroy(append)
    assert live() == before and cache.num_free_pages == 12


def test_sequences_outlive_their_cache_and_give_their_pages_back(api):
    cache = api.make("cache_create", cache_options())
    sequence = api.make("sequence_create", cache)
    api.cache_destroy(cache)
    assert api.ask("sequence_query", sequence, capi.SequenceInfo).length == 0
    api.sequence_destroy(sequence)


def test_ten_thousand_handles_come_and_go_in_the_same_places(api):
    view = new_cache().view
    seen = set()
    for _ in range(10_000):
        handle = api.view(view)
        seen.add(handle.value)
        api.view_destroy(handle)
    assert len(seen) == 10_000  # none is ever another's
    assert len({value & 0xFFFFFF for value in seen}) == 1


def test_destroying_waits_for_the_calls_that_have_begun(api, rng):
    # Attention of 64 x 512 tokens takes the host long enough to be under way when the operation is destroyed.
    case = make_case(rng, [512] * 64)
    view, table = api.view(case.view), capi.table_of(case.page_table)
    op = api.op(view, query_heads=8)
    q = case.queries(rng, 64, 8)
    out = np.zeros(q.shape, BFLOAT16)
    arguments = [pointer(capi.tensor(x)) for x in (q, out)]
    statuses = []

    def call():
        status = busy = capi.STATUSES.index("BUSY")  # while the question below has the operation
        while status == busy:
            status = api.table.attention(op, view, byref(table), *arguments, None, None, None)
        statuses.append(status)

    thread = threading.Thread(target=call)
    thread.start()
    while not is_busy(api, op, view, statuses):
        pass
    api.op_destroy(op)
    api.view_destroy(view)
    done = out.copy()
    thread.join()
    assert statuses == [0]
    assert out.any() and np.array_equal(out.view(np.uint16), done.view(np.uint16))  # all was there before


def is_busy(api, op, view, statuses):
    """Whether another call has the operation, or has had it."""
    status = api.table.attention(op, view, None, None, None, None, None, None)
    return bool(statuses) or capi.STATUSES[status] == "BUSY"


def test_an_operation_in_use_says_so(api, rng):
    case = make_case(rng, [512] * 64)
    view, table = api.view(case.view), capi.table_of(case.page_table)
    op = api.op(view, query_heads=8)
    q = case.queries(rng, 64, 8)
    arguments = [pointer(capi.tensor(x)) for x in (q, np.zeros_like(q))]
    barrier, messages = threading.Barrier(2), []

    def call():
        barrier.wait()
        for _ in range(5):
            if api.table.attention(op, view, byref(table), *arguments, None, None, None):
                messages.append(api.table.last_error().decode())

    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert messages and all("another thread's call is using this kvit_op" in message for message in messages)
    api.op_destroy(op)
    api.view_destroy(view)
