"""kvit.ConvertPages: bytes stay as they are where the codec stays, and are the reference's where it changes."""

import itertools

import numpy as np
import pytest

import kvit
from kvit import reference
from support.caches import BFLOAT16, FLOAT16, NO_PAGE, to_device
from support.stored import Stored, full_stored, new_stored

# (from, to) of K, and of V: all that is built, K and V never the same.
CHANGES = [
    (("bfloat16", "bfloat16"), ("int8", "int4")),
    (("bfloat16", "bfloat16"), ("int4", "float8_e4m3")),
    (("int8", "bfloat16"), ("int4", "int8")),
    (("float8_e4m3", "float8_e4m3"), ("int8", "int4")),
    (("int8", "int4"), ("bfloat16", "bfloat16")),
    (("float8_e4m3", "int8"), ("bfloat16", "int4")),
    (("int8", "int8"), ("int8", "int4")),  # K is moved, V requantised
    (("bfloat16", "int8"), ("float8_e4m3", "int8")),
]
SAME = [("bfloat16", "bfloat16"), ("int8", "int8"), ("int4", "int4"), ("float8_e4m3", "int4"), ("bfloat16", "int8")]


def in_dtype(pair, dtype):
    return tuple(dtype.name if name == "bfloat16" else name for name in pair)


def ids(pages, device):
    return to_device(np.array(pages, np.int32), device)


@pytest.mark.parametrize("page_size", [1, 3, 70])  # 70 x 2 rows: more than a batch of a CTA at head_dim 256
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16], ids=str)
@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_requantised_pages_are_the_references_bit_for_bit(rng, device, change, dtype, head_dim, page_size):
    old, new = (in_dtype(pair, dtype) for pair in change)
    shape = {"head_dim": head_dim, "page_size": page_size}
    source = full_stored(rng, old, dtype, device, layout="HND", **shape)
    target = new_stored(new, dtype, device, layout="NHD", **shape)
    convert = kvit.ConvertPages(source.view, target.view)
    convert(source.view, target.view, source_pages=ids([4, 0, 2], device), target_pages=ids([1, 3, 0], device))
    convert.check()
    reference.convert_pages(source.cache, target.cache, [4, 0, 2], [1, 3, 0], dtype)
    target.assert_same()
    source.assert_same()


@pytest.mark.parametrize(("old_layout", "new_layout"), list(itertools.product(["NHD", "HND"], repeat=2)))
@pytest.mark.parametrize("page_size", [1, 5, 33])  # one more than a tile of 32
@pytest.mark.parametrize("pair", SAME, ids=str)
def test_rows_move_between_layouts_byte_for_byte(rng, device, pair, page_size, old_layout, new_layout):
    scale = np.array([0.5, 2], np.float32)
    scales = tuple(scale if name.startswith("float8") else None for name in pair)
    shape = {"page_size": page_size, "scales": scales}
    source = full_stored(rng, pair, BFLOAT16, device, layout=old_layout, **shape)
    target = new_stored(pair, BFLOAT16, device, layout=new_layout, **shape)
    view = with_scales_of(source, target)
    convert = kvit.ConvertPages(source.view, view)
    convert(source.view, view)
    convert.check()
    everything = np.arange(5)
    reference.convert_pages(source.cache, target.cache, everything, everything, BFLOAT16)
    target.assert_same()


@pytest.mark.parametrize("k_dim, v_dim", [(320, 576), (64, 512), (264, 8)])  # pieces of 512 bytes, whole and not
def test_rows_of_any_width_move(rng, device, k_dim, v_dim):
    old = [rng.standard_normal((5, 3, 2, dim)).astype(BFLOAT16) for dim in (k_dim, v_dim)]
    new = [to_device(np.zeros((5, 2, 3, dim), BFLOAT16), device) for dim in (k_dim, v_dim)]
    source = kvit.CacheView(*(to_device(x, device) for x in old))
    target = kvit.CacheView(*new, layout="HND")
    convert = kvit.ConvertPages(source, target)
    convert(source, target, source_pages=ids([4, 0], device), target_pages=ids([1, 3], device))
    convert.check()
    for x, y in zip(old, new, strict=True):
        want = np.zeros(y.shape, BFLOAT16)
        want[[1, 3]] = x[[4, 0]].swapaxes(1, 2)
        np.testing.assert_array_equal(y.numpy().view(np.uint16), want.view(np.uint16))
    with pytest.raises(kvit.ShapeError, match=f"head_dim {k_dim}x{v_dim}, source 2 and {v_dim}x{k_dim}"):
        kvit.ConvertPages(kvit.CacheView(new[1], new[0], layout="HND"), target)


def with_scales_of(source, target):
    """A view of target's memory with the scales of source: float8 that is moved as it is needs the same ones."""
    names = [f"{side}_scale" for side, name in zip("kv", source.names, strict=True) if name.startswith("float8")]
    if not names:
        return target.view
    scales = {name: source.buffers[f"{name[0]}_params"] for name in names}
    params = {
        f"{side}_params": target.buffers[f"{side}_params"]
        for side, name in zip("kv", target.names, strict=True)
        if name.startswith("int")
    }
    return kvit.CacheView(
        target.buffers["k"], target.buffers["v"], layout=target.cache.layout, kv=target.names, dtype="bfloat16",
        **scales, **params,
    )  # fmt: skip


def test_float8_scales_of_rows_move_with_them(rng, device):
    scale = rng.uniform(0.5, 2, (5, 3, 2)).astype(np.float32)
    pair = ("float8_e4m3", "float8_e4m3")
    source = full_stored(rng, pair, BFLOAT16, device, scales=(scale, scale.copy()))
    other = np.zeros((5, 2, 3), np.float32)
    target = new_stored(pair, BFLOAT16, device, layout="HND", scales=(other, other.copy()))
    kvit.ConvertPages(source.view, target.view)(source.view, target.view)
    reference.convert_pages(source.cache, target.cache, np.arange(5), np.arange(5), BFLOAT16)
    target.assert_same()


def test_pages_that_do_not_exist_are_reported_and_left_alone(rng, device):
    source = full_stored(rng, ("bfloat16", "int8"), BFLOAT16, device)
    target = new_stored(("int8", "int8"), BFLOAT16, device)
    convert = kvit.ConvertPages(source.view, target.view)
    pages = ids([1, NO_PAGE, 3, 2], device), ids([4, 0, -1, 2], device)
    convert(source.view, target.view, source_pages=pages[0], target_pages=pages[1])
    with pytest.raises(kvit.PageTableError, match=rf"entry (1 of the pages is {NO_PAGE}|2 of the pages is -1)"):
        convert.check()
    convert.check()  # told once
    reference.convert_pages(source.cache, target.cache, [1, 2], [4, 2], BFLOAT16)
    target.assert_same()


def test_a_captured_conversion_converts_the_pages_that_its_lists_name_when_it_runs(rng, device):
    source = full_stored(rng, ("bfloat16", "bfloat16"), BFLOAT16, device)
    target = new_stored(("int8", "bfloat16"), BFLOAT16, device, layout="HND")
    convert, stream = kvit.ConvertPages(source.view, target.view), kvit.Stream(device)
    pages = ids([0, 0], device), ids([0, 0], device)
    with kvit.Graph.capture(stream) as graph:
        convert(source.view, target.view, source_pages=pages[0], target_pages=pages[1], stream=stream)
    target.assert_same()
    for old, new in (([3, 1], [0, 2]), ([4, 2], [1, 0])):
        for buffer, array in zip(pages, (old, new), strict=True):
            buffer.copy_from(np.array(array, np.int32))
            buffer.stream.synchronize()
        graph.launch()
        stream.synchronize()
        convert.check(stream)
        reference.convert_pages(source.cache, target.cache, old, new, BFLOAT16)
        target.assert_same()


@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("page_size", [4, 150])  # 150 x 2 rows: a CTA takes them in several batches
@pytest.mark.parametrize("pair", [("int8", "int4"), ("int4", "int8")], ids=str)
def test_pages_shrink_where_they_lie(rng, device, pair, page_size, layout):
    # 16-bit pages of K and V side by side in one tensor; the new rows at the front of each, the parameters behind them.
    base, wide = side_by_side(rng, page_size, layout)
    before = base.copy()
    source = Stored(wide, BFLOAT16, device, {"k": base, "v": base})
    small = [packed_in_page(base, source.buffers["k"], i, name, page_size, layout) for i, name in enumerate(pair)]
    view = kvit.CacheView(
        small[0]["data"], small[1]["data"], layout=layout, kv=pair, dtype="bfloat16",
        k_params=small[0]["params"], v_params=small[1]["params"],
    )  # fmt: skip
    convert = kvit.ConvertPages(source.view, view)
    pages = ids([3, 0, 1], device)
    convert(source.view, view, source_pages=pages, target_pages=pages)
    convert.check()

    apart = new_stored(pair, BFLOAT16, "host", pages=4, page_size=page_size, layout=layout)
    reference.convert_pages(wide, apart.cache, [3, 0, 1], [3, 0, 1], BFLOAT16)
    expected = before.view(np.uint8).reshape(4, 2, -1)
    for i, side in enumerate("kv"):
        data, params = (getattr(apart.cache, name).view(np.uint8).reshape(4, -1) for name in (side, f"{side}_params"))
        page = np.concatenate([data, params], axis=1)
        expected[[3, 0, 1], i, : page.shape[1]] = page[[3, 0, 1]]
    got = source.buffers["k"].numpy().view(np.uint8).reshape(4, 2, -1)
    np.testing.assert_array_equal(got, expected)  # page 2 and what is behind the new rows are as they were


def side_by_side(rng, page_size, layout):
    """A tensor [4 pages, K or V, page], full of rows, and the cache in it."""
    page = (page_size, 2, 64) if layout == "NHD" else (2, page_size, 64)
    base = rng.standard_normal((4, 2, *page)).astype(BFLOAT16)
    return base, reference.Cache(
        base[:, 0], base[:, 1], layout, reference.codec_of("bfloat16"), reference.codec_of("bfloat16")
    )


def packed_in_page(base, buffer, side, name, page_size, layout):
    """Views of codes at the front of each page of K (side 0) or V, and of parameters right behind them."""
    row = {"int8": 64, "int4": 32}[name]
    page_stride, begin = base.strides[0], buffer.pointer + side * base.strides[1]
    outer, inner = (page_size, 2) if layout == "NHD" else (2, page_size)

    def part(start, width, dtype, channels):
        last = 0 if dtype == "uint4" else {"uint8": 1, "bfloat16": 2}[dtype]
        strides = (page_stride, inner * width, width, last)
        return kvit.Tensor.from_pointer(
            begin + start, (4, outer, inner, channels), dtype, buffer.device, strides=strides, owner=buffer
        )

    data = part(0, row, "uint8" if name == "int8" else "uint4", 64)
    return {"data": data, "params": part(outer * inner * row, 4, "bfloat16", 2)}


def test_shrinking_twice_where_pages_lie_is_shrinking_twice_elsewhere(rng, device):
    base, wide = side_by_side(rng, 6, "HND")
    source = Stored(wide, BFLOAT16, device, {"k": base, "v": base})
    views = [source.view]
    for name in ("int8", "int4"):
        k, v = (packed_in_page(base, source.buffers["k"], side, name, 6, "HND") for side in (0, 1))
        views.append(
            kvit.CacheView(
                k["data"], v["data"], layout="HND", kv=name, dtype="bfloat16",
                k_params=k["params"], v_params=v["params"],
            )
        )  # fmt: skip
    for old, new in zip(views, views[1:], strict=False):
        kvit.ConvertPages(old, new)(old, new)
    steps = [wide]
    for name in ("int8", "int4"):
        steps.append(new_stored((name, name), BFLOAT16, "host", pages=4, page_size=6, layout="HND").cache)
        reference.convert_pages(steps[-2], steps[-1], np.arange(4), np.arange(4), BFLOAT16)
    out = [to_device(np.zeros((24, 2, 64), BFLOAT16), device) for _ in range(2)]
    table = kvit.PageTable(ids([[0, 1, 2, 3]], device), lengths=ids([24], device))
    kvit.Gather(views[-1])(views[-1], table, out=out)
    for got, want in zip(out, reference.gather(steps[-1], reference.Table([range(4)], [24]), BFLOAT16), strict=False):
        np.testing.assert_array_equal(got.numpy(), want)
