"""Attention, append, gather and merge through the table, on memory that the caller owns, against the reference."""

import ctypes
from ctypes import byref, pointer

import numpy as np
import pytest

import kvit
from kvit import reference
from support import capi, tolerances
from support.caches import BFLOAT16, FLOAT16, make_case, new_cache, new_tokens, poisoned, to_device

QUERY_HEADS = 8


class Session:
    """A view of a case's cache, its table, and operations on it; destroyed at the end."""

    def __init__(self, api, case):
        self.api, self.case = api, case
        self.view, self.table = api.view(case.view), capi.table_of(case.page_table)
        self.ops = []

    def op(self, kind=capi.ATTENTION, **fields):
        if kind == capi.ATTENTION:
            fields = {"query_heads": QUERY_HEADS, **fields}
        self.ops.append(self.api.op(self.view, kind, **fields))
        return self.ops[-1]

    def close(self):
        for op in self.ops:
            self.api.op_destroy(op)
        self.api.view_destroy(self.view)


@pytest.fixture
def session(api):
    made = []

    def make(case):
        made.append(Session(api, case))
        return made[-1]

    yield make
    for each in made:
        each.close()


def attend(session, op, q, counts=None, with_lse=True):
    """out and lse of the call, as arrays; counts: rows of each sequence, where they differ."""
    device = session.case.device
    out = to_device(poisoned(q.shape, q.dtype), device)
    lse = to_device(poisoned(q.shape[:2], np.dtype(np.float32)), device) if with_lse else None
    indptr = None if counts is None else to_device(np.cumsum([0, *counts]).astype(np.int32), device)
    arguments = [None if x is None else pointer(capi.tensor(x)) for x in (to_device(q, device), out, lse, indptr)]
    session.api.attention(op, session.view, byref(session.table), *arguments, None)
    session.api.op_check(op, None, None)
    return out.numpy(), lse.numpy() if with_lse else None


def check(session, q, found, counts=None, **options):
    state, bound = session.case.expect(q, counts, **options)
    tolerances.assert_within(found[0], state.out, bound)
    tolerances.assert_within(found[1], state.lse, tolerances.LSE)


@pytest.mark.parametrize("table", ["dense", "ragged"])
@pytest.mark.parametrize(("layout", "storage"), [("NHD", "pools"), ("HND", "halves"), ("NHD", "padded")])
def test_decode_is_the_reference(session, rng, device, table, layout, storage):
    # An empty sequence, one token, a full page, a part full last page
    case = make_case(rng, [0, 1, 16, 75], layout=layout, storage=storage, table=table, device=device)
    here = session(case)
    q = case.queries(rng, 4, QUERY_HEADS)
    check(here, q, attend(here, here.op(), q))


@pytest.mark.parametrize(("dtype", "head_dim"), [(FLOAT16, 64), (BFLOAT16, 128)])
def test_other_shapes_choose_other_kernels(session, rng, device, dtype, head_dim):
    case = make_case(rng, [33, 7], dtype=dtype, head_dim=head_dim, kv_heads=4, device=device)
    here = session(case)
    q = case.queries(rng, 2, QUERY_HEADS)
    check(here, q, attend(here, here.op(), q))


def test_sequences_may_have_different_numbers_of_queries(session, rng, device):
    case = make_case(rng, [40, 5, 20], device=device)
    here = session(case)
    counts = [3, 0, 1]
    q = case.queries(rng, sum(counts), QUERY_HEADS)
    check(here, q, attend(here, here.op(tokens_per_sequence=3), q, counts), counts)


def test_mask_and_scale_are_the_callers(session, rng, device):
    case = make_case(rng, [40, 9], device=device)
    here = session(case)
    q = case.queries(rng, 4, QUERY_HEADS)
    found = attend(here, here.op(mask=1, scale=0.5), q)
    check(here, q, found, [2, 2], causal=False, scale=0.5)


def test_the_lse_may_be_left_out(session, rng, device):
    case = make_case(rng, [12], device=device)
    here = session(case)
    q = case.queries(rng, 1, QUERY_HEADS)
    out, _ = attend(here, here.op(), q, with_lse=False)
    state, bound = case.expect(q)
    tolerances.assert_within(out, state.out, bound)


def test_raw_16_bit_integers_pass_as_the_operations_dtype(session, rng):
    # They do in Python: a tensor that the quick checks do not know is shown to the Python operation.
    case = make_case(rng, [12], device="host")
    here = session(case)
    q = case.queries(rng, 1, QUERY_HEADS)
    out = poisoned(q.shape, BFLOAT16)
    arguments = [pointer(capi.tensor(x.view(np.uint16))) for x in (q, out)]
    here.api.attention(here.op(), here.view, byref(here.table), *arguments, None, None, None)
    state, bound = case.expect(q)
    tolerances.assert_within(out, state.out, bound)


def test_nothing_is_launched_for_no_rows(session, rng, device):
    case = make_case(rng, [], device=device)
    here = session(case)
    q = case.queries(rng, 0, QUERY_HEADS)
    out, lse = attend(here, here.op(), q)
    assert out.shape == (0, QUERY_HEADS, 64) and lse.shape == (0, QUERY_HEADS)


@pytest.mark.parametrize("table", ["dense", "ragged"])
def test_gather_gives_back_what_append_wrote(session, rng, device, table):
    lengths, counts = [20, 3, 33], [5, 3, 1]
    case = make_case(rng, lengths, table=table, device=device, page_size=4)
    here = session(case)
    new = rng.standard_normal((2, sum(counts), 2, 64)).astype(BFLOAT16)
    indptr = to_device(np.cumsum([0, *counts]).astype(np.int32), device)
    k, v = (to_device(x, device) for x in new)
    append, gather = here.op(capi.APPEND), here.op(capi.GATHER)
    arguments = [pointer(capi.tensor(x)) for x in (k, v, indptr)]
    here.api.append(append, here.view, byref(here.table), *arguments, None)
    here.api.op_check(append, None, None)
    reference.append(case.cache, case.table, *new, counts)

    total = sum(lengths)
    found = [to_device(poisoned((total, 2, 64), BFLOAT16), device) for _ in range(2)]
    indptr = to_device(np.cumsum([0, *lengths]).astype(np.int32), device)
    arguments = [pointer(capi.tensor(x)) for x in (*found, indptr)]
    here.api.gather(gather, here.view, byref(here.table), *arguments, None)
    here.api.op_check(gather, None, None)
    for have, want in zip(found, reference.gather(case.cache, case.table)[:2], strict=True):
        np.testing.assert_array_equal(have.numpy().astype(np.float32), want.astype(np.float32))


@pytest.mark.parametrize(
    ("k", "v"), [("int8", "int4"), ("int4", "int4"), ("float8_e4m3", "float8_e4m3"), ("float8_e4m3", "int4")]
)
@pytest.mark.parametrize("layout", ["NHD", "HND"])
def test_quantised_caches_give_the_bits_of_pythons(api, rng, device, k, v, layout):
    cache = new_cache(device, k=k, v=v, layout=layout)
    sequence = cache.sequence()
    k_rows, v_rows = (to_device(x, device) for x in new_tokens(rng, 40))
    sequence.append(k_rows, v_rows)
    table = cache.table([sequence])
    q = to_device(rng.standard_normal((2, QUERY_HEADS, 64)).astype(BFLOAT16), device)
    expected, expected_lse = kvit.attention(q, cache, [sequence], return_lse=True)
    gathered = [x.numpy() for x in cache.gather([sequence])[:2]]
    for name in ("k", "v", "k_params", "v_params"):  # and now again, through C
        pool = getattr(cache.view, name)
        if name in ("k", "v") or (k if name[0] == "k" else v).startswith("int"):
            pool.fill_bytes(0xFF)

    view, in_c = api.view(cache.view), capi.table_of(table)
    info = api.ask("view_query", view, capi.ViewInfo)
    assert (info.dtype, info.k_dtype, info.v_dtype) == (3, cache.view.k.dtype.code, cache.view.v.dtype.code)
    append, gather, op = (api.op(view, kind, query_heads=QUERY_HEADS) for kind in (capi.APPEND, capi.GATHER, 0))
    out, lse = (kvit.Buffer.empty(shape, dtype, device) for shape, dtype in (((2, 8, 64), "bf16"), ((2, 8), "f32")))
    again = [kvit.Buffer.empty((40, 2, 64), "bf16", device) for _ in range(2)]
    rows = [pointer(capi.tensor(x)) for x in (k_rows, v_rows, *again, q, out, lse)]
    api.append(append, view, byref(in_c), *rows[:2], None, None)
    api.gather(gather, view, byref(in_c), *rows[2:4], None, None)
    api.attention(op, view, byref(in_c), *rows[4:], None, None)
    for each in (append, gather, op):
        api.op_check(each, None, None)
        api.op_destroy(each)
    api.view_destroy(view)
    results = [out.numpy(), lse.numpy(), *(x.numpy() for x in again)]
    for have, want in zip(results, [expected.numpy(), expected_lse.numpy(), *gathered], strict=True):
        assert np.isfinite(have.astype(np.float32)).all()
        np.testing.assert_array_equal(have.view(np.uint8), want.view(np.uint8))


@pytest.mark.parametrize("with_lse", [True, False])
def test_merged_states_are_the_reference(api, rng, device, with_lse):
    a, b = rng.standard_normal((2, 5, 4, 64)).astype(FLOAT16)
    lse_a, lse_b = rng.standard_normal((2, 5, 4)).astype(np.float32)
    lse_a[0], lse_b[1] = -np.inf, -np.inf  # one side saw nothing, and its output must not count
    out, lse = to_device(poisoned(a.shape, FLOAT16), device), to_device(poisoned(lse_a.shape, lse_a.dtype), device)
    arguments = [pointer(capi.tensor(to_device(x, device))) for x in (a, lse_a, b, lse_b)]
    api.merge_states(*arguments, pointer(capi.tensor(out)), pointer(capi.tensor(lse)) if with_lse else None, None)
    expected = reference.merge_state((a, lse_a), (b, lse_b))
    tolerances.assert_within(out.numpy(), expected.out, tolerances.merge_bound((a, b), a.dtype))
    if with_lse:
        tolerances.assert_within(lse.numpy(), expected.lse, tolerances.LSE)


def test_a_fault_of_the_table_is_told_once_with_its_place(session, rng, device):
    case = make_case(rng, [20, 20], device=device)
    here = session(case)
    pages = case.page_table.pages.numpy()
    pages[1, 1] = 99  # of 6
    here.table = capi.table(to_device(pages, device), case.page_table.lengths)
    q = case.queries(rng, 2, QUERY_HEADS)
    op = here.op()
    fault = capi.Fault()
    arguments = [pointer(capi.tensor(to_device(x, device))) for x in (q, q)]
    here.api.attention(op, here.view, byref(here.table), *arguments, None, None, None)
    with pytest.raises(capi.Refused, match="PageTableError: page 1 of sequence 1 has id 99") as error:
        here.api.op_check(op, None, byref(fault))
    assert error.value.status == "PAGE_TABLE"
    assert (fault.sequence, fault.slot, fault.value) == (1, 1, 99)
    here.api.op_check(op, None, None)


def test_views_and_operations_say_what_they_are(session, rng, api):
    case = make_case(rng, [20], kv_heads=4, page_size=8, dtype=FLOAT16)
    here = session(case)
    info = api.ask("view_query", here.view, capi.ViewInfo)
    assert (info.num_pages, info.page_size, info.kv_heads, info.head_dim) == (5, 8, 4, 64)
    assert (info.dtype, info.k_dtype, info.v_dtype, info.device_type, info.device_id) == (2, 2, 2, 1, 0)

    in_python = kvit.Attention(case.view, QUERY_HEADS)
    info = api.ask("op_query", here.op(), capi.OpInfo)
    assert info.workspace_bytes == in_python.workspace_bytes
    assert (info.kind, info.dtype, info.query_heads, info.kv_heads, info.head_dim) == (0, 2, QUERY_HEADS, 4, 64)
    info = api.ask("op_query", here.op(capi.GATHER), capi.OpInfo)
    assert (info.kind, info.workspace_bytes, info.query_heads) == (capi.GATHER, 0, 0)


def explain(api, op, capacity):
    text, length = ctypes.create_string_buffer(b"\xff" * 4096, 4096), ctypes.c_size_t()
    api.op_explain(op, text, capacity, byref(length))
    return text.raw, length.value


def test_an_operation_explains_itself_in_the_callers_memory(session, rng, api):
    case = make_case(rng, [20])
    here = session(case)
    expected = kvit.Attention(case.view, QUERY_HEADS).explain().encode()
    raw, length = explain(api, here.op(), 4096)
    assert raw[: length + 1] == expected + b"\0"
    raw, length = explain(api, here.op(), 10)  # cut, and nothing written past the 10 bytes
    assert raw[:12] == expected[:9] + b"\0\xff\xff" and length == len(expected)
    raw, length = explain(api, here.op(capi.APPEND), 4096)
    symbol = kvit.Append(case.view).kernel.symbol
    assert raw.startswith(f"{symbol} on host\n".encode())


def test_a_workspace_of_the_caller_is_used(session, rng, device):
    case = make_case(rng, [20, 3], device=device)
    here = session(case)
    num_bytes = here.api.ask("op_query", here.op(), capi.OpInfo).workspace_bytes
    workspace = to_device(np.zeros(num_bytes, np.uint8), device)
    op = here.op(workspace=pointer(capi.tensor(workspace)))
    q = case.queries(rng, 2, QUERY_HEADS)
    check(here, q, attend(here, op, q))


def test_splits_give_the_bits_of_python_in_any_batch(session, rng, device):
    here = session(make_case(rng, [700, 3], device=device))
    split = kvit.Attention(here.case.view, QUERY_HEADS).kernel.facts["tile_tokens"]
    in_python = kvit.Attention(here.case.view, QUERY_HEADS, split_tokens=split)
    op = here.op(split_tokens=split)
    assert here.api.ask("op_query", op, capi.OpInfo).workspace_bytes == in_python.workspace_bytes
    q = here.case.queries(rng, 2, QUERY_HEADS)
    out, _ = attend(here, op, q)
    alone = kvit.PageTable(here.case.page_table.pages, lengths=to_device(np.array([700, 0], np.int32), device))
    expected = in_python(to_device(q, device), here.case.view, alone).numpy()
    np.testing.assert_array_equal(out[0].view(np.uint16), expected[0].view(np.uint16))


@pytest.mark.gpu
def test_calls_run_on_the_stream_of_the_caller(session, rng):
    case = make_case(rng, [20, 3], device="cuda:0")
    here = session(case)
    q = case.queries(rng, 2, QUERY_HEADS)
    stream = kvit.Stream("cuda:0")
    q_there, out = to_device(q, "cuda:0"), kvit.Buffer.empty(q.shape, "bfloat16", "cuda:0")
    op = here.op()
    arguments = [pointer(capi.tensor(x)) for x in (q_there, out)]
    here.api.attention(op, here.view, byref(here.table), *arguments, None, None, stream.handle)
    here.api.op_check(op, stream.handle, None)  # waits for it
    state, bound = case.expect(q)
    tolerances.assert_within(out.numpy(), state.out, bound)
