// Asks for a tile piece by piece, each as soon as its place in the ring is free.
#ifndef KVIT_PIPELINE_TILES_IN_PIECES_CUH
#define KVIT_PIPELINE_TILES_IN_PIECES_CUH

#include <stdint.h>

#include "iterator/sm90.cuh"
#include "pipeline/stage_barriers.cuh"
#include "platform/platform.cuh"

namespace kvit {

/// What BoxSlots is for tiles in pieces: each piece of a slot has barriers of its own. A slot's has_faulted is the
/// loader's while piece 0 is free.
template <int Pieces, int Stages>
struct PieceSlots {
  StageBarriers<Stages> pieces[Pieces];
  int has_faulted[Stages];  // whether the tile has rows that could not be found
};

/// BoxLoader's Filler in place of WholeTiles. Pieces says which chunks a piece has, as LatentPieces does, in the order
/// in which pieces become free.
///
///   loader     WaitFree, Expect, copies of piece 0    of piece 1    ...    of piece 0 of the next tile
template <class Ring, class Pieces, int Stages>
struct TilesInPieces {
  const KvitTensorMap& map;
  Ring& ring;
  PieceSlots<Pieces::kCount, Stages>& slots;

  /// As WholeTiles has it.
  KVIT_DEVICE void Fill(uint32_t tiles, bool has_lost, bool begins, const Box& box, int row) const {
    using Iterator = typename Ring::Iterator;
    const auto stage = int(tiles % Stages);
    KVIT_UNROLL
    for (int piece = 0; piece < Pieces::kCount; ++piece) {
      const ChunkRange chunks = Pieces::Chunks(piece);
      StageBarriers<Stages>& barriers = slots.pieces[piece];
      barriers.WaitFree(stage, tiles / Stages);
      if (LaneIndex() == 0) {
        if (piece == 0) StoreShared(&slots.has_faulted[stage], int(has_lost));
        barriers.Expect(stage, chunks.Count() * Iterator::Layout::kChunkBytes);
      }
      if (begins) {
        Iterator::template PrefetchChunks<false>(map, box, chunks, ring.Tile(stage, 0), row, &barriers.full[stage]);
      }
    }
  }
};

}  // namespace kvit

#endif  // KVIT_PIPELINE_TILES_IN_PIECES_CUH
