// Streams the K and V tiles of a CTA's share through a ring in shared memory, ahead of whoever computes on them.
#ifndef KVIT_ATTENTION_TILE_LOADER_CUH
#define KVIT_ATTENTION_TILE_LOADER_CUH

#include "attention/work_cursor.cuh"
#include "cache/fast_divide.cuh"
#include "cache/fault.cuh"
#include "platform/platform.cuh"

namespace kvit {

/// Runs over the same pieces as the computing cursor, as far ahead as the rings are long and across the ends of pieces,
/// so that copies never pause. Every warp loads what it consumes: no CTA-wide barrier is needed.
template <class Line, class TileIter, class KeyRing, class ValueRing>
class TileLoader {
 public:
  KVIT_DEVICE TileLoader(const KvitDecodeParams& params, const Line& line, const WorkCursor<Line>& cursor,
                         KeyRing& keys, ValueRing& values)
      : params_(params),
        line_(line),
        cursor_(cursor),
        tiles_(params.cache, params.table, FastDivide(params.page_size)) {
    keys.Bind(k_);
    values.Bind(v_);
    Enter();
  }

  /// Begins to copy the next tile, if there is one, into ring slot `stage`; one group of copies either way.
  KVIT_DEVICE void Prefetch(int stage) {
    if (!cursor_.Done()) {
      tiles_.Visit([&](const auto& rows) {
        k_.Prefetch(rows, KeyRing::Map::kDimS, stage);
        v_.Prefetch(rows, ValueRing::Map::kDimS, stage);
      });
      const bool faulted = Ballot(tiles_.faulted()) != 0;
      faulted_stages_ = (faulted_stages_ & ~(1u << stage)) | uint32_t(faulted) << stage;
      if (tiles_.faulted()) ReportFault(params_.fault, tiles_.fault());
      if (++tile_ < end_) {
        tiles_.Advance();
      } else {
        cursor_.Next();
        Enter();
      }
    }
    CopyAsyncCommit();
  }

  /// Whether this warp's tokens of the next tile, if there is one, are among the call's new ones.
  KVIT_DEVICE bool NextIsNew() const {
    constexpr int kTokens = KeyRing::Map::kFootprintS;
    return !cursor_.Done() &&
           tile_ * Line::kTileTokens + (WarpIndex() + 1) * kTokens > Line::OldTokens(cursor_.piece());
  }

  /// Whether the tile in ring slot `stage` has rows that could not be found. The same in all lanes.
  KVIT_DEVICE bool Faulted(int stage) const { return faulted_stages_ >> stage & 1u; }

 private:
  // Goes to the first tile of the cursor's piece, or of the next piece that has any tile to see.
  KVIT_DEVICE void Enter() {
    for (; !cursor_.Done(); cursor_.Next()) {
      const Piece& piece = cursor_.piece();
      tile_ = piece.first;
      end_ = line_.VisibleEnd(piece);
      if (tile_ >= end_) continue;
      tiles_.SetSequence(piece.sequence, piece.head);
      tiles_.SetTile(tile_);
      return;
    }
  }

  const KvitDecodeParams& params_;
  const Line& line_;
  WorkCursor<Line> cursor_;
  TileIter tiles_;
  typename KeyRing::Iterator k_;
  typename ValueRing::Iterator v_;
  int tile_ = 0, end_ = 0;
  uint32_t faulted_stages_ = 0;
};

}  // namespace kvit

#endif  // KVIT_ATTENTION_TILE_LOADER_CUH
