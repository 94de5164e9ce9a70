"""Operations on whole pages, made once and called many times: each call against that of the Python operation."""

from ctypes import byref, c_size_t, create_string_buffer

import numpy as np
import pytest

import kvit
from support import capi
from support.caches import to_device
from support.capi_layers import given, same
from support.quantised import Quantised

KINDS = (("int8", "int4"), (None, None))


@pytest.fixture
def make(api):
    """Handles that go when the test ends."""
    made = []

    def new(kind, handle):
        made.append((kind, handle))
        return handle

    yield new
    for kind, handle in reversed(made):
        getattr(api, f"{kind}_destroy")(handle)


def filled(kind, device):
    """A case whose pages 2 to 5 hold tokens."""
    rng = np.random.default_rng(0)
    case = Quantised(kind, [60], device=device, rng=rng)
    case.append(rng)
    return case


def ids(device, *pages):
    return to_device(np.array(pages, np.int32), device)


def transformed_view(api, case):
    """The kvit_view of a case of int8 and int4_hadamard."""
    fields = {name: given(buffer) for name, buffer in case.buffers.items()}
    codes = {"k_dtype": 4, "v_dtype": 5 | capi.HADAMARD, "dtype": 3}
    return api.make("view_create", capi.options(capi.ViewOptions, layout=capi.HND, **codes, **fields))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_an_operation_copies_pages_call_after_call(api, make, device, kind):
    cases = [filled(kind, device) for _ in range(2)]
    view = make("view", api.view(cases[0].view))
    op = make("op", api.op(view, capi.COPY_PAGES))
    copy = kvit.CopyPages(cases[1].view)
    # Two pages; three that turn round, for which the first target waits until the chain ends; none.
    for source, target, chains in (((2, 3), (1, 0), None), ((2, 4, 3), (3, 2, 4), (0, 3)), ((), (), None)):
        lists = [ids(device, *source), ids(device, *target), None if chains is None else ids(device, *chains)]
        api.op_copy_pages(op, view, *map(given, lists), None)
        copy(cases[1].view, *lists[:2], chains=lists[2])
        api.op_check(op, None, None)
        for name, buffer in cases[0].buffers.items():
            same(buffer.numpy(), cases[1].buffers[name].numpy())
    assert (cases[0].buffers["k"].numpy()[:2].view(np.uint8) != 0xFF).any()


def test_an_operation_converts_pages_call_after_call(api, make, device):
    old = filled((None, None), device)
    new = [Quantised(("int8", "int4_hadamard"), [60], device=device, rng=np.random.default_rng(3)) for _ in range(2)]
    source, target = make("view", api.view(old.view)), make("view", transformed_view(api, new[0]))
    op = make("op", api.op(source, capi.CONVERT_PAGES, target=target))
    convert = kvit.ConvertPages(old.view, new[1].view)
    for lists in ([ids(device, 2, 5), ids(device, 1, 3)], [ids(device, 4), ids(device, 0)], [None, None]):
        api.op_convert_pages(op, source, target, *map(given, lists), None)
        convert(old.view, new[1].view, source_pages=lists[0], target_pages=lists[1])
        api.op_check(op, None, None)
        for name, buffer in new[0].buffers.items():
            same(buffer.numpy(), new[1].buffers[name].numpy())


def test_a_page_that_is_not_there_is_told_by_op_check(api, make, device):
    case = filled(("int8", "int4"), device)
    view = make("view", api.view(case.view))
    op = make("op", api.op(view, capi.COPY_PAGES))
    lists = given(ids(device, 0)), given(ids(device, 99))
    api.op_copy_pages(op, view, *lists, None, None)  # which launches, and waits for nothing
    fault = capi.Fault()
    with pytest.raises(capi.Refused, match="99") as error:
        api.op_check(op, None, byref(fault))
    assert error.value.status == "PAGE_TABLE" and fault.value == 99
    api.op_check(op, None, None)  # told once


def test_an_operation_on_pages_says_what_it_is(api, make):
    case, other = filled(("int8", "int4"), "host"), filled((None, None), "host")
    view, source = make("view", api.view(case.view)), make("view", api.view(other.view))
    copy = make("op", api.op(view, capi.COPY_PAGES))
    convert = make("op", api.op(source, capi.CONVERT_PAGES, target=view))
    for op, of, words in (
        (copy, case, kvit.CopyPages(case.view).explain()),
        (convert, other, kvit.ConvertPages(other.view, case.view).explain()),
    ):
        info = api.ask("op_query", op, capi.OpInfo)
        assert (info.workspace_bytes, info.query_heads, info.kv_heads, info.head_dim) == (0, 0, 2, 64)
        assert info.k_dtype == of.view.codecs[0].dtype.code
        text, length = create_string_buffer(4096), c_size_t()
        api.op_explain(op, text, len(text), byref(length))
        assert text.value.decode() == words and length.value == len(words)
    assert "copy_pages" in kvit.CopyPages(case.view).explain()


def test_operations_on_pages_that_cannot_be_are_refused(api, make):
    case = filled((None, None), "host")
    view = make("view", api.view(case.view))
    wide = Quantised((None, None), [60], head_dim=128, device="host", rng=np.random.default_rng(0))
    other = make("view", api.view(wide.view))
    for kind, fields, status, words in (
        (capi.CONVERT_PAGES, {}, "ARGUMENT", "target is NULL; give the kvit_view of pages like those"),
        (capi.CONVERT_PAGES, {"target": 12345}, "HANDLE", "is no kvit_view"),
        (capi.CONVERT_PAGES, {"target": other}, "SHAPE", "target has 2 KV heads and head_dim 128"),
        (capi.COPY_PAGES, {"target": view}, "ARGUMENT", r"target is where KVIT_OP_CONVERT_PAGES \(4\) puts pages"),
        (capi.ATTENTION, {"target": view, "query_heads": 8}, "ARGUMENT", "target is where"),
        (capi.COPY_PAGES, {"launch": 1}, "ARGUMENT", "launch is 1; operations on pages have KVIT_LAUNCH_DIRECT"),
        (5, {}, "ARGUMENT", r"kind is 5; give KVIT_OP_ATTENTION \(0\), .* or KVIT_OP_CONVERT_PAGES \(4\)"),
    ):
        with pytest.raises(capi.Refused, match=words) as error:
            api.op(view, kind, **fields)
        assert error.value.status == status


def test_an_older_caller_s_options_have_no_target(api, make):
    case = filled((None, None), "host")
    view = make("view", api.view(case.view))
    options = capi.options(capi.OpOptions, view=view, kind=capi.COPY_PAGES, target=12345)
    options.size = capi.OpOptions.target.offset
    make("op", api.make("op_create", options))


def test_calls_of_another_kind_and_wrong_lists_are_refused(api, make):
    case, new = filled((None, None), "host"), filled(("int8", "int4"), "host")
    view, target = make("view", api.view(case.view)), make("view", api.view(new.view))
    copy = make("op", api.op(view, capi.COPY_PAGES))
    convert = make("op", api.op(view, capi.CONVERT_PAGES, target=target))
    append = make("op", api.op(view, capi.APPEND))
    before = {name: buffer.numpy().copy() for name, buffer in case.buffers.items()}
    one, two, wide = given(ids("host", 0)), given(ids("host", 1, 2)), given(np.zeros(1, np.int64))
    k = given(np.zeros((1, 2, 64), np.uint16))
    for call, status, words in (
        (lambda: api.op_copy_pages(convert, view, one, one, None, None), "ARGUMENT",
         "the operation was made for conversions of pages, and this is copies of pages; make another"),
        (lambda: api.op_convert_pages(copy, view, target, one, one, None), "ARGUMENT", "made for copies of pages"),
        (lambda: api.op_copy_pages(append, view, one, one, None, None), "ARGUMENT", "made for append"),
        (lambda: api.append(copy, view, byref(capi.table_of(case.page_table)), k, k, None, None), "ARGUMENT",
         "the operation was made for copies of pages, and this is append"),
        (lambda: api.op_copy_pages(copy, view, None, one, None, None), "ARGUMENT", "source is NULL"),
        (lambda: api.op_copy_pages(copy, view, one, two, None, None), "SHAPE", "target .like source. has shape"),
        (lambda: api.op_copy_pages(copy, view, wide, one, None, None), "DTYPE", "source is int64; it must be int32"),
        (lambda: api.op_copy_pages(copy, target, one, one, None, None), "DTYPE", "the operation was made for"),
        (lambda: api.op_convert_pages(convert, view, None, one, one, None), "ARGUMENT", "the kvit_view is NULL"),
        (lambda: api.op_convert_pages(convert, view, view, one, one, None), "DTYPE", "the operation was made for"),
        (lambda: api.op_convert_pages(convert, view, target, one, two, None), "SHAPE", "target_pages"),
        (lambda: api.op_copy_pages(None, view, one, one, None, None), "ARGUMENT", "the kvit_op is NULL"),
        (lambda: api.op_copy_pages(copy, view, one, one, None, 123), "DEVICE", "stream is 0x7b"),
    ):  # fmt: skip
        with pytest.raises(capi.Refused, match=words) as error:
            call()
        assert error.value.status == status
    for name, buffer in case.buffers.items():
        same(buffer.numpy(), before[name])
