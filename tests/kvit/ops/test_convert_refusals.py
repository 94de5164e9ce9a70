"""What kvit.ConvertPages refuses, and that nothing is written then."""

import numpy as np
import pytest

import kvit
from support.caches import BFLOAT16, FLOAT16, to_device
from support.stored import full_stored, new_stored

V = 16384
WIDE, NARROW = ("bfloat16", "bfloat16"), ("int8", "int8")


def pool(memory, start, shape, dtype, strides=None):
    """A tensor in `memory`, `start` bytes on."""
    if strides is None:
        return kvit.Tensor.from_pointer(memory.pointer + start, shape, dtype, "host", owner=memory)
    return kvit.Tensor.from_pointer(memory.pointer + start, shape, dtype, "host", strides=strides, owner=memory)


class Memory:
    """Bytes with a 16-bit cache of 4 pages of 2 tokens, 2 heads, head_dim 64: pages of 512 bytes, K at 0, V at V."""

    def __init__(self):
        self.bytes = to_device(np.arange(1 << 14, dtype=np.uint32).view(np.uint8), "host")
        self.before = self.bytes.numpy().copy()
        shape = (4, 2, 2, 64)
        self.wide = kvit.CacheView(*(pool(self.bytes, begin, shape, "bfloat16") for begin in (0, V)))

    def narrow(self, begins, page_stride=512, head_stride=64, params=None):
        """int8 rows: pages of K and of V begin there; parameters in memory of their own unless `params` says where."""
        strides = (page_stride, 2 * head_stride, head_stride, 1)
        rows = [pool(self.bytes, begin, (4, 2, 2, 64), "uint8", strides) for begin in begins]
        begins = (8192, 24576) if params is None else params
        pairs = [pool(self.bytes, begin, (4, 2, 2, 2), "bfloat16", (page_stride, 8, 4, 2)) for begin in begins]
        return kvit.CacheView(*rows, kv="int8", dtype="bfloat16", k_params=pairs[0], v_params=pairs[1])


def test_the_front_of_each_page_is_accepted():
    memory = Memory()
    narrow = memory.narrow((0, V))
    kvit.ConvertPages(memory.wide, narrow)(memory.wide, narrow)
    assert (memory.bytes.numpy() != memory.before).any()


@pytest.mark.parametrize(
    ("match", "make"),
    [
        ("begin where its old ones do", lambda memory: memory.narrow((64 * 4, V))),  # the end of the page
        ("begin where its old ones do", lambda memory: memory.narrow((0, V + 16))),
        ("head strides that are not larger", lambda memory: memory.narrow((0, V), head_stride=128 + 16)),
        ("target.k lies over source.k", lambda memory: memory.narrow((0, V), page_stride=256)),  # pages move up
        ("target.k lies over source.v", lambda memory: memory.narrow((V, 1 << 15))),
        ("target.k lies over target.v", lambda memory: memory.narrow((0, 0))),
        ("target.k_params lies over source.v", lambda memory: memory.narrow((0, V), params=(V + 256, 24576))),
        ("not each page's within that page", lambda memory: memory.narrow((0, V), params=(512 + 256, 24576))),
        ("target.k lies over target.k_params", lambda memory: memory.narrow((0, V), params=(64, 24576))),
    ],
    ids=["end of page", "shifted", "wider rows", "compacted", "k over v", "k over its v", "params over v",
         "params of the next page", "params over codes"],
)  # fmt: skip
def test_other_overlaps_are_refused_before_anything_is_written(match, make):
    memory = Memory()
    narrow = make(memory)
    with pytest.raises(kvit.LayoutError, match=match):
        kvit.ConvertPages(memory.wide, narrow)(memory.wide, narrow)
    np.testing.assert_array_equal(memory.bytes.numpy(), memory.before)


def test_in_place_a_page_cannot_become_another():
    memory = Memory()
    narrow = memory.narrow((0, V))
    one, other = (to_device(np.array(pages, np.int32), "host") for pages in ([0, 1], [1, 0]))
    convert = kvit.ConvertPages(memory.wide, narrow)
    with pytest.raises(kvit.LayoutError, match="source_pages are not target_pages"):
        convert(memory.wide, narrow, source_pages=one, target_pages=other)
    with pytest.raises(kvit.LayoutError, match="source_pages are not target_pages"):
        convert(memory.wide, narrow, source_pages=one)
    np.testing.assert_array_equal(memory.bytes.numpy(), memory.before)
    convert(memory.wide, narrow, source_pages=one, target_pages=one)


def test_moving_rows_over_themselves_is_refused():
    memory = Memory()
    turned = kvit.CacheView(*(pool(memory.bytes, begin, (4, 2, 2, 64), "bfloat16") for begin in (0, V)), layout="HND")
    with pytest.raises(kvit.LayoutError, match="target.k lies over source.k"):
        kvit.ConvertPages(memory.wide, turned)(memory.wide, turned)


def test_a_page_of_too_many_rows_is_not_converted_in_place():
    memory = to_device(np.zeros(2 * 8200 * 128, np.uint8), "host")
    shape = (1, 8200, 1, 64)
    wide = kvit.CacheView(*(pool(memory, i * 8200 * 128, shape, "bfloat16") for i in (0, 1)))
    params = to_device(np.zeros((2, 1, 8200, 1, 2), np.uint16), "host")
    rows = [pool(memory, i * 8200 * 128, shape, "uint8", (8200 * 128, 64, 64, 1)) for i in (0, 1)]
    pairs = [pool(params, i * 8200 * 4, (1, 8200, 1, 2), "bfloat16") for i in (0, 1)]
    narrow = kvit.CacheView(*rows, kv="int8", dtype="bfloat16", k_params=pairs[0], v_params=pairs[1])
    with pytest.raises(kvit.ShapeError, match="8200 rows; in place, pages of at most 8192"):
        kvit.ConvertPages(wide, narrow)(wide, narrow)


@pytest.mark.parametrize(
    ("error", "match", "old", "new", "shape"),
    [
        (kvit.KernelMissing, "b16_e5m2.*b16_e4m3", WIDE, ("float8_e5m2", "int8"), {}),
        (kvit.KernelMissing, "i4_i8.*i8_i4", ("int4", "int4"), NARROW, {}),
        (kvit.ShapeError, "target has 4 KV heads", WIDE, NARROW, {"kv_heads": 4}),
        (kvit.ShapeError, "target has 2 KV heads and head_dim 128", WIDE, NARROW, {"head_dim": 128}),
        (kvit.LayoutError, "k_scale of source and of target are", ("float8_e4m3",) * 2, ("float8_e4m3", "int8"), {}),
    ],
    ids=["to e5m2", "back up", "heads", "head_dim", "scales"],
)
def test_what_cannot_be_converted_is_refused_when_the_operation_is_made(rng, error, match, old, new, shape):
    source, target = full_stored(rng, old, BFLOAT16, "host"), new_stored(new, BFLOAT16, "host", **shape)
    with pytest.raises(error, match=match):
        kvit.ConvertPages(source.view, target.view)


def test_sixteen_bit_types_do_not_mix(rng):
    source, target = full_stored(rng, WIDE, BFLOAT16, "host"), new_stored(NARROW, FLOAT16, "host")
    with pytest.raises(kvit.DtypeError, match="source is for bfloat16 and target for float16"):
        kvit.ConvertPages(source.view, target.view)


def test_head_dims_that_no_lanes_share_are_refused(rng):
    source = full_stored(rng, WIDE, BFLOAT16, "host", head_dim=96)
    target = new_stored(NARROW, BFLOAT16, "host", head_dim=96)
    with pytest.raises(kvit.ShapeError, match="head_dim is 96; .* 64, 128 and 256"):
        kvit.ConvertPages(source.view, target.view)


def test_calls_that_do_not_fit_the_operation_write_nothing(rng):
    source, target = full_stored(rng, WIDE, BFLOAT16, "host"), new_stored(NARROW, BFLOAT16, "host")
    convert = kvit.ConvertPages(source.view, target.view)
    more, larger = (new_stored(NARROW, BFLOAT16, "host", **shape) for shape in ({"pages": 6}, {"page_size": 4}))
    readonly = np.zeros((5, 3, 2, 64), np.uint8)
    readonly.setflags(write=False)
    params = np.zeros((5, 3, 2, 2), BFLOAT16)
    locked = kvit.CacheView(readonly, np.zeros_like(readonly), kv="int8", k_params=params, v_params=params.copy())
    two, three = (np.zeros(count, np.int32) for count in (2, 3))
    for error, match, target_view, pages in (
        (kvit.ShapeError, "source has 5 pages and target 6", more.view, {}),
        (kvit.ShapeError, "pages of 3 tokens and target of 4", larger.view, {}),
        (kvit.ShapeError, "target_pages .*count = 2", target.view, {"source_pages": two, "target_pages": three}),
        (kvit.DtypeError, "source_pages is int64; it must be int32", target.view, {"source_pages": two.astype(int)}),
        (kvit.LayoutError, "target.k is read-only", locked, {}),
        (kvit.DtypeError, "target is CacheView.*make another ConvertPages", source.view, {}),
    ):
        with pytest.raises(error, match=match):
            convert(source.view, target_view, **pages)
    with pytest.raises(TypeError, match="target is a ndarray"):
        convert(source.view, readonly)
    target.assert_same()
