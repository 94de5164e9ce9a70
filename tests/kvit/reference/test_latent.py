"""kvit.reference.latent: 8-bit latent rows bit for bit as engines write and read them.

Chosen: rows over the whole range of bfloat16; blocks that are all zero, hold one large channel, NaN or infinity; scales
right at powers of two, where rounding up must not overshoot.
"""

import math
import struct

import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from kvit import reference
from support.caches import BFLOAT16, FLOAT16

KINDS = pytest.mark.parametrize("kind", reference.LATENT_ROWS.values(), ids=reference.LATENT_ROWS)
V3, V4 = reference.LATENT_ROWS[656], reference.LATENT_ROWS[584]
VALUES = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)


def typical_rows(rng, kind, count=50):
    """Rows whose blocks differ in magnitude by many powers of two."""
    magnitude = np.exp2(rng.uniform(-20, 20, (count, kind.channels // kind.block, 1)))
    x = rng.standard_normal((count, kind.channels // kind.block, kind.block)) * magnitude
    rows = np.concatenate([x.reshape(count, -1), rng.standard_normal((count, kind.channels))], -1)
    return rows[:, : kind.channels].astype(BFLOAT16)


def scale_of(bits, kind):
    """A scale from its bytes, by the definition of the formats alone."""
    return struct.unpack("<f", bytes(bits))[0] if kind is V3 else math.ldexp(1.0, int(bits[0]) - 127)


def test_rows_have_the_bytes_that_their_names_say():
    for token_bytes, kind in reference.LATENT_ROWS.items():
        assert kind.token_bytes == token_bytes
    assert (V3.channels, V3.row_bytes, V4.channels, V4.row_bytes) == (576, 656, 512, 576)


@KINDS
def test_a_channel_is_its_code_times_the_scale_of_its_block_rounded_once(rng, kind):
    data, scales = reference.encode_latent(typical_rows(rng, kind, 3), kind)
    rows, size = reference.decode_latent(data, scales, kind), 4 if kind is V3 else 1
    for token in range(3):
        for c in (0, kind.block - 1, kind.block, kind.codes - 1):
            block = c // kind.block
            scale = scale_of(scales[token, size * block : size * (block + 1)], kind)
            product = np.float32(VALUES[data[token, c]] * scale)  # 4 and 24 bits of digits: one rounding to float32
            assert rows[token, c] == product.astype(BFLOAT16)


@KINDS
def test_codes_are_the_nearest_and_rotary_channels_stay(rng, kind):
    x = typical_rows(rng, kind)
    data, scales = reference.encode_latent(x, kind)
    rows = reference.decode_latent(data, scales, kind)
    assert_array_equal(rows[:, kind.codes :], x[:, kind.codes :])
    of_blocks = x[:, : kind.codes].astype(np.float64).reshape(len(x), -1, kind.block)
    largest = np.abs(of_blocks).max(-1, keepdims=True)
    error = np.abs(rows[:, : kind.codes].astype(np.float64).reshape(of_blocks.shape) - of_blocks)
    # Half a unit of three bits, or of the least number: 448 stands for the largest channel, or with a power of two for
    # up to twice that, and for 1e-4 at least; and half a unit of bfloat16.
    factor = 1 if kind is V3 else 2
    largest = largest if kind is V3 else np.maximum(largest, 1e-4)
    bound = np.maximum(np.abs(of_blocks) * (2.0**-4 + 2.0**-8), factor * largest / 448 * 2.0**-10 * 1.01)
    assert (error <= bound).all()


def test_scales_of_656_bytes_are_the_largest_channel_over_448():
    x = np.zeros((1, 576), BFLOAT16)
    x[0, 5], x[0, 130] = -448 * 3, 1
    _, scales = reference.encode_latent(x, V3)
    assert_array_equal(scales.view(np.float32)[0], np.float32([3, np.float32(1) / np.float32(448), *[2.0**-126] * 2]))


@pytest.mark.parametrize("amax, power", [(448, 0), (450, 1), (224, -1), (226, 0), (447, 0), (0, -22), (1e-5, -22)])
def test_scales_of_584_bytes_are_powers_of_two_that_reach_the_largest_channel(amax, power):
    """At 448 itself the power is exact, and one bfloat16 above it the next one; below 1e-4 that of 1e-4."""
    x = np.zeros((1, 512), BFLOAT16)
    x[0, 64] = -amax
    _, scales = reference.encode_latent(x, V4)
    assert_array_equal(scales[0], [127 - 22, 127 + power, *[127 - 22] * 5, 0])


@KINDS
@pytest.mark.parametrize("special", [np.nan, np.inf])
def test_what_is_no_number_stays_in_its_block(rng, kind, special):
    x = typical_rows(rng, kind, 1)
    x[0, 3] = special
    plain = x.copy()
    plain[0, 3] = 0
    rows, others = (reference.decode_latent(*reference.encode_latent(y, kind), kind) for y in (x, plain))
    assert_array_equal(rows[:, kind.block :], others[:, kind.block :])
    if np.isnan(special):
        assert np.isnan(rows[0, 3])
        np.testing.assert_array_equal(rows[0, 4 : kind.block], others[0, 4 : kind.block])
    elif kind is V3:
        assert np.isnan(rows[0, : kind.block].astype(np.float32)).all()
    else:
        assert rows[0, 3] > 1e38


@KINDS
def test_pages_are_laid_out_as_engines_read_them(rng, kind):
    """By offsets that are written out here, as the engines' pages have them."""
    x, page_size = typical_rows(rng, kind, 3), 4
    pages = np.full((2, page_size * kind.token_bytes + 40), 0xFF, np.uint8)
    places = np.array([1, 0, 1]), np.array([2, 3, 0])
    reference.write_latent(pages, page_size, kind, places, x)
    data, scales = reference.encode_latent(x, kind)
    written = np.zeros(pages.shape, bool)
    for i, (page, token) in enumerate(zip(*places, strict=True)):
        if kind is V3:
            at = {656 * token: data[i, :512], 656 * token + 512: scales[i], 656 * token + 528: data[i, 512:]}
        else:
            at = {576 * token: data[i], 576 * page_size + 8 * token: scales[i]}
        for begin, wanted in at.items():
            assert_array_equal(pages[page, begin : begin + len(wanted)], wanted)
            written[page, begin : begin + len(wanted)] = True
    assert (pages[~written] == 0xFF).all()
    read = reference.read_latent(pages, page_size, kind)
    assert_array_equal(read[places][:, 0], reference.decode_latent(data, scales, kind))


def test_rows_of_another_kind_are_refused():
    with pytest.raises(ValueError, match="576 channels; give bfloat16 with 512"):
        reference.encode_latent(np.zeros((1, 576), BFLOAT16), V4)
    with pytest.raises(ValueError, match="float16 with 576"):
        reference.encode_latent(np.zeros((1, 576), FLOAT16), V3)
