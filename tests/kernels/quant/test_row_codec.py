"""quant/row_codec.cuh: what is cheaper than it looks gives the same bits. What rows become is tests/kvit's."""

import struct

import pytest

from support.host_program import HostPrograms


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    return HostPrograms(tmp_path_factory.mktemp("row_codec"))


@pytest.mark.parametrize("divisor", [15, 255])
def test_quotients_are_those_of_a_division(programs, divisor):
    # Every significand of ranges that are subnormal, whose quotient is, plain ones, the greatest; and infinity.
    body = f"""
    if (ThreadIndex() != 0) return;
    int32_t wrong = 0;
    for (uint32_t exponent : {{0u, 1u, 3u, 8u, 127u, 254u}}) {{
      for (uint32_t significand = 0; significand < 1u << 23; ++significand) {{
        const auto x = BitCast<float>(exponent << 23 | significand);
        wrong += detail::Quotient<{divisor}>(x) != x / {divisor}.0f;
      }}
    }}
    wrong += detail::Quotient<{divisor}>(INFINITY) != INFINITY;
    StoreGlobal(params.output, wrong);
    """
    outcome = programs.run(body, includes='#include "quant/row_codec.cuh"', output_bytes=4)
    assert outcome.error == "" and struct.unpack("<i", outcome.output[:4]) == (0,)
