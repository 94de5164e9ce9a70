"""kvit.reference.codecs.Float8: the nearest number of each format, at any scale, and its error against its bound."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from kvit.reference import codec_of
from support.caches import BFLOAT16, FLOAT16
from support.sixteen_bits import numbers, typical_rows

T = pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16], ids=str)
FLOAT8S = pytest.mark.parametrize("name", ["float8_e4m3", "float8_e5m2"])


def nearest_float8(x, dtype):
    """The code of the finite number closest to each float64 x, the one with an even code of two."""
    codes = np.arange(256, dtype=np.uint8)
    values = codes.view(dtype).astype(np.float64)
    finite = np.isfinite(values) & (codes != 0x80)  # -0 is told from 0 by the sign alone
    order = np.argsort(values[finite])
    values, codes = values[finite][order], codes[finite][order]
    below = np.clip(np.searchsorted(values, x, side="right") - 1, 0, len(values) - 2)
    down, up = x - values[below], values[below + 1] - x
    chosen = np.where((up < down) | ((up == down) & (codes[below] % 2 == 1)), below + 1, below)
    return np.where((values[chosen] == 0) & np.signbit(x), 0x80, codes[chosen])


@FLOAT8S
@T
def test_float8_is_the_nearest_finite_number(name, dtype):
    codec, x = codec_of(name), numbers(dtype)
    data = codec.encode(x[None]).data[0]
    assert data.dtype == codec.dtype
    assert_array_equal(data.view(np.uint8), nearest_float8(x.astype(np.float64), codec.dtype))


@FLOAT8S
def test_float8_saturates_and_keeps_nan(name):
    codec = codec_of(name)
    x = np.array([[np.inf, -np.inf, 65504, -65504, np.nan, -np.nan]], np.float16)
    data = codec.encode(x, 0.5).data
    assert_array_equal(codec.decode(data, None)[0, :4], [codec.largest, -codec.largest] * 2)
    assert_array_equal(data.view(np.uint8)[0, 4:], 0x7F)
    assert np.isnan(codec.decode(data, None)[0, 4:]).all()
    assert codec.largest == {"float8_e4m3": 448, "float8_e5m2": 57344}[name]


@FLOAT8S
@T
@pytest.mark.parametrize("scale", [2.0**-20, 0.013, 1.0, 77.7])
def test_float8_is_off_by_no_more_than_its_bound_at_any_scale(rng, name, dtype, scale):
    codec, x = codec_of(name), typical_rows(rng, dtype)
    encoded = codec.encode(x, scale)
    assert (np.abs(x.astype(np.float64) - codec.decode(*encoded)) <= codec.error_bound(x, encoded.params)).all()
    scaled = x.astype(np.float32) * (np.float32(1) / np.float32(scale))
    assert_array_equal(encoded.data.view(np.uint8), nearest_float8(scaled.astype(np.float64), codec.dtype))


@FLOAT8S
def test_every_float8_number_survives(name):
    codec, codes = codec_of(name), np.arange(256, dtype=np.uint8)
    values = codes.view(codec.dtype).astype(np.float16)  # float16 holds all numbers of both formats
    finite = np.isfinite(values)
    assert_array_equal(codec.encode(values[None]).data[0].view(np.uint8)[finite], codes[finite])


@FLOAT8S
@pytest.mark.parametrize("shape", [(), (3,), (5, 3)], ids=["tensor", "head", "token and head"])
def test_float8_scales_broadcast_over_rows(rng, name, shape):
    codec, x = codec_of(name), typical_rows(rng, FLOAT16, count=15).reshape(5, 3, 64)
    scale = rng.uniform(0.5, 4, shape).astype(np.float32)
    encoded = codec.encode(x, scale)
    for token, head in np.ndindex(5, 3):
        alone = codec.encode(x[token, head], np.broadcast_to(scale, (5, 3))[token, head])
        assert_array_equal(encoded.data[token, head].view(np.uint8), alone.data.view(np.uint8))
        assert_array_equal(codec.decode(*encoded)[token, head], codec.decode(*alone))
