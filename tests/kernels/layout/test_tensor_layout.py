"""kernels/layout/tensor_layout.cuh: where a tensor copy leaves the bytes of a tile, and what that costs to read."""

import pytest

from kvit.errors import LayoutError
from kvit.iterators import TensorLayout

HEADERS = ["layout/tensor_layout.cuh", "core/types.h"]
# Element, head_dim: rows of 32, 64, 128, 256 and 512 bytes, which is every swizzle and one, two and four chunks.
# Lines are told from rows where a row is shorter than one.
SHAPES = [
    *[("Uint4", 64, "false"), ("Uint4", 128, "false"), ("uint8_t", 128, "false")],
    *[("Half", 128, "false"), ("Half", 256, "false")],
    *[("Uint4", 64, "true"), ("Uint4", 128, "true"), ("uint8_t", 64, "true"), ("uint8_t", 128, "true")],
]
TOKENS = 32


def layout(element, head_dim, is_packed):
    return f"TensorLayout<{element}, {head_dim}, {TOKENS}, {is_packed}>"


def offsets(cxx, element, head_dim, is_packed):
    """[token][16-byte vector of its row] -> offset in the tile."""
    kind = layout(element, head_dim, is_packed)
    body = f"""
      printf("%d ", {kind}::kRowBytes);
      for (int s = 0; s < {TOKENS}; ++s)
        for (int byte = 0; byte < {kind}::kRowBytes; byte += 16) printf("%d ", {kind}::Offset(s, byte));
    """
    row_bytes, *found = cxx.numbers(HEADERS, body)
    vectors = row_bytes // 16
    return row_bytes, [found[s * vectors : (s + 1) * vectors] for s in range(TOKENS)]


def written_by_the_hardware(row_bytes, is_packed, token, vector):
    """As CUtensorMapSwizzle is defined: boxes of chunks, dense, with the line's number XORed into the vector's."""
    span = min(128, row_bytes)
    chunk, within = divmod(vector * 16, span)
    dense = chunk * TOKENS * span + token * span + within
    lines = {128: 8, 64: 4, 32: 2}[128 if is_packed == "true" else span]
    return dense ^ (dense // 128 % lines * 16)


@pytest.mark.parametrize(("element", "head_dim", "is_packed"), SHAPES, ids=str)
def test_rows_lie_where_the_tensor_copy_engine_writes_them(cxx, element, head_dim, is_packed):
    row_bytes, found = offsets(cxx, element, head_dim, is_packed)
    assert found == [
        [written_by_the_hardware(row_bytes, is_packed, token, vector) for vector in range(row_bytes // 16)]
        for token in range(TOKENS)
    ]


@pytest.mark.parametrize(("element", "head_dim", "is_packed"), SHAPES, ids=str)
def test_the_model_has_the_numbers_of_the_header(cxx, element, head_dim, is_packed):
    names = ["kRowBytes", "kSpan", "kPackedTokens", "kChunks", "kChunkBytes", "kBytes", "kAlignment"]
    kind = layout(element, head_dim, is_packed)
    row_bytes, *found = cxx.numbers(HEADERS, "".join(f'printf("%d ", {kind}::{name});' for name in names))
    model = TensorLayout(row_bytes, TOKENS, is_packed == "true")
    sizes = [model.chunks, model.chunk_bytes, model.size, model.alignment]
    assert found == [model.span, model.line_tokens, *sizes]
    _, places = offsets(cxx, element, head_dim, is_packed)
    vectors = range(0, row_bytes, 16)
    assert places == [[model.offset(s, byte) for byte in vectors] for s in range(TOKENS)]


@pytest.mark.parametrize(("element", "head_dim", "is_packed"), SHAPES, ids=str)
def test_eight_tokens_of_a_vector_lie_in_eight_bank_groups(cxx, element, head_dim, is_packed):
    # What ldmatrix reads at a time; 16-byte vectors 128 bytes apart share their banks.
    row_bytes, found = offsets(cxx, element, head_dim, is_packed)
    for first in range(0, TOKENS, 8):
        for vector in range(row_bytes // 16):
            assert len({found[first + i][vector] % 128 for i in range(8)}) == 8


def test_rows_that_no_swizzle_serves_are_refused(cxx):
    assert "whole lines of 128" in cxx.refusal(HEADERS, "template struct TensorLayout<uint8_t, 96, 32>;")
    for row_bytes in (-128, 0, 16, 96, 192):
        with pytest.raises(LayoutError, match="32 or 64 bytes, or whole lines of 128"):
            TensorLayout(row_bytes, 32)


def test_tiles_that_break_the_pattern_off_are_refused(cxx):
    assert "begin where the pattern does" in cxx.refusal(HEADERS, "template struct TensorLayout<uint8_t, 128, 12>;")
    for tokens in (0, 12):
        with pytest.raises(LayoutError, match="tiles must be multiples of it"):
            TensorLayout(128, tokens)
    with pytest.raises(LayoutError, match="repeats after 32"):
        TensorLayout(32, 16, is_packed=True)
