"""kvit.reference.hadamard, and codecs of transforms: Sylvester's matrix, its stages in float32, their errors."""

import numpy as np
import pytest

from kvit import reference
from kvit.reference.hadamard import block_of
from support.caches import BFLOAT16, FLOAT16


def sylvester(block):
    signs = np.array([[1.0]])
    while len(signs) < block:
        signs = np.block([[signs, signs], [signs, -signs]])
    return signs / np.sqrt(block)


# The largest power of two that divides each, and no more than 128.
@pytest.mark.parametrize(
    ("head_dim", "block"), [(8, 8), (24, 8), (64, 64), (96, 32), (128, 128), (160, 32), (256, 128)]
)
def test_blocks_are_multiplied_by_sylvesters_matrix(rng, head_dim, block):
    assert block_of(head_dim) == block
    x = rng.standard_normal((3, 2, head_dim))
    want = (x.reshape(3, 2, -1, block) @ sylvester(block)).reshape(x.shape)
    np.testing.assert_allclose(reference.hadamard(x), want, rtol=0, atol=1e-12)
    np.testing.assert_allclose(reference.hadamard(reference.hadamard(x)), x, rtol=0, atol=1e-12)


def test_rows_of_no_whole_number_of_vec8s_have_no_blocks():
    with pytest.raises(ValueError, match="rows of 20 channels have no blocks; a multiple of 8 has"):
        reference.hadamard(np.zeros((1, 20)))


@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16], ids=str)
def test_stages_in_float32_are_those_of_a_loop(rng, dtype):
    row = (rng.standard_normal(24) * np.exp2(rng.uniform(-6, 6, 24))).astype(dtype)
    y = [np.float32(x) for x in row]
    for first in range(0, 24, 8):
        for step in (1, 2, 4):
            for i in range(first, first + 8):
                if not i & step:
                    y[i], y[i + step] = y[i] + y[i + step], y[i] - y[i + step]
    root = np.float32(0.5) * np.float32(np.sqrt(0.5))  # of 1/8
    want = np.array([x * root for x in y]).astype(dtype)
    found = reference.hadamard(row, dtype)
    np.testing.assert_array_equal(found.view(np.uint16), want.view(np.uint16))


@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16], ids=str)
@pytest.mark.parametrize("name", ["int8_hadamard", "int4_hadamard"])
@pytest.mark.parametrize("channels", [8, 64, 96, 128])
def test_rows_are_off_by_no_more_than_their_bound(rng, name, dtype, channels):
    codec = reference.codec_of(name)
    size = np.exp2(rng.uniform(-5, 8, (500, 1)))  # 2**8 times a norm of 16 and more: far from float16's largest
    rows = (rng.standard_normal((500, channels)) * size).astype(dtype)
    rows[:, 3] *= dtype.type(8)  # a channel that stands out
    data, params = codec.encode(rows)
    error = np.abs(codec.decode(data, params) - rows.astype(np.float64))
    bound = codec.error_bound(rows, params)
    assert (error <= bound).all() and (error > bound / 100).any()


def test_a_channel_that_stands_out_costs_the_others_less(rng):
    rows = rng.standard_normal((200, 64)).astype(BFLOAT16)
    rows[:, 5] += BFLOAT16.type(20)
    errors = []
    for name in ("int4", "int4_hadamard"):
        codec = reference.codec_of(name)
        errors.append(np.sqrt(((codec.decode(*codec.encode(rows)) - rows.astype(np.float64)) ** 2).mean()))
    assert errors[1] < errors[0] / 2


def test_a_norm_beyond_float16_is_no_number():
    codec = reference.codec_of("int8_hadamard")
    rows = np.full((1, 64), 9000, FLOAT16)  # a norm of 72000
    assert np.isnan(codec.decode(*codec.encode(rows))).all()
    assert np.isfinite(codec.decode(*codec.encode(rows.astype(BFLOAT16)))).all()
