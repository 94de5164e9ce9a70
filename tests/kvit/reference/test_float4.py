"""kvit.reference.float4: scales of blocks and codes against their formulas one number at a time, and what is at the
edges."""

from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from kvit import reference
from kvit.reference import codec_of
from kvit.reference.float4 import pack_e2m1, unpack_e2m1
from support.caches import BFLOAT16, FLOAT16
from support.sixteen_bits import is_finite, numbers, typical_rows

T = pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16], ids=str)
NAMES = pytest.mark.parametrize("name", ["nvfp4", "mxfp4"])
BAD = pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
VALUES = (0, 0.5, 1, 1.5, 2, 3, 4, 6)  # of codes 0 to 7; the next eight are these with a minus
F = np.float32


def code_of(value):
    """The code of the nearest value, the even one of two; its sign is the number's."""
    size = min(abs(float(value)), 6.0)
    best = min(range(8), key=lambda code: (abs(size - VALUES[code]), code % 2))
    return best | 8 * bool(np.signbit(value))


def loop_nvfp4(block, scale):
    """(codes, scale of the block) of 16 numbers, one float32 operation at a time."""
    with np.errstate(over="ignore"):  # what a small scale makes infinite saturates
        y = [F(x) * (F(1) / F(scale)) for x in block]
    step = min(F(max(abs(float(each)) for each in y)) * F(1 / 6), F(448)).astype(ml_dtypes.float8_e4m3fn)
    if float(step) == 0:
        return [0] * 16, step
    return [code_of(each * (F(1) / F(step))) for each in y], step


def loop_mxfp4(block):
    """(codes, exponent of the scale) of 32 numbers, in float64, which is exact here."""
    top = max(abs(float(x)) for x in block)
    exponent = -127 if top == 0 else int(np.clip(np.floor(np.log2(top)) - 2, -127, 127))
    return [code_of(float(x) * 2.0**-exponent) for x in block], exponent


def blocks_of(dtype, channels):
    """Finite numbers of any size, and of sizes near each other: among the first nearly all codes are 0."""
    near = st.integers(-600, 600).map(lambda i: float(dtype.type(i / 64)))
    anything = st.integers(0, 2**16 - 1).map(lambda bits: np.uint16(bits).view(dtype).astype(np.float64))
    rows = [st.lists(each, min_size=channels, max_size=channels) for each in (near, anything)]
    return st.one_of(rows).map(lambda row: np.array(row).astype(dtype)).filter(lambda row: bool(is_finite(row).all()))


def nibbles(data):
    """Codes of stored rows, channel after channel."""
    return np.stack([data & 15, data >> 4], -1).reshape(*data.shape[:-1], -1)


@T
@given(data=st.data(), scale=st.sampled_from([1.0, 0.013, 77.7, 2.0**-20, 2.0**14]))
def test_nvfp4_is_the_formula_one_number_at_a_time(dtype, data, scale):
    row = data.draw(blocks_of(dtype, 16))
    stored, scales = codec_of("nvfp4").encode(row, scale)
    codes, step = loop_nvfp4(row, scale)
    assert_array_equal(scales.view(np.uint8), [step.view(np.uint8)])
    assert_array_equal(nibbles(stored), codes)


@T
@given(data=st.data())
def test_mxfp4_is_the_formula_one_number_at_a_time(dtype, data):
    row = data.draw(blocks_of(dtype, 32))
    stored, scales = codec_of("mxfp4").encode(row)
    codes, exponent = loop_mxfp4(row)
    assert_array_equal(scales.view(np.uint8), [exponent + 127])
    assert_array_equal(nibbles(stored), codes)


def test_a_byte_has_the_even_channel_in_its_low_bits():
    # 2 and -6 are the codes 4 and 15: whoever swaps them, or loses the sign, gives other bits.
    row = np.array([2, -6, *[0] * 30], np.float16)
    for name in ("nvfp4", "mxfp4"):  # the scale of both is 1
        stored, scales = codec_of(name).encode(row)
        assert float(scales[0].astype(np.float32)) == 1
        assert_array_equal(stored[:2], [0xF4, 0])


def test_codes_are_those_of_e2m1_and_halfway_goes_to_the_even_one():
    assert_array_equal(unpack_e2m1(pack_e2m1(np.array(VALUES, F)))[:8], VALUES)
    halves = [(low + high) / 2 for low, high in pairwise(VALUES)]
    assert_array_equal(unpack_e2m1(pack_e2m1(np.array([*halves, 7], F))), [0, 1, 1, 2, 2, 4, 4, 6])
    assert_array_equal(pack_e2m1(np.array([-0.0, 0.2, -0.2, np.inf], F)), [0x08, 0x78])


@NAMES
@T
def test_each_block_is_scaled_apart(rng, name, dtype):
    codec = codec_of(name)
    x = typical_rows(rng, dtype, count=50, channels=4 * codec.block)
    whole = codec.encode(x)
    assert whole.params.shape == (50, 4)
    for i in range(4):
        alone = codec.encode(x[:, i * codec.block : (i + 1) * codec.block])
        assert_array_equal(whole.params[:, i : i + 1].view(np.uint8), alone.params.view(np.uint8))
        half = codec.block // 2
        assert_array_equal(whole.data[:, i * half : (i + 1) * half], alone.data)


@NAMES
@T
def test_no_finite_row_is_off_by_more_than_its_bound(rng, name, dtype):
    # Every number of T, in blocks of numbers near each other and of numbers far apart.
    codec, x = codec_of(name), numbers(dtype)
    x = np.resize(x, (-(-len(x) // 32) + 1) * 32)
    for rows in (x.reshape(-1, 32), rng.permutation(x).reshape(-1, 32), typical_rows(rng, dtype)):
        encoded = codec.encode(rows)
        error = np.abs(rows.astype(np.float64) - codec.decode(*encoded))
        assert (error <= codec.error_bound(rows, encoded.params)).all()
    assert error.max() > 0  # of typical rows


@T
@pytest.mark.parametrize("scale", [2.0**-20, 0.013, 77.7])
def test_nvfp4_keeps_its_bound_at_any_scale(rng, dtype, scale):
    codec, x = codec_of("nvfp4"), typical_rows(rng, dtype)
    encoded = codec.encode(x, scale)
    error = np.abs(x.astype(np.float64) - codec.decode(*encoded, scale=np.float32(scale)))
    assert (error <= codec.error_bound(x, encoded.params, np.float32(scale))).all()


def test_a_power_of_two_as_the_scale_changes_nothing_but_what_fits(rng):
    # Within e4m3's normal numbers: the scale moves exponents alone.
    codec, x = codec_of("nvfp4"), rng.uniform(1, 6, (20, 64)).astype(np.float16)
    plain, scaled = codec.encode(x), codec.encode(x, 0.125)
    assert_array_equal(plain.data, scaled.data)
    assert_array_equal(codec.decode(*plain), codec.decode(*scaled, scale=0.125))


def test_nvfp4_multiplies_by_reciprocals_and_divides_nothing():
    codec, row = codec_of("nvfp4"), np.zeros((2, 16), np.float16)
    row[0, :2] = 0.0293 * 6, 0.0366211  # the second is 5/4 of a scale of 15/512: halfway, but for the reciprocal
    row[1, :2] = 1.4765625, 1.23046875  # 5/6 of the first: the code is 5 of e2m1, halfway, but for float32(1/7)
    data, scales = codec.encode(row, np.array([1, 7], np.float32))
    assert_array_equal(scales[:, 0].astype(np.float32), [15 / 512, 0.03515625])
    assert_array_equal(data[:, 0] >> 4, [3, 7])  # to the even code it would be 2 and 6


@pytest.mark.parametrize("shape", [(), (3,), (5, 3)], ids=["tensor", "head", "token and head"])
def test_nvfp4_scales_broadcast_over_rows(rng, shape):
    codec, x = codec_of("nvfp4"), typical_rows(rng, FLOAT16, count=15).reshape(5, 3, 64)
    scale = rng.uniform(0.5, 40, shape).astype(np.float32)
    encoded, each = codec.encode(x, scale), np.broadcast_to(scale, (5, 3))
    found = codec.decode(*encoded, scale=scale)
    for i, j in np.ndindex(5, 3):
        alone = codec.encode(x[i, j], each[i, j])
        assert_array_equal(encoded.data[i, j], alone.data)
        assert_array_equal(found[i, j], codec.decode(*alone, scale=each[i, j]))


def test_what_is_beyond_the_scales_range_saturates_or_is_zero():
    codec = codec_of("nvfp4")
    x = np.zeros((3, 16), np.float16)
    x[0, :2] = 60000, -2688  # 2688 is 6 times 448
    x[1, :2] = 0.017578125, 0.001  # 9 / 512: three halves of the least scale, 2^-9, times 6 is halfway to two of them
    x[2, :2] = 0.005859375, -0.005  # half of the least scale, times 6
    data, scales = codec.encode(x)
    assert_array_equal(scales.astype(np.float32).ravel(), [448, 2.0**-8, 0])
    assert_array_equal(codec.decode(data, scales)[0, :3], [2688, -2688, 0])
    assert_array_equal(data[2], 0)
    assert_array_equal(codec.decode(data, scales)[2], 0)


def test_infinity_saturates_in_nvfp4():
    data, scales = codec_of("nvfp4").encode(np.array([np.inf, -np.inf, 448, *[0] * 13], np.float16))
    assert_array_equal(codec_of("nvfp4").decode(data, scales)[:4], [2688, -2688, 448, 0])


@BAD
@NAMES
@T
def test_a_block_that_is_not_finite_hurts_no_other(rng, name, dtype, bad):
    codec = codec_of(name)
    x = rng.standard_normal((2, 4 * codec.block)).astype(dtype)
    good = codec.encode(x)
    x[1, codec.block + 3] = bad
    found = codec.encode(x)
    hurt = np.zeros((2, 4), bool)
    hurt[1, 1] = True
    assert_array_equal(found.params.view(np.uint8)[~hurt], good.params.view(np.uint8)[~hurt])
    where = np.repeat(hurt, codec.block // 2, axis=1)
    assert_array_equal(found.data[~where], good.data[~where])
    if name == "mxfp4" or np.isnan(bad):
        assert_array_equal(found.params.view(np.uint8)[hurt], {"nvfp4": 0x7F, "mxfp4": 0xFF}[name])
        assert_array_equal(found.data[where], 0)
        for to in (np.float64, dtype):
            assert_array_equal(np.isnan(codec.decode(*found, to)), np.repeat(hurt, codec.block, axis=1))


@T
def test_mxfp4_reaches_from_the_least_to_the_largest_number(dtype):
    info = ml_dtypes.finfo(dtype)
    for x in (float(info.smallest_subnormal), float(info.smallest_normal), float(info.max)):
        data, scales = codec_of("mxfp4").encode(np.full(32, x, dtype))
        found, exponent = codec_of("mxfp4").decode(data, scales), int(scales.view(np.uint8)[0]) - 127
        assert exponent == max(np.floor(np.log2(x)) - 2, -127)
        if exponent > -127:
            assert 0.7 < found[0] / x <= 1  # of 4 to 8, what is above 6 saturates
        assert np.abs(found[0] - x) <= codec_of("mxfp4").error_bound(np.full(32, x, dtype), scales)[0]


@NAMES
def test_rows_of_zeros_are_zero(name):
    codec = codec_of(name)
    data, scales = codec.encode(np.zeros((2, 64), np.float16))
    assert_array_equal(scales.view(np.uint8), 0)
    assert_array_equal(data, 0)
    assert_array_equal(codec.decode(data, scales), 0)


@NAMES
@T
def test_gathered_numbers_are_the_float32_product_rounded_once(rng, name, dtype):
    codec, scale = codec_of(name), np.float32(0.7123)
    data, scales = codec.encode(typical_rows(rng, dtype))
    values = unpack_e2m1(data) * np.repeat(scales.astype(np.float32), codec.block, axis=-1)
    if name == "nvfp4":
        assert_array_equal(codec.decode(data, scales, dtype, scale=scale), (scale * values).astype(dtype))
        # 22.5 times this scale is halfway between two numbers of float16, in float32 alone.
        data, scales = codec.encode(np.array([22.5, *[0] * 15], np.float16))
        assert codec.decode(data, scales)[0] == 22.5
        assert codec.decode(data, scales, np.float16, scale=np.float32(0.753125))[0] == np.float16(16.94)
        return
    assert_array_equal(codec.decode(data, scales, dtype), values.astype(dtype))


def test_scales_of_other_engines_are_read_though_encode_never_writes_them():
    # e8m0 has no subnormal numbers and no infinity, but the products of its largest have no float32.
    data, scales = np.full((3, 16), 0x77, np.uint8), np.array([[0], [254], [255]], np.uint8)
    found = codec_of("mxfp4").decode(data, scales.view(ml_dtypes.float8_e8m0fnu))
    assert_array_equal(found[:2, 0], [6 * 2.0**-127, 6 * 2.0**127])
    assert np.isnan(found[2]).all()
    # A negative scale of nvfp4 is a number like others.
    minus = np.full((1, 1), 0xB8, np.uint8).view(ml_dtypes.float8_e4m3fn)
    assert_array_equal(codec_of("nvfp4").decode(data[:1, :8], minus), -6)


@pytest.mark.parametrize(("name", "channels"), [("nvfp4", 24), ("mxfp4", 48)])
def test_a_row_is_whole_blocks(name, channels):
    with pytest.raises(ValueError, match=f"{name} has a scale for every .* head_dim {channels} is no multiple of them"):
        codec_of(name).encode(np.zeros((1, channels), np.float16))


def test_mxfp4_takes_no_scale():
    with pytest.raises(ValueError, match="mxfp4 takes no scale; only float8 and nvfp4 are scaled by their user"):
        codec_of("mxfp4").encode(np.zeros((1, 32), np.float16), 1.0)


def test_a_cache_has_a_scale_of_nvfp4_for_each_head(rng):
    scales = np.array([0.25, 3.7], np.float32)
    cache = reference.Cache.poisoned(
        2, 3, 2, 64, dtype=BFLOAT16, k="nvfp4", v="nvfp4", layout="HND", k_scale=scales, v_scale=0.3
    )
    assert cache.k_params.shape == (2, 2, 3, 4) and cache.k_params.dtype == ml_dtypes.float8_e4m3fn
    k, v = rng.standard_normal((2, 5, 2, 64)).astype(BFLOAT16)
    table = reference.Table([[1, 0]], [5])
    reference.append(cache, table, k, v, [5])
    found_k, found_v, _ = reference.gather(cache, table, BFLOAT16)
    codec = codec_of("nvfp4")
    assert_array_equal(found_k, codec.decode(*codec.encode(k, scales), BFLOAT16, scale=scales))
    assert_array_equal(found_v, codec.decode(*codec.encode(v, 0.3), BFLOAT16, scale=np.float32(0.3)))


def filled(rng, name, layout, **scales):
    """Three pages of 4 tokens, each with bytes of its own."""
    cache = reference.Cache.poisoned(3, 4, 2, 64, dtype=FLOAT16, k=name, v=name, layout=layout, **scales)
    k, v = rng.standard_normal((2, 12, 2, 64)).astype(FLOAT16)
    reference.append(cache, reference.Table([[0, 1, 2]], [12]), k, v, [12])
    return cache


@NAMES
def test_pages_move_between_caches_and_layouts_bit_for_bit(rng, name):
    source = filled(rng, name, "NHD")
    target = reference.Cache.poisoned(3, 4, 2, 64, dtype=FLOAT16, k=name, v=name, layout="HND")
    reference.convert_pages(source, target, [2, 0], [1, 2], FLOAT16)
    for old, new in zip(source.stores(), target.stores(), strict=True):
        for was, found in ((old.data, new.data), (old.params.view(np.uint8), new.params.view(np.uint8))):
            assert_array_equal(found[[1, 2]], was[[2, 0]])
            assert_array_equal(found[0], 0xFF)  # no pair names this page


@NAMES
def test_copied_pages_bring_the_scales_of_their_blocks(rng, name):
    cache = filled(rng, name, "HND")
    params = cache.k_params.view(np.uint8).copy(), cache.v_params.view(np.uint8).copy()
    reference.copy_pages(cache, [2], [0])
    for was, found in zip(params, (cache.k_params, cache.v_params), strict=True):
        assert_array_equal(found.view(np.uint8), was[[2, 1, 2]])


@pytest.mark.parametrize("side", ["k", "v"])
def test_nvfp4_keeps_its_bits_between_equal_scales_only(rng, side):
    source = filled(rng, "nvfp4", "NHD", **{f"{side}_scale": 0.5})
    for scale in (0.5, [0.5, 0.5], 1, [0.5, 0.25]):  # as one number and as one a head; and what differs
        target = reference.Cache.poisoned(3, 4, 2, 64, dtype=FLOAT16, k="nvfp4", v="nvfp4", **{f"{side}_scale": scale})
        if np.all(np.equal(scale, 0.5)):
            reference.convert_pages(source, target, [0], [0], FLOAT16)
        else:
            with pytest.raises(AssertionError, match="nvfp4 is moved between equal scales only"):
                reference.convert_pages(source, target, [0], [0], FLOAT16)


@NAMES
def test_pages_of_another_codec_are_decoded_and_encoded(rng, name):
    source, scales = filled(rng, "int8", "NHD"), {"k_scale": 0.3} if name == "nvfp4" else {}
    target = reference.Cache.poisoned(3, 4, 2, 64, dtype=FLOAT16, k=name, v=name, **scales)
    reference.convert_pages(source, target, [1], [1], FLOAT16)
    table = reference.Table([[1]], [4])
    k, v, _ = reference.gather(source, table, FLOAT16)
    codec = codec_of(name)
    for x, pool, scale in ((k, target.stores()[0], scales.get("k_scale")), (v, target.stores()[1], None)):
        data, params = codec.encode(x, scale)
        assert_array_equal(pool.data[1], data)
        assert_array_equal(pool.params[1].view(np.uint8), params.view(np.uint8))
