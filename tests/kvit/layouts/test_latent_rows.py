"""kvit.LatentRows: which memory makes one, and what is said of memory that does not.

Chosen: shapes of vLLM ([pages, page_size, bytes]) and FlashMLA (with an axis of one head), pages further apart than
their tokens need, as vLLM pads those of 584 bytes, and each way in which memory can be wrong.
"""

import copy

import numpy as np
import pytest

import kvit
from support.caches import to_device

BYTES = pytest.mark.parametrize("token_bytes, k_dim", [(656, 576), (584, 512)])


@BYTES
@pytest.mark.parametrize("heads", [(), (1,)], ids=["vLLM", "FlashMLA"])
def test_the_last_axis_says_how_tokens_are_stored(token_bytes, k_dim, heads):
    buffer = to_device(np.zeros((3, 16, *heads, token_bytes), np.uint8), "host")
    view = kvit.LatentRows(buffer)
    assert (view.num_pages, view.page_size, view.kv_heads) == (3, 16, 1)
    assert (view.head_dim, view.v_dim, view.shares_kv, view.dtype.name) == (k_dim, 512, True, "bfloat16")
    assert view.nbytes == buffer.nbytes
    assert repr(view) == f"LatentRows(3 pages of 16 tokens, fp8_ds_mla rows of {token_bytes} bytes, host)"
    begin = buffer.pointer + (512 if token_bytes == 656 else 16 * 576)
    assert [pool[0] for pool in view.packed.pools] == [buffer.pointer, buffer.pointer, begin, 0]
    page, apart = 16 * token_bytes, (656 if token_bytes == 656 else 8)
    assert view.packed.pools[0][1:3] == (page, 656 if token_bytes == 656 else 576)
    assert view.packed.pools[2][1:3] == (page, apart)


@BYTES
def test_bytes_may_have_any_type_of_one_byte(token_bytes, k_dim):
    buffer = to_device(np.zeros((2, 4, token_bytes), np.uint8), "host")
    assert kvit.LatentRows(kvit.Tensor.wrap(buffer, "float8_e4m3fn")).head_dim == k_dim


def tensor_of(shape, strides, offset=0):
    owner = to_device(np.zeros(1 << 16, np.uint8), "host")
    return kvit.Tensor.from_pointer(owner.pointer + offset, shape, "uint8", "host", strides=strides, owner=owner)


def test_pages_may_be_further_apart_than_their_tokens_need():
    assert kvit.LatentRows(tensor_of((3, 16, 584), (9792, 584, 1))).packed.pools[2][1] == 9792
    assert kvit.LatentRows(tensor_of((3, 3, 584), (1760, 584, 1))).page_size == 3  # 3 tokens have 8 bytes beyond 16s


@pytest.mark.parametrize(
    "shape, strides, offset, error, words",
    [
        ((2, 4, 640), None, 0, kvit.ShapeError, "must be 656 .* or 584 .*make a kvit.CacheView"),
        ((2, 4, 2, 656), None, 0, kvit.ShapeError, "one KV head"),
        ((4, 656), None, 0, kvit.ShapeError, r"give \[pages, page_size, bytes of a token\]"),
        ((2, 0, 656), None, 0, kvit.ShapeError, "at least 1 token"),
        ((2, 4, 656), (4096, 672, 1), 0, kvit.LayoutError, "side by side, 656 bytes each"),
        ((2, 4, 656), (656, 1312, 1), 0, kvit.LayoutError, "side by side"),
        ((2, 3, 584), None, 0, kvit.LayoutError, "1752 bytes apart.*a multiple of 16 bytes.*multiple of 576"),
        ((2, 4, 584), (2304, 584, 1), 0, kvit.LayoutError, "2304 bytes apart.*2336 at least"),
        ((2, 4, 656), None, 8, kvit.LayoutError, "it must be a multiple of 16 bytes"),
    ],
)
def test_memory_that_is_none_is_refused(shape, strides, offset, error, words):
    if strides is None:
        strides = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
    with pytest.raises(error, match=words):
        kvit.LatentRows(tensor_of(shape, strides, offset))


def test_wider_elements_are_refused():
    with pytest.raises(kvit.DtypeError, match="rows are bfloat16; give the bytes"):
        kvit.LatentRows(kvit.Tensor.wrap(to_device(np.zeros((2, 4, 656), np.uint16), "host"), "bfloat16"))


def test_operations_that_do_not_take_them_say_so():
    view = kvit.LatentRows(to_device(np.zeros((2, 4, 656), np.uint8), "host"))
    for operation in (kvit.Append, kvit.Gather, kvit.CopyPages):
        with pytest.raises(TypeError, match="view is a LatentRows; give a kvit.CacheView"):
            operation(view)
    with pytest.raises(TypeError, match="LatentRows; give a kvit.CacheView"):
        kvit.SparseAttention(view, 16, entry_tokens=4, entries=4, queries=1)
    with pytest.raises(TypeError, match="LatentRows"):
        kvit.Shift(view, kvit.Rope(64))
    with pytest.raises(TypeError, match="another of the same arrays"):
        copy.copy(view)
