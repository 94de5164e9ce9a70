"""kernels/pipeline/tile_widener.cuh: codes become f16 where they lie, and no row is written over before it is read.

Chosen: every codec that it serves, in the two widths that prompts have, since codes and f16 lie over each other in
another way in each; one warp and two, two slots, and tiles enough that each slot is used twice.
"""

import ml_dtypes
import numpy as np
import pytest

from kvit.reference.int4 import unpack_int4

TOKENS, STAGES, TILES = 64, 2, 4
CODECS = {"Int8": 8, "Int4": 4, "Float8E4M3": 8}

# The warps widen what the last one brings: bytes of no order, in a slot that is poisoned before. It then takes what has
# become of them, as the matrix unit would read it.
PROGRAM = """
  using Ring = TmaRing<Half, Plain, {dim}, {tokens}, 1, {stages}, false>;
  using Codes = CodesInPlace<Half, {codec}, {dim}, {tokens}>;
  struct Plan {{
    struct Assignment {{ bool exists; struct {{ int first, last; }} visible; }};
    Assignment works[3] = {{{{true, {{5, 6}}}}, {{true, {{0, {tiles} - 1}}}}, {{false, {{0, 0}}}}}};
    const Assignment& Read(uint32_t count) const {{ return works[count]; }}
    void Release(uint32_t) const {{}}
  }};
  struct Shared {{
    Ring ring;
    StageBarriers<{stages}> codes, wide;
  }};
  static_assert(sizeof(Shared) <= kSharedBytes);
  auto& all = *reinterpret_cast<Shared*>(shared);
  if (ThreadIndex() == 0) {{
    all.codes.Init(1);
    all.wide.Init(1, {warps});
  }}
  SyncThreads();
  if (WarpIndex() < {warps}) {{
    Plan plan;
    TileWidener<{codec}, {dim}, Ring, Codes, {stages}, {warps}>(all.ring, all.codes, all.wide, WarpIndex()).Run(plan);
    return;
  }}
  if (ThreadIndex() == {warps} * 32) StoreGlobal(params.output, Widening<{codec}>::kUnit);
  for (int tile = 0; tile < {tiles}; ++tile) {{
    const int stage = tile % {stages};
    char* const slot = all.ring.Tile(stage, 0);
    all.wide.WaitFree(stage, tile / {stages});
    for (int i = LaneIndex() * 4; i < Ring::Layout::kBytes; i += 128) StoreShared(slot + i, 0xfefefefeu);
    SyncWarp();
    for (int i = LaneIndex(); i < {tokens} * {row_bytes}; i += 32) {{
      const int s = i / {row_bytes}, byte = i % {row_bytes};
      StoreShared(Codes::Granule(slot, s / 32) + Codes::Layout::Offset(s % 32, byte),
                  uint8_t((i * 167 + tile * 59 + i / 256 * 31) & 255));
    }}
    SyncWarp();
    if (LaneIndex() == 0) all.codes.Expect(stage, 0);
    all.wide.WaitFull(stage, tile / {stages});
    for (int i = LaneIndex(); i < {tokens} * {dim}; i += 32) {{
      const auto half = LoadShared<uint16_t>(slot + Ring::Layout::Offset(i / {dim}, i % {dim} * 2));
      StoreGlobal(params.output + 4 + (tile * {tokens} * {dim} + i) * 2, half);
    }}
    SyncWarp();
    if (LaneIndex() == 0) all.wide.Release(stage);
  }}
"""


@pytest.mark.parametrize("warps", [1, 2])
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("codec", CODECS)
def test_every_code_becomes_its_number(host_programs, codec, dim, warps):
    row_bytes = dim * CODECS[codec] // 8
    size = 4 + TILES * TOKENS * dim * 2
    outcome = host_programs.run(
        PROGRAM.format(
            codec=codec, dim=dim, warps=warps, tokens=TOKENS, stages=STAGES, tiles=TILES, row_bytes=row_bytes
        ),
        threads=32 * (warps + 1),
        shared_bytes=STAGES * TOKENS * dim * 2 + 2048,
        memory_bytes=-(-size // 4096) * 4096,
        output_bytes=size,
        includes='#include "pipeline/tile_widener.cuh"\n#include "pipeline/tma_ring.cuh"',
    )
    assert not outcome.error
    unit = np.frombuffer(outcome.output[:4], np.float32)[0]
    i = np.arange(TOKENS * row_bytes)
    codes = np.stack([(i * 167 + tile * 59 + i // 256 * 31) & 255 for tile in range(TILES)]).astype(np.uint8)
    codes = codes.reshape(TILES, TOKENS, row_bytes)
    if codec == "Float8E4M3":
        wanted = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    else:
        wanted = (unpack_int4(codes) if codec == "Int4" else codes).astype(np.float32)
    found = np.frombuffer(outcome.output[4:], np.float16).astype(np.float32).reshape(wanted.shape)
    np.testing.assert_array_equal(found * unit, wanted)
