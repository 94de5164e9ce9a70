"""The host's 16-bit floats and matrix instructions against numpy: every bit pattern, and the layouts of the PTX ISA."""

import ml_dtypes
import numpy as np
import pytest

from support.host_program import HostPrograms

TYPES = {"Half": np.float16, "Bfloat16": ml_dtypes.bfloat16}


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    return HostPrograms(tmp_path_factory.mktemp("host"))


@pytest.mark.parametrize("name", TYPES)
def test_every_16_bit_float_converts_as_in_numpy(programs, name):
    code = f"""
    for (int i = ThreadIndex(); i < 65536; i += kThreads) {{
      StoreGlobal(params.output + 4 * i, ToFloat({name}{{uint16_t(i)}}));
    }}
"""
    size = 4 * 65536
    got = np.frombuffer(programs.run(code, memory_bytes=size, output_bytes=size).output, np.float32)
    want = np.arange(65536, dtype=np.uint16).view(TYPES[name]).astype(np.float32)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("name", TYPES)
def test_floats_round_to_nearest_even(programs, name):
    # Every 16-bit float, the point halfway to the next one, and its two neighbours: where rounding can go wrong.
    code = f"""
    for (int i = ThreadIndex(); i < 4 * 65536; i += kThreads) {{
      const float x = ToFloat({name}{{uint16_t(i / 4)}}), next = ToFloat({name}{{uint16_t(i / 4 + 1)}});
      const float half = x + (next - x) / 2;
      const float cases[] = {{x, half, std::nextafterf(half, x), std::nextafterf(half, next)}};
      StoreGlobal(params.output + 4 * i, cases[i % 4]);
      StoreGlobal(params.output + 4 * 4 * 65536 + 2 * i, FromFloat<{name}>(cases[i % 4]));
    }}
"""
    size = 6 * 4 * 65536
    output = programs.run(code, memory_bytes=size, output_bytes=size).output
    floats = np.frombuffer(output[: 4 * 4 * 65536], np.float32)
    got = np.frombuffer(output[4 * 4 * 65536 :], TYPES[name])
    with np.errstate(over="ignore", invalid="ignore"):
        np.testing.assert_array_equal(got.astype(np.float32), floats.astype(TYPES[name]).astype(np.float32))


def test_the_matrix_instruction_multiplies_as_the_isa_lays_it_out(programs):
    # Integers up to 255 in float16: products and sums are exact, so any misplaced element shows.
    code = """
    const int lane = LaneIndex(), row = lane / 4, column = lane % 4 * 2;
    const auto value = [](int i, int j) { return float((i * 37 + j * 11) % 256 - 128); };
    const auto pair = [&](int i, int j) { return Pack2<Half>(value(i, j), value(i, j + 1)); };
    const uint32_t a[4] = {pair(row, column), pair(row + 8, column), pair(row, column + 8), pair(row + 8, column + 8)};
    const uint32_t b[2] = {Pack2<Half>(value(column, row), value(column + 1, row)),
                           Pack2<Half>(value(column + 8, row), value(column + 9, row))};
    float d[4] = {1, 2, 3, 4};
    MmaM16N8K16<Half>(d, a, b);
    for (int i = 0; i < 4; ++i) StoreGlobal(params.output + 4 * ((row + i / 2 * 8) * 8 + column + i % 2), d[i]);
"""
    got = np.frombuffer(programs.run(code, output_bytes=512).output, np.float32).reshape(16, 8)
    value = np.fromfunction(lambda i, j: (i * 37 + j * 11) % 256 - 128, (16, 16))
    before = np.tile([[1, 2]], (16, 4)) + np.repeat([[0], [2]], 8, axis=0)
    np.testing.assert_array_equal(got, value @ value[:, :8] + before)


def test_the_matrix_instruction_of_8_columns_multiplies_as_the_isa_lays_it_out(programs):
    # The same integers; and two of its products are one of the larger instruction, operands lane for lane.
    code = """
    const int lane = LaneIndex(), row = lane / 4, column = lane % 4 * 2;
    const auto value = [](int i, int j) { return float((i * 37 + j * 11) % 256 - 128); };
    const auto pair = [&](int i, int j) { return Pack2<Half>(value(i, j), value(i, j + 1)); };
    const uint32_t a[4] = {pair(row, column), pair(row + 8, column), pair(row, column + 8), pair(row + 8, column + 8)};
    const uint32_t b[2] = {Pack2<Half>(value(column, row), value(column + 1, row)),
                           Pack2<Half>(value(column + 8, row), value(column + 9, row))};
    const auto store = [&](int place, const float (&d)[4]) {
      for (int i = 0; i < 4; ++i) {
        StoreGlobal(params.output + 512 * place + 4 * ((row + i / 2 * 8) * 8 + column + i % 2), d[i]);
      }
    };
    float d[4] = {1, 2, 3, 4}, of_both[4] = {1, 2, 3, 4};
    const uint32_t low[2] = {a[0], a[1]};
    MmaM16N8K8(d, low, b[0]);
    store(0, d);
    M16N8K8::Multiply<Half>(of_both, a, b);
    store(1, of_both);
"""
    output = programs.run(code, output_bytes=1024, includes='#include "mma/m16n8k8.cuh"').output
    got = np.frombuffer(output, np.float32).reshape(2, 16, 8)
    value = np.fromfunction(lambda i, j: (i * 37 + j * 11) % 256 - 128, (16, 16))
    before = np.tile([[1, 2]], (16, 4)) + np.repeat([[0], [2]], 8, axis=0)
    np.testing.assert_array_equal(got[0], value[:, :8] @ value[:8, :8] + before)
    np.testing.assert_array_equal(got[1], value @ value[:, :8] + before)


def test_ldmatrix_and_movmatrix_deal_tiles_as_the_isa_says(programs):
    # Four 8x8 tiles of 16-bit numbers, numbered through: tile t, row r, column c holds 64 t + 8 r + c.
    code = """
    for (int i = 0; i < 8; ++i) StoreShared(shared + 16 * ThreadIndex() + 2 * i, uint16_t(8 * ThreadIndex() + i));
    SyncWarp();
    uint32_t plain[4], turned[4];
    LoadMatrixX4(plain, shared + 16 * ThreadIndex());
    LoadMatrixX4Transposed(turned, shared + 16 * ThreadIndex());
    for (int i = 0; i < 4; ++i) {
      char* out = params.output + 4 * (32 * i + ThreadIndex());
      StoreGlobal(out, plain[i]);
      StoreGlobal(out + 512, turned[i]);
      StoreGlobal(out + 1024, TransposeMatrix(plain[i]));
    }
"""
    got = np.frombuffer(programs.run(code, output_bytes=1536).output, np.uint16).reshape(3, 4, 8, 8)
    tiles = np.arange(256).reshape(4, 8, 8)
    np.testing.assert_array_equal(got[0], tiles)
    np.testing.assert_array_equal(got[1], tiles.swapaxes(1, 2))
    np.testing.assert_array_equal(got[2], tiles.swapaxes(1, 2))
