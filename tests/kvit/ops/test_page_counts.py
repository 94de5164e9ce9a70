"""Pages times heads times tokens, where the product is larger than an int32: done or refused, and never less of it."""

import itertools

import numpy as np
import pytest

import kvit

MANY = 65536  # its square is 0 in 32 bits


ADDRESSES = itertools.count(1 << 60, 1 << 50)  # no process has memory there


def nowhere(shape, dtype="float16"):
    """A tensor that nobody may touch: larger than any memory, at an address of its own."""
    return kvit.Tensor.from_pointer(next(ADDRESSES), shape, dtype)


def large_view(pages, tokens, heads, kv="float16"):
    shape = (pages, heads, tokens, 16)
    if kv == "float16":
        return kvit.CacheView(nowhere(shape), nowhere(shape), layout="HND", page_size=tokens)
    params = {f"{side}_params": nowhere((*shape[:3], 2)) for side in "kv"}
    codes = [nowhere(shape, "uint8") for _ in "kv"]
    return kvit.CacheView(*codes, layout="HND", page_size=tokens, kv=kv, dtype="float16", **params)


def test_more_ctas_than_a_grid_has_are_no_copy():
    view = large_view(4, 1, MANY)
    pages = np.zeros(MANY, np.int32)
    with pytest.raises(kvit.ShapeError, match="65536 pairs or chains of pages of 65536 KV heads are 4294967296 CTAs"):
        kvit.CopyPages(view)(view, pages, pages)


def test_more_tiles_than_kernels_count_are_not_moved():
    # More entries than any memory has, at an address that no process has: the lists are refused before they are read.
    pages = kvit.Tensor.from_pointer(1 << 60, (2**31 - 1,), "int32")
    source, target = large_view(2, 2**22, MANY), large_view(2, 2**22, MANY)
    with pytest.raises(kvit.ShapeError, match="tiles of 32 tokens, and one call moves at most 4611686018427387904"):
        kvit.ConvertPages(source, target)(source, target, source_pages=pages, target_pages=pages)


def test_a_page_of_more_rows_than_kernels_count_is_not_requantised():
    source, target = large_view(1, MANY, MANY), large_view(1, MANY, MANY, "int8")
    with pytest.raises(kvit.ShapeError, match="65536 tokens and 65536 KV heads has 4294967296 rows"):
        kvit.ConvertPages(source, target)(source, target)
