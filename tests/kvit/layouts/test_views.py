"""CacheView and PageTable: what they take in place, and what they refuse and how they say so."""

import re

import numpy as np
import pytest

import kvit
from support.caches import BFLOAT16, on_gpu, poisoned


@pytest.mark.parametrize(("layout", "shape"), [("NHD", (6, 16, 2, 64)), ("HND", (6, 2, 16, 64))])
def test_a_view_knows_its_shape_and_keeps_the_caller_s_memory(layout, shape):
    k, v = poisoned(shape, BFLOAT16), poisoned(shape, BFLOAT16)
    view = kvit.CacheView(k, v, layout=layout)
    assert (view.num_pages, view.page_size, view.kv_heads, view.head_dim) == (6, 16, 2, 64)
    assert (view.dtype.name, view.device, view.layout) == ("bfloat16", "host", layout)
    assert view.k.pointer == k.__array_interface__["data"][0]


def test_k_and_v_may_be_halves_of_one_tensor():
    pool = poisoned((6, 2, 16, 2, 64), BFLOAT16)
    view = kvit.CacheView(pool[:, 0], pool[:, 1])
    assert view.v.pointer - view.k.pointer == 16 * 2 * 64 * 2
    assert view.k.strides[0] == pool.strides[0]


@pytest.mark.parametrize(("layout", "shape"), [("NHD", (96, 2, 64)), ("HND", (2, 96, 64))])
def test_a_pool_of_tokens_is_cut_into_pages(layout, shape):
    pool = poisoned(shape, BFLOAT16)
    view = kvit.CacheView(pool, pool, layout=layout, page_size=16)
    assert (view.num_pages, view.page_size, view.kv_heads) == (6, 16, 2)
    with pytest.raises(kvit.ShapeError, match="96 tokens, which are no whole number of pages of 17"):
        kvit.CacheView(pool, pool, layout=layout, page_size=17)
    with pytest.raises(kvit.ShapeError, match=r"k has shape .*must be \[pages"):
        kvit.CacheView(pool, pool, layout=layout)


def test_raw_16_bit_memory_needs_the_name_of_its_dtype():
    raw = np.zeros((6, 16, 2, 64), np.uint16)
    assert kvit.CacheView(raw, raw, kv="bfloat16").dtype.name == "bfloat16"
    with pytest.raises(kvit.DtypeError, match="k is float16; it must be bfloat16"):
        kvit.CacheView(raw.view(np.float16), raw, kv="bfloat16")


@pytest.mark.parametrize(
    ("error", "match", "arguments"),
    [
        (kvit.ShapeError, "v .like k. has shape", {"v": poisoned((6, 16, 3, 64), BFLOAT16)}),
        (kvit.DtypeError, "v is float16; it must be bfloat16", {"v": np.zeros((6, 16, 2, 64), np.float16)}),
        (kvit.DeviceError, "v is on cuda:0, the call on host", {"v": on_gpu((6, 16, 2, 64))}),
        (kvit.LayoutError, "layout is 'DNH'; it must be 'NHD'", {"layout": "DNH"}),
        (kvit.ShapeError, "page_size is 8, but in layout NHD the pages of k hold 16", {"page_size": 8}),
        (kvit.ShapeError, "page_size is 0; a page holds at least 1 token", {"page_size": 0}),
        (kvit.ShapeError, "a page holds at most 2147483647 tokens", {"page_size": 2**70}),
        (kvit.ShapeError, "only the number of pages may be 0", dict.fromkeys("kv", poisoned((6, 0, 2, 64), BFLOAT16))),
        (kvit.LayoutError, "v has channels 4 bytes apart", {"v": poisoned((6, 16, 2, 128), BFLOAT16)[..., ::2]}),
        (kvit.LayoutError, "multiples of 16 bytes", {"v": poisoned((6, 16, 2, 65), BFLOAT16)[..., :64]}),
        (kvit.LayoutError, "multiples of 16 bytes", {"v": poisoned((6, 16, 2, 72), BFLOAT16)[..., 4:68]}),
        (kvit.DtypeError, "is no tensor", {"k": None}),
    ],
)
def test_what_does_not_fit_is_refused_by_name(error, match, arguments):
    rows = poisoned((6, 16, 2, 64), BFLOAT16)
    with pytest.raises(error, match=match):
        kvit.CacheView(**({"k": rows, "v": rows} | arguments))


def test_a_view_of_no_pages_is_fine():
    nothing = poisoned((0, 16, 2, 64), BFLOAT16)
    assert kvit.CacheView(nothing, nothing).num_pages == 0
    tokens = poisoned((0, 2, 64), BFLOAT16)
    assert kvit.CacheView(tokens, tokens, page_size=16).num_pages == 0


@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("cuts_pages", [False, True])
def test_a_view_says_where_its_rows_lie(layout, cuts_pages):
    # K and V of other widths, in arrays with room to spare, so that no two strides are the same.
    shape = (3, 16, 2) if layout == "NHD" else (3, 2, 16)
    if cuts_pages:
        shape = (48, 2) if layout == "NHD" else (2, 48)
    k, v = poisoned((*shape, 96), BFLOAT16)[..., :64], poisoned((*shape, 48), BFLOAT16)[..., :32]
    view = kvit.CacheView(k, v, layout=layout, page_size=16)
    assert view.packed.shape == (3, 16, 2, 64, 32)
    token, head = (-3, -2) if layout == "NHD" else (-2, -3)
    for pool, (base, *strides) in zip((k, v), view.packed.pools, strict=False):
        page = 16 * pool.strides[token] if cuts_pages else pool.strides[0]
        assert (base, strides) == (pool.ctypes.data, [page, pool.strides[token], pool.strides[head]])


def test_the_stride_of_an_axis_of_one_does_not_matter():
    rows = poisoned((16 * 2 * 64,), BFLOAT16)
    odd = np.lib.stride_tricks.as_strided(rows, (1, 16, 2, 64), (2, 256, 128, 2))
    assert kvit.CacheView(odd, odd).num_pages == 1


def test_unsigned_integers_of_a_table_are_read_as_what_they_are():
    unsigned = np.zeros((3, 8), np.uint32)
    table = kvit.PageTable(unsigned, lengths=np.ones(3, np.uint32))
    assert table.pages.dtype.name == "int32" and table.pages.pointer == unsigned.ctypes.data


def integers(*shape):
    return np.zeros(shape, np.int32)


def test_a_dense_and_a_ragged_table_say_how_many_sequences_they_have():
    assert kvit.PageTable(integers(3, 8), lengths=integers(3)).num_sequences == 3
    ragged = kvit.PageTable(indptr=integers(4), indices=integers(20), lengths=integers(3))
    assert (ragged.num_sequences, ragged.device) == (3, "host")


def test_rows_of_a_dense_table_may_be_further_apart():
    assert kvit.PageTable(integers(3, 9)[:, :8], lengths=integers(3)).pages.strides == (36, 4)


@pytest.mark.parametrize(
    ("error", "match", "arguments"),
    [
        (kvit.ShapeError, "give pages [sequences, slots], or both", {"lengths": integers(3)}),
        (kvit.ShapeError, "or both indptr", {"lengths": integers(3), "indptr": integers(4)}),
        (kvit.ShapeError, "or both indptr", {"lengths": integers(3), "pages": integers(3, 8), "indptr": integers(4)}),
        (
            kvit.ShapeError,
            "give pages",
            {"lengths": integers(3), "pages": integers(3, 8), "indptr": integers(4), "indices": integers(9)},
        ),
        (kvit.ShapeError, "pages has shape [2, 8]", {"lengths": integers(3), "pages": integers(2, 8)}),
        (kvit.ShapeError, "indptr has shape [3]",
         {"lengths": integers(3), "indptr": integers(3), "indices": integers(9)}),
        (kvit.ShapeError, "lengths has shape [3, 1]", {"lengths": integers(3, 1), "pages": integers(3, 8)}),
        (kvit.DtypeError, "lengths is int64; it must be int32",
         {"lengths": np.zeros(3, np.int64), "pages": integers(3, 8)}),
        (kvit.DtypeError, "pages is float32", {"lengths": integers(3), "pages": np.zeros((3, 8), np.float32)}),
        (kvit.LayoutError, "pages has entries 8 bytes apart",
         {"lengths": integers(3), "pages": integers(3, 8)[:, ::2]}),
        (kvit.LayoutError, "lengths has entries 8 bytes apart", {"lengths": integers(6)[::2], "pages": integers(3, 8)}),
        (kvit.DeviceError, "pages is on cuda:1, the call on cuda:0",
         {"lengths": on_gpu((3,), "int32"), "pages": on_gpu((3, 8), "int32", "cuda:1")}),
        (kvit.DeviceError, "indptr is on host, the call on cuda:0",
         {"lengths": on_gpu((3,), "int32"), "indptr": integers(4), "indices": on_gpu((9,), "int32")}),
    ],
)  # fmt: skip
def test_a_table_that_does_not_fit_is_refused_by_name(error, match, arguments):
    with pytest.raises(error, match=re.escape(match)):
        kvit.PageTable(**arguments)


def test_views_and_tables_say_what_they_are():
    rows = poisoned((6, 16, 2, 64), BFLOAT16)
    assert repr(kvit.CacheView(rows, rows)) == (
        "CacheView(6 pages of 16 tokens, 2 KV heads, head_dim 64, bfloat16, NHD, host)"
    )
    assert repr(kvit.PageTable(integers(3, 8), lengths=integers(3))) == "PageTable(3 sequences, [3, 8] pages, host)"
