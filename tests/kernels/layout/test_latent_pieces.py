"""kernels/layout/latent_pieces.cuh: a tile's pieces are all of it, in the order in which they are left."""

import numpy as np
import pytest

PROGRAM = """
  using Pieces = LatentPieces<RowDims>;
  if (ThreadIndex() != 0) return;
  StoreGlobal(params.output, Pieces::kCount);
  for (int piece = 0; piece < Pieces::kCount; ++piece) {
    StoreGlobal(params.output + 4 + 8 * piece, Pieces::Chunks(piece).first);
    StoreGlobal(params.output + 8 + 8 * piece, Pieces::Chunks(piece).last);
  }
"""


# The rows that there are, and others that the rule allows: one piece for each group, and keys of two chunks more.
@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        (576, 512, [(8, 9), (0, 2), (4, 6), (2, 4), (6, 8)]),
        (320, 256, [(4, 5), (0, 2), (2, 4)]),
        (640, 512, [(8, 10), (0, 2), (4, 6), (2, 4), (6, 8)]),
    ],
)
def test_every_chunk_is_in_one_piece(host_programs, key, value, wanted):
    dims = f"struct RowDims {{ static constexpr int kKey = {key}, kValue = {value}; }};"
    includes = f'#include "layout/latent_pieces.cuh"\n{dims}'
    outcome = host_programs.run(PROGRAM, output_bytes=128, includes=includes)
    assert not outcome.error
    count, *bounds = np.frombuffer(outcome.output, np.int32).tolist()
    found = list(zip(bounds[0 : 2 * count : 2], bounds[1 : 2 * count : 2], strict=True))
    assert found == wanted
    assert sorted(chunk for first, last in found for chunk in range(first, last)) == list(range(key // 64))
