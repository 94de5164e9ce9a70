"""Parameters of quantised rows in a CacheView: every way not to fit is refused by name, before anything is launched."""

import ml_dtypes
import numpy as np
import pytest

import kvit
from support.caches import BFLOAT16, FLOAT16, on_gpu

ROWS = (3, 2, 16)  # pages, heads, tokens: HND
FLOAT8 = ml_dtypes.float8_e4m3fn


def pairs(*shape, dtype=BFLOAT16):
    return np.ones(shape, dtype)


def scales(*shape):
    return np.ones(shape, np.float32)


def unaligned(dtype, *shape):
    """Memory that begins one byte pair after a multiple of 16."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(size + 32, np.uint8)
    skip = -memory.ctypes.data % 16 + 2
    return memory[skip : skip + size].view(dtype).reshape(shape)


def integers(**change):
    codes = np.zeros((*ROWS, 64), np.uint8)
    return kvit.CacheView(
        codes, codes, layout="HND", **{"k_params": pairs(*ROWS, 2), "v_params": pairs(*ROWS, 2), **change}
    )


def float8(**change):
    codes = np.zeros((*ROWS, 64), FLOAT8)
    return kvit.CacheView(codes, codes, layout="HND", **change)


@pytest.mark.parametrize("name", ["k_params", "v_params"])
@pytest.mark.parametrize(
    ("error", "match", "params"),
    [
        (kvit.ShapeError, r"has shape \[4, 2, 16, 2\]; it must be \[pages = 3", pairs(4, 2, 16, 2)),
        (kvit.ShapeError, "kv_heads = 2", pairs(3, 1, 16, 2)),
        (kvit.ShapeError, "page_size = 16", pairs(3, 2, 8, 2)),
        (kvit.ShapeError, "kv_heads = 2, page_size = 16", pairs(3, 16, 2, 2)),  # NHD beside codes in HND
        (kvit.ShapeError, "scale and zero = 2", pairs(*ROWS, 1)),
        (kvit.ShapeError, "must be", pairs(3, 2, 32)),  # flattened
        (kvit.ShapeError, "needs .*_params", None),
        (kvit.DtypeError, "are float32; they must be float16 or bfloat16", pairs(*ROWS, 2, dtype=np.float32)),
        (kvit.DtypeError, "are uint16; they must be float16 or bfloat16", pairs(*ROWS, 2, dtype=np.uint16)),
        (kvit.DtypeError, "it must be .* like the rest", pairs(*ROWS, 2, dtype=FLOAT16)),
        (kvit.LayoutError, "begins at .* multiples of 4", unaligned(BFLOAT16, *ROWS, 2)),
        (kvit.LayoutError, r"strides \[192, 96, 6, 2\].* multiples of 4", pairs(*ROWS, 3)[..., :2]),
        (kvit.LayoutError, "4 bytes apart; they must lie side by side", pairs(*ROWS, 4)[..., ::2]),
        (kvit.LayoutError, "-2 bytes apart; they must lie side by side", pairs(*ROWS, 2)[..., ::-1]),  # (zero, scale)
        (kvit.DeviceError, "is on cuda:0, the call on host", on_gpu((*ROWS, 2), "bfloat16")),
    ],
)
def test_scale_and_zero_of_every_row_or_nothing(name, error, match, params):
    with pytest.raises(error, match=match):
        integers(**{name: params})


@pytest.mark.parametrize("name", ["k_scale", "v_scale"])
@pytest.mark.parametrize(
    ("error", "match", "scale"),
    [
        (kvit.ShapeError, r"has shape \[3\]; it must be \[kv_heads = 2\]", scales(3)),
        (kvit.ShapeError, r"has shape \[1\]; it must be \[kv_heads = 2\]", scales(1)),  # one for all rows is []
        (kvit.ShapeError, "page_size = 16", scales(3, 2, 15)),
        (kvit.ShapeError, "kv_heads = 2, page_size = 16", scales(3, 16, 2)),
        (kvit.ShapeError, "it must be", scales(*ROWS, 1)),
        (kvit.DtypeError, "is float64; it must be float32", np.ones(2)),
        (kvit.DtypeError, "is float16; it must be float32", np.ones(2, np.float16)),
        (kvit.LayoutError, "no multiple of 4", unaligned(np.float32, 2)),
        (kvit.LayoutError, "no multiple of 4", unaligned(np.float32)),
        (kvit.LayoutError, "no multiples of 4", np.lib.stride_tricks.as_strided(scales(8), (2,), (6,))),
        (kvit.DeviceError, "is on cuda:0, the call on host", on_gpu((2,), "float32")),
    ],
)
def test_a_float8_scale_for_all_rows_for_each_head_or_for_each_row(name, error, match, scale):
    with pytest.raises(error, match=match):
        float8(**{name: scale})
    for fitting in (scales(), scales(2), scales(*ROWS), scales(3, 2, 32)[..., ::2]):
        float8(**{name: fitting})


@pytest.mark.parametrize("name", ["k_scale", "v_scale"])
@pytest.mark.parametrize("value", [-1.0, 0.0, -0.0, np.nan, np.inf, 1e-39], ids=str)
def test_a_float8_scale_that_no_row_can_be_divided_by_is_refused(name, value):
    with pytest.raises(kvit.DtypeError, match=rf"{name} is [-0-9a-z.]*; a scale of float8 must be finite and"):
        float8(**{name: np.array(value, np.float32)})
    with pytest.raises(kvit.DtypeError, match=rf"{name}\[1\] is .*; a scale of float8 must be finite and"):
        float8(**{name: np.array([1, value], np.float32)})
    every_row = scales(*ROWS)
    every_row[1] = value
    float8(**{name: every_row})  # rows may get their scales later
    for fitting in (2.0**-120, 1e-30, 3e38):
        float8(**{name: np.array([9, fitting], np.float32)[::-1]})


@pytest.mark.parametrize("name", ["k_scale", "v_scale"])
def test_a_cache_refuses_a_scale_that_is_none(name):
    options = {"k": "float8_e4m3", "v": "float8_e4m3", "device": "host", name: np.zeros(2, np.float32)}
    with pytest.raises(kvit.DtypeError, match=rf"{name}\[0\] is 0.0"):
        kvit.PagedCache(4, 16, 2, 64, **options)


@pytest.mark.parametrize(
    ("match", "call"),
    [
        ("k_params are of int8 and int4, and k is float8_e4m3", lambda: float8(k_params=pairs(*ROWS, 2))),
        ("v_params are of int8 and int4, and v is float8_e4m3", lambda: float8(v_params=pairs(*ROWS, 2))),
        ("k_scale is of float8, and k is int8", lambda: integers(k_scale=scales())),
        ("v_scale is of float8, and v is int8", lambda: integers(v_scale=scales())),
        (
            "k_params are of int8 and int4, and k is bfloat16",
            lambda: kvit.CacheView(pairs(*ROWS, 64), pairs(*ROWS, 64), layout="HND", k_params=pairs(*ROWS, 2)),
        ),
    ],
)
def test_parameters_of_another_codec_are_refused(match, call):
    with pytest.raises(kvit.DtypeError, match=match):
        call()


@pytest.mark.parametrize("side", ["k", "v"])
def test_append_refuses_parameters_that_it_may_not_write_and_writes_nothing(side):
    params = {"k_params": pairs(*ROWS, 2), "v_params": pairs(*ROWS, 2)}
    params[f"{side}_params"].setflags(write=False)
    view = integers(**params)
    table = kvit.PageTable(np.zeros((1, 1), np.int32), lengths=np.array([4], np.int32))
    rows = pairs(4, 2, 64)
    with pytest.raises(kvit.LayoutError, match=f"view.{side}_params is read-only"):
        kvit.Append(view)(rows, rows, view, table)
    assert all((array == 1).all() for array in params.values())
    kvit.Attention(view, 4)(pairs(1, 4, 64), view, table)  # which only reads them


@pytest.mark.parametrize("scale", [np.float32(0.5), np.array([0.5, 2.0], np.float32)], ids=["one", "of each head"])
def test_k_and_v_may_have_the_same_scales(rng, scale):
    # One array for both: append reads it and writes none.
    codec = {"k": "float8_e4m3", "v": "float8_e4m3", "k_scale": scale, "v_scale": scale}
    cache = kvit.PagedCache(4, 16, 2, 64, **codec, device="host")
    apart = kvit.PagedCache(4, 16, 2, 64, **codec | {"v_scale": scale.copy()}, device="host")
    rows = rng.standard_normal((2, 20, 2, 64)).astype(BFLOAT16)
    found = []
    for each in (cache, apart):
        seq = each.sequence()
        seq.append(*rows)
        found.append([x.numpy().view(np.uint16) for x in each.gather([seq])[:2]])
    np.testing.assert_array_equal(*found)
