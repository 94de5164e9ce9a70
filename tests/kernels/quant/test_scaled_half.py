"""quant/scaled_half.cuh: bfloat16 as f16 with a power of two, in rows of any size, against numpy."""

import ml_dtypes
import numpy as np
import pytest

from support.host_program import HostPrograms

EVERY = np.arange(65536, dtype=np.uint16).view(ml_dtypes.bfloat16)
FINITE = np.isfinite(EVERY.astype(np.float32))


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    return HostPrograms(tmp_path_factory.mktemp("scaled_half"))


def encoded(programs, largest):
    """(scale, codes) of every bfloat16 in a row whose largest finite channel has the magnitude `largest`.

    Two words at a time, both halves each: every number stands in a lower half and in an upper one, beside others that
    are special and beside others that are not.
    """
    code = f"""
    const uint32_t largest = BitCast<uint32_t>({largest!r}f), shift = ScaledHalf::Shift(largest);
    StoreGlobal(params.output, ScaledHalf::Scale(shift));
    for (uint32_t i = ThreadIndex(); i < 65536; i += kThreads) {{
      uint32_t pairs[2] = {{i | (i * 40503u + 7u) << 16, (i ^ 1u) | i << 16}};
      ScaledHalf::Encode(pairs, ScaledHalf::Measure(pairs), shift);
      StoreGlobal(params.output + 4 + 4 * i, (pairs[0] & 0xffffu) | (pairs[1] & 0xffff0000u));
    }}
"""
    size = 4 + 4 * 65536
    includes = '#include "quant/scaled_half.cuh"'
    output = programs.run(code, memory_bytes=size, output_bytes=size, includes=includes).output
    return np.frombuffer(output[:4], np.float32)[0], np.frombuffer(output[4:], np.float16).reshape(-1, 2)


# The least and the greatest row that there are, one on each side of where shifts begin to differ, and an everyday one.
@pytest.mark.parametrize("largest", [0.0, 2.0**-89, 2.0**-88, 1.0, 3.3e38])
def test_codes_times_their_scale_are_the_numbers(programs, largest):
    scale, codes = encoded(programs, largest)
    assert 2.0**-104 <= scale <= 2.0**112 and np.log2(scale) == np.round(np.log2(scale))
    magnitude = np.where(FINITE, np.abs(EVERY.astype(np.float32)), np.inf).astype(np.float64)
    inside, specials = magnitude <= largest, EVERY[~FINITE].astype(np.float32)
    for half in range(2):
        error = np.abs(codes[inside, half].astype(np.float64) * float(scale) - EVERY[inside].astype(np.float64))
        assert error.max() <= max(largest * 2.0**-30, 2.0**-118)
        assert (error[magnitude[inside] >= max(largest * 2.0**-29, 2.0**-117)] == 0).all()
        np.testing.assert_array_equal(codes[~FINITE, half].astype(np.float32), specials)
    if largest >= 2.0**-88:
        assert np.abs(codes[inside].astype(np.float32)).max() >= 2.0**14  # no bit of an f16's range is left out


def test_what_is_not_finite_counts_for_no_power_of_two(programs):
    # Pairs of a number and its neighbours; a third of them with an infinity or a NaN among them.
    code = """
    if (ThreadIndex() != 0) return;
    const uint32_t rows[4][2] = {{0x3f804000u, 0xc0a00001u}, {0x3f80ff80u, 0x7fc04000u}, {0x7f80ff80u, 0x7fc17f81u},
                                 {0x00000000u, 0x80000000u}};
    for (int i = 0; i < 4; ++i) {
      const auto extent = ScaledHalf::Measure(rows[i]);
      StoreGlobal(params.output + 8 * i, extent.magnitude);
      StoreGlobal(params.output + 8 * i + 4, uint32_t(extent.has_special));
    }
"""
    output = programs.run(code, output_bytes=32, includes='#include "quant/scaled_half.cuh"').output
    got = np.frombuffer(output, np.uint32).reshape(4, 2)
    np.testing.assert_array_equal(got[:, 0] & 0xFFFF0000, [0x40A00000, 0x40000000, 0, 0])
    np.testing.assert_array_equal(got[:, 1], [0, 1, 1, 0])
