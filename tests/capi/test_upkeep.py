"""What C has besides steps: ropes, rows that turn and are normalised, pages copied and converted, caches kept in order.

Each against the call of Python that it stands for, which other tests compare with the reference.
"""

import ctypes
from ctypes import byref, c_int64, c_void_p, pointer

import numpy as np
import pytest

import kvit
from support import capi
from support.caches import BFLOAT16, make_case, new_tokens, to_device
from support.quantised import Quantised

# Llama 3.1's, as its config.json has it.
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LLAMA3_TEXT = (
    b'{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,'
    b' "original_max_position_embeddings": 8192}'
)


@pytest.fixture
def make(api):
    """Handles that go when the test ends, the last one first."""
    made = []

    def new(kind, options):
        made.append((kind, api.make(f"{kind}_create", options)))
        return made[-1][1]

    yield new
    for kind, handle in reversed(made):
        getattr(api, f"{kind}_destroy")(handle)


def rope_options(**fields):
    return capi.options(capi.RopeOptions, head_dim=64, **fields)


def same(found, wanted):
    np.testing.assert_array_equal(found.view(np.uint8), wanted.view(np.uint8))


def given(array):
    return pointer(capi.tensor(array))


ROPES = [
    ({}, {}),
    ({"rotary_dim": 32, "interleaved": 1, "base": 500000.0}, {"rotary_dim": 32, "interleaved": True, "base": 500000.0}),
    ({"scaling": LLAMA3_TEXT}, {"scaling": LLAMA3}),
    ({"scaling": b"null"}, {}),
]


@pytest.mark.parametrize(("fields", "words"), ROPES)
def test_rows_turn_as_pythons_do(api, make, rng, device, fields, words):
    cases = [make_case(np.random.default_rng(1), [9, 30], device=device) for _ in range(2)]
    k, v = new_tokens(rng, 10)
    q = rng.standard_normal((10, 8, 64)).astype(BFLOAT16)
    norm = to_device(rng.standard_normal(64).astype(BFLOAT16), device)
    bias = to_device(rng.standard_normal((2, 64)).astype(BFLOAT16), device)
    positions = to_device(rng.integers(0, 5000, 10).astype(np.int32), device)
    k, v, q = (to_device(x, device) for x in (k, v, q))
    outs = [to_device(np.zeros((10, 8, 64), BFLOAT16), device) for _ in range(2)]

    theirs = kvit.Append(cases[0].view, rope=kvit.Rope(64, **words), k_norm=norm, norm_eps=1e-5, norm_offset=1.0)
    theirs(k, v, cases[0].view, cases[0].page_table, q=q, q_out=outs[0], positions=positions, k_bias=bias)

    rope = make("rope", rope_options(**fields))
    view = api.view(cases[1].view)
    op = api.op(view, capi.APPEND, rope=rope, k_norm=given(norm), norm_eps=1e-5, norm_offset=1.0)
    extras = capi.options(
        capi.AppendExtras, q=given(q), q_out=given(outs[1]), positions=given(positions), k_bias=given(bias)
    )
    table = capi.table_of(cases[1].page_table)
    api.append_rotated(op, view, byref(table), given(k), given(v), None, byref(extras), None)
    api.op_check(op, None, None)
    same(outs[1].numpy(), outs[0].numpy())
    for mine, other in zip(*(case.pools_on_device() for case in reversed(cases)), strict=True):
        same(mine, other)
    api.op_destroy(op)
    api.view_destroy(view)


def test_append_of_an_operation_with_a_rope_turns_k(api, make, rng, device):
    cases = [make_case(np.random.default_rng(1), [9, 30], device=device) for _ in range(2)]
    k, v = (to_device(x, device) for x in new_tokens(rng, 2))
    kvit.Append(cases[0].view, rope=kvit.Rope(64))(k, v, cases[0].view, cases[0].page_table)
    view = api.view(cases[1].view)
    op = api.op(view, capi.APPEND, rope=make("rope", rope_options()))
    api.append(op, view, byref(capi.table_of(cases[1].page_table)), given(k), given(v), None, None)
    api.op_check(op, None, None)
    for mine, other in zip(*(case.pools_on_device() for case in reversed(cases)), strict=True):
        same(mine, other)
    api.op_destroy(op)
    api.view_destroy(view)


def test_what_a_rope_was_made_into_outlives_it(api, rng):
    rope = api.make("rope_create", rope_options())
    case = make_case(rng, [5])
    view = api.view(case.view)
    op = api.op(view, capi.APPEND, rope=rope)
    api.rope_destroy(rope)
    k, v = new_tokens(rng, 1)
    api.append_rotated(op, view, byref(capi.table_of(case.page_table)), given(k), given(v), None, None, None)
    with pytest.raises(capi.Refused, match="this kvit_rope was destroyed; create another"):
        api.op(view, capi.APPEND, rope=rope)
    api.op_destroy(op)
    api.view_destroy(view)


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"rotary_dim": 18}, "SHAPE", "rotary_dim is 18"),
        ({"interleaved": 2}, "ARGUMENT", "interleaved is 2; give 0 or 1"),
        ({"base": -1.0}, "ARGUMENT", "base is -1.0"),
        ({"scaling": b"{"}, "ARGUMENT", "scaling is no JSON: .*; give the text of a configuration's rope_scaling"),
        ({"scaling": b"[1]"}, "ARGUMENT", r"scaling is \[1\]; give the text"),
        ({"scaling": b'{"rope_type": "spiral"}'}, "ARGUMENT", "spiral"),
        ({"size": 8}, "ARGUMENT", r"kvit_rope_options.size is 8; set it to sizeof\(kvit_rope_options\)"),
    ],
)
def test_ropes_that_cannot_be_are_refused(api, fields, status, words):
    options = rope_options()
    for name, value in fields.items():
        setattr(options, name, value)
    with pytest.raises(capi.Refused, match=words) as error:
        api.make("rope_create", options)
    assert error.value.status == status


def test_queries_of_an_operation_without_a_rope_are_refused(api, rng):
    case = make_case(rng, [5])
    view = api.view(case.view)
    op = api.op(view, capi.APPEND)
    k, v = (given(x) for x in new_tokens(rng, 1))
    extras = capi.options(capi.AppendExtras, q=given(np.zeros((1, 8, 64), BFLOAT16)))
    table = capi.table_of(case.page_table)
    with pytest.raises(capi.Refused, match="positions and q are for rows that turn") as error:
        api.append_rotated(op, view, byref(table), k, v, None, byref(extras), None)
    assert error.value.status == "SHAPE"
    extras.size = 4
    with pytest.raises(capi.Refused, match="kvit_append_extras.size is 4"):
        api.append_rotated(op, view, byref(table), k, v, None, byref(extras), None)
    api.op_destroy(op)
    api.view_destroy(view)


def test_pages_are_copied_and_a_wrong_one_is_told(api, rng, device):
    case = Quantised(("int8", "int4"), [60], device=device, rng=rng)
    case.append(rng)
    before = {name: buffer.numpy().copy() for name, buffer in case.buffers.items()}
    view = api.view(case.view)
    source, target = (to_device(np.array(x, np.int32), device) for x in ([0, 1], [3, 2]))
    api.copy_pages(view, given(source), given(target), None)
    for name, buffer in case.buffers.items():
        same(buffer.numpy()[[3, 2]], before[name][[0, 1]])
    beyond = to_device(np.array([0, 99], np.int32), device)
    with pytest.raises(capi.Refused, match="99") as error:
        api.copy_pages(view, given(source), given(beyond), None)
    assert error.value.status == "PAGE_TABLE"
    api.view_destroy(view)


def test_pages_are_converted_to_another_codec(api, rng, device):
    old = Quantised((None, None), [60], device=device, rng=rng)
    old.append(rng)
    new = [Quantised(("int8", "int4_hadamard"), [60], device=device, rng=np.random.default_rng(3)) for _ in range(2)]
    kvit.ConvertPages(old.view, new[0].view)(old.view, new[0].view)
    fields = {name: given(buffer) for name, buffer in new[1].buffers.items()}
    target = api.make(
        "view_create",
        capi.options(capi.ViewOptions, layout=capi.HND, k_dtype=4, v_dtype=5 | capi.HADAMARD, dtype=3, **fields),
    )
    source = api.view(old.view)
    api.convert_pages(source, target, None, None, None)
    for name, buffer in new[1].buffers.items():
        same(buffer.numpy(), new[0].buffers[name].numpy())
    with pytest.raises(capi.Refused, match="is NULL; give one that was created"):
        api.convert_pages(source, None, None, None, None)
    for view in (source, target):
        api.view_destroy(view)


def test_a_cache_turns_keeps_order_and_changes_how_it_stores(api, make, rng, device):
    rope = kvit.Rope(64, base=500000.0)
    same_cache = kvit.PagedCache(16, 4, 2, 64, rope=rope, device=device)
    device_type, device_id = (1, 0) if device == "host" else (2, int(device[5:]))
    cache = make(
        "cache",
        capi.options(
            capi.CacheOptions, pages=16, page_size=4, kv_heads=2, head_dim=64, device_type=device_type,
            device_id=device_id, rope=make("rope", rope_options(base=500000.0)),
        ),
    )  # fmt: skip
    mine, theirs = [api.make("sequence_create", cache) for _ in range(2)], [same_cache.sequence() for _ in range(2)]
    k, v = (to_device(x, device) for x in new_tokens(rng, 13))
    q = to_device(rng.standard_normal((13, 8, 64)).astype(BFLOAT16), device)
    outs = [to_device(np.zeros((13, 8, 64), BFLOAT16), device) for _ in range(2)]
    same_cache.append(theirs, k, v, [10, 3], q=q, q_out=outs[0])
    handles = (c_void_p * 2)(*[x.value for x in mine])
    counts = (c_int64 * 2)(10, 3)
    api.cache_append_rotated(cache, handles, 2, given(k), given(v), given(q), given(outs[1]), counts, None)
    same(outs[1].numpy(), outs[0].numpy())

    api.sequence_destroy(mine[0])  # three pages in front are free
    theirs[0].free()
    moved = c_int64(-1)
    api.cache_defragment(cache, byref(moved), None)
    assert moved.value == same_cache.defragment() == 1
    assert api.ask("sequence_query", mine[1], capi.SequenceInfo).num_pages == 1
    pages, count = (ctypes.c_int32 * 4)(), c_int64()
    api.sequence_pages(mine[1], pages, 4, byref(count))
    assert list(pages[: count.value]) == list(theirs[1].pages)

    api.cache_requantise(cache, 4 | capi.HADAMARD, 5, None, None, None)
    same_cache.requantise(k="int8_hadamard", v="int4")
    info = api.ask("cache_query", cache, capi.CacheInfo)
    assert (info.k_dtype, info.v_dtype) == (4 | capi.HADAMARD, 5)
    rows = [to_device(np.zeros((2, 3, 64), BFLOAT16), device) for _ in range(2)]
    one = (c_void_p * 1)(mine[1].value)
    api.cache_gather_layout(cache, one, 1, given(rows[0]), given(rows[1]), capi.HND, None)
    for found, wanted in zip(rows, same_cache.gather([theirs[1]], layout="HND")[:2], strict=True):
        same(found.numpy(), wanted.numpy())
    with pytest.raises(capi.Refused, match="layout is 7"):
        api.cache_gather_layout(cache, one, 1, given(rows[0]), given(rows[1]), 7, None)
    with pytest.raises(capi.Refused, match="k_dtype has dtype 77"):
        api.cache_requantise(cache, 77, 0, None, None, None)
    api.sequence_destroy(mine[1])
