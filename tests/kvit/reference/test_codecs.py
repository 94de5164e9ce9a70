"""kvit.reference.codecs: each codec against its formula one number at a time, and its error against its bound."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from kvit.reference import CODECS, codec_of, pack_int4, unpack_int4
from support.sixteen_bits import is_finite, numbers, typical_rows

FLOAT16, BFLOAT16 = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)
T = pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16], ids=str)
INTEGERS = pytest.mark.parametrize("name", ["int8", "int4"])


def rows_of(dtype, channels=8):
    """Rows of any finite numbers of T; bit patterns reach subnormals and extremes that a range of floats does not."""
    return (
        st.lists(st.integers(0, 2**16 - 1), min_size=channels, max_size=channels)
        .map(lambda bits: np.array(bits, np.uint16).view(dtype))
        .filter(lambda row: is_finite(row).all())
    )


def loop_encode(row, bits):
    """(codes, scale, zero) of one row, one number at a time, every step a float32."""
    one, top = np.float32(1), np.float32(2**bits - 1)
    lo, hi = (np.float32(pick(float(x) for x in row)) for pick in (min, max))
    with np.errstate(over="ignore", invalid="ignore"):
        scale = ((hi - lo) / top).astype(row.dtype)
        if float(scale) < 2.0**-126:
            scale = np.asarray(2.0**-14 if row.dtype == FLOAT16 else 2.0**-126, row.dtype)
        inverse = one / np.float32(scale)
        codes = []
        for x in row:
            position = (np.float32(x) - lo) * inverse
            codes.append(0 if np.isnan(position) else int(min(max(np.rint(position), 0), top)))
    return codes, float(scale), float(lo)


@INTEGERS
@T
@given(data=st.data())
def test_encode_is_the_formula_one_number_at_a_time(name, dtype, data):
    row = data.draw(rows_of(dtype))
    codec = codec_of(name)
    codes, params = codec.encode(row)
    expected, scale, zero = loop_encode(row, codec.bits)
    assert_array_equal(unpack_int4(codes) if name == "int4" else codes, expected)
    assert_array_equal(params.astype(np.float64), [scale, zero])
    assert params.dtype == dtype and codes.dtype == np.uint8


@INTEGERS
@T
@given(data=st.data())
def test_no_finite_row_is_off_by_more_than_its_bound(name, dtype, data):
    row = data.draw(rows_of(dtype))
    codec = codec_of(name)
    encoded = codec.encode(row)
    values = row.astype(np.float64)
    if values.max() - values.min() > np.finfo(np.float32).max:
        assert np.isnan(codec.decode(*encoded)).all()
        return
    error = np.abs(values - codec.decode(*encoded))
    assert (error <= codec.error_bound(row, encoded.params)).all()
    assert error[values.argmin()] == 0


@INTEGERS
@T
def test_half_a_step_is_the_bound_but_for_a_scale_that_bfloat16_rounds_down(rng, name, dtype):
    codec, x = codec_of(name), typical_rows(rng, dtype)
    encoded = codec.encode(x)
    steps = np.abs(x.astype(np.float64) - codec.decode(*encoded)) / encoded.params[:, :1].astype(np.float64)
    # Unit roundoff is 2**-8 in bfloat16: 255 steps of int8 can end 0.996 steps short of hi, 15 of int4 less than half.
    limit = 255 * 2.0**-8 if (name, dtype) == ("int8", BFLOAT16) else 0.5 + 1e-4
    assert 0.45 < steps.max() <= limit
    if limit > 0.6:
        assert steps.max() > 0.6  # the longer bound is needed


@INTEGERS
def test_float16_scales_below_the_normal_numbers_clip_by_little(name):
    # A range of 1e-6: the scale is a few units of 2**-24 or none at all, and far from what it should be.
    codec = codec_of(name)
    x = (np.arange(1, 40)[:, None] * np.linspace(0, 1, 16)).astype(np.uint16).view(np.float16)
    encoded = codec.encode(x)
    error = np.abs(x.astype(np.float64) - codec.decode(*encoded))
    assert error.max() <= (2**codec.bits - 1) * 2.0**-25
    assert (error <= codec.error_bound(x, encoded.params)).all()


@INTEGERS
@T
def test_rows_as_wide_as_the_dtype_keep_their_bound(name, dtype):
    codec, largest = codec_of(name), float(ml_dtypes.finfo(dtype).max)
    # A quarter of bfloat16's largest: the difference of two such numbers is a float32.
    edge = largest if dtype == FLOAT16 else largest / 4
    x = np.linspace(-edge, edge, 64).astype(dtype)
    encoded = codec.encode(x)
    assert (np.abs(x.astype(np.float64) - codec.decode(*encoded)) <= codec.error_bound(x, encoded.params)).all()


@INTEGERS
@T
def test_constant_rows_are_exact(name, dtype):
    x = np.repeat(numbers(dtype)[:, None], 8, axis=1)
    encoded = codec_of(name).encode(x)
    assert_array_equal(encoded.data, 0)
    assert_array_equal(codec_of(name).decode(*encoded), x.astype(np.float64))


@INTEGERS
@T
def test_zero_has_no_sign(name, dtype):
    # Of -0 and 0 either may count as the least; threads that compare in another order must store the same bits.
    signed, plain = np.array([[-0.0, 0.0] * 4, [0.0] * 8], dtype)
    for row in (signed, signed[::-1], -plain):
        assert_array_equal(
            codec_of(name).encode(row).params.view(np.uint16), codec_of(name).encode(plain).params.view(np.uint16)
        )


@INTEGERS
@T
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_is_nan_throughout_and_hurts_no_other(rng, name, dtype, bad):
    codec, x = codec_of(name), rng.standard_normal((3, 16)).astype(dtype)
    good = codec.encode(x)
    x[1, 5] = bad
    encoded = codec.encode(x)
    assert_array_equal(encoded.data[1], 0)
    assert np.isnan(codec.decode(*encoded)[1]).all() and np.isnan(codec.decode(*encoded, dtype)[1]).all()
    assert_array_equal(encoded.data[[0, 2]], good.data[[0, 2]])
    assert_array_equal(encoded.params[[0, 2]], good.params[[0, 2]])


def test_codes_halfway_go_to_the_even_one():
    row = np.array([0, 255, 0.5, 1.5, 2.5, 3.5, 127.5, 128.5], np.float16)  # lo 0, hi 255: a scale of 1
    assert_array_equal(codec_of("int8").encode(row).data, [0, 255, 0, 2, 2, 4, 128, 128])


def test_codes_come_from_the_reciprocal_not_from_a_division():
    row = np.array([0, 13.125, 5.6875, 0, 0, 0, 0, 0], np.float16)  # the scale is 7/8; 5.6875 is 6.5 of them
    assert (
        unpack_int4(codec_of("int4").encode(row).data)[2] == 7
    )  # float32(8/7) is a hair too large; to even would be 6


def test_decoding_to_the_dtype_rounds_twice():
    # 32768 + 29 * 1130/2048 is 2**-10 above the middle of two float16; float32 drops that, and the tie falls to even.
    params = np.array([1130 / 2048, 32768], np.float16)
    exact = codec_of("int8").decode(np.array([29], np.uint8), params)
    assert exact == 32784 + 2.0**-10 and exact.astype(np.float16) == 32800
    assert codec_of("int8").decode(np.array([29], np.uint8), params, np.float16) == 32768


@INTEGERS
@T
def test_decoding_to_the_dtype_rounds_the_float32_value(rng, name, dtype):
    codec, x = codec_of(name), typical_rows(rng, dtype, count=200)
    data, params = codec.encode(x)
    codes = unpack_int4(data) if name == "int4" else data
    scale, zero = params[:, :1].astype(np.float32), params[:, 1:].astype(np.float32)
    assert_array_equal(
        scale.astype(np.float64) * codes, (scale * codes).astype(np.float64)
    )  # no rounding before the sum
    assert_array_equal(codec.decode(data, params, dtype), (scale * codes + zero).astype(dtype))


def test_int4_words_hold_the_even_channels_below_the_odd_ones():
    packed = pack_int4(np.arange(8, dtype=np.uint8))
    word = int.from_bytes(packed.tobytes(), "little")
    assert word == 0x75316420
    assert [word >> shift & 0x000F000F for shift in (0, 4, 8, 12)] == [0x10000, 0x30002, 0x50004, 0x70006]


@given(st.integers(0, 3), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_unpacking_gives_the_packed_codes(rows, words, seed):
    codes = np.random.default_rng(seed).integers(0, 16, (rows, 2, 8 * words), dtype=np.uint8)
    packed = pack_int4(codes)
    assert packed.shape == (rows, 2, 4 * words)
    assert_array_equal(unpack_int4(packed), codes)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_sixteen_bits_keep_every_bit(name):
    codec, dtype = codec_of(name), np.dtype(name if name == "float16" else BFLOAT16)
    x = np.arange(2**16, dtype=np.uint16).view(dtype)[None]
    data, params = codec.encode(x)
    assert params is None
    assert_array_equal(data.view(np.uint16), x.view(np.uint16))
    finite = is_finite(x)
    assert_array_equal(codec.decode(data, None)[finite], x[finite].astype(np.float64))


@pytest.mark.parametrize(
    ("name", "data", "params"),
    [
        ("float16", 256, 0),
        ("bfloat16", 256, 0),
        ("int8", 128, 4),
        ("int4", 64, 4),
        ("float8_e4m3", 128, 0),
        ("nvfp4", 64, 8),
        ("mxfp4", 64, 4),
    ],
)
def test_a_row_takes_the_bytes_it_says(rng, name, data, params):
    dtype = FLOAT16 if name == "float16" else BFLOAT16
    codec, x = codec_of(name), typical_rows(rng, dtype, count=1, channels=128)
    encoded = codec.encode(x)
    assert (codec.row_bytes(128), codec.param_bytes(128)) == (data, params) == (encoded.data.nbytes, params)
    assert params == 0 or encoded.params.nbytes == params
    assert encoded.data.shape[-1] == codec.row_elements(128) and codec.channels(encoded.data.shape[-1]) == 128
    assert encoded.data.dtype == codec.data_dtype(dtype)


@INTEGERS
def test_scales_factor_out_of_both_products(rng, name):
    codec = codec_of(name)
    k, v = (typical_rows(rng, FLOAT16, count=9) for _ in range(2))
    q, p = rng.standard_normal(64), rng.random(9)
    (k_scale, k_zero), (v_scale, v_zero) = (codec.encode(x).params.astype(np.float64).T for x in (k, v))
    k_codes, v_codes = (
        (codec.decode(*codec.encode(x)) - zero[:, None]) / scale[:, None]
        for x, scale, zero in ((k, k_scale, k_zero), (v, v_scale, v_zero))
    )
    scores = k_scale * (k_codes @ q) + k_zero * q.sum()
    out = (p * v_scale) @ v_codes + p @ v_zero
    np.testing.assert_allclose(scores, codec.decode(*codec.encode(k)) @ q, rtol=1e-9)
    np.testing.assert_allclose(out, p @ codec.decode(*codec.encode(v)), rtol=1e-9)


def test_names_are_those_that_users_write():
    assert [codec_of(name).name for name in CODECS] == list(CODECS)
    assert codec_of("float8_e4m3fn") is codec_of("float8_e4m3") is codec_of(codec_of("float8_e4m3"))
    with pytest.raises(ValueError, match=r"unknown codec 'int2'; known are float16, bfloat16, int8, int4, float8_e4m3"):
        codec_of("int2")


def test_what_cannot_be_encoded_is_refused():
    with pytest.raises(ValueError, match="rows are float32; codecs encode float16 or bfloat16"):
        codec_of("int8").encode(np.zeros((1, 8), np.float32))
    with pytest.raises(ValueError, match="int4 packs whole 32-bit words; head_dim 12 is no multiple of 8"):
        codec_of("int4").encode(np.zeros((1, 12), np.float16))
    with pytest.raises(ValueError, match="rows are bfloat16; float16 stores them as they are"):
        codec_of("float16").encode(np.zeros((1, 8), BFLOAT16))
    for name in ("int8", "float16"):
        with pytest.raises(ValueError, match=f"{name} takes no scale"):
            codec_of(name).encode(np.zeros((1, 8), np.float16), 2.0)
