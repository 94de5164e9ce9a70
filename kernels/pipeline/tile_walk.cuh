// The tiles that a loader loads: those of a CTA's work tiles that somebody sees, one after the other.
#ifndef KVIT_PIPELINE_TILE_WALK_CUH
#define KVIT_PIPELINE_TILE_WALK_CUH

#include "platform/platform.cuh"
#include "schedule/work_iterator.cuh"

namespace kvit {

/// Runs over the same work tiles as whoever computes, as far ahead as the rings are long and across the ends of work
/// tiles, so that loads never pause. `BandTokens` tokens of every tile are this loader's, its band of them.
template <class Scheduler, int BandTokens>
class TileWalk {
 public:
  KVIT_DEVICE TileWalk(const Scheduler& scheduler, const WorkIterator<Scheduler>& works, int band)
      : scheduler_(scheduler), works_(works), band_(band) {
    Enter();
  }

  KVIT_DEVICE bool Done() const { return works_.Done(); }
  KVIT_DEVICE const typename Scheduler::Work& work() const { return works_.work(); }
  KVIT_DEVICE int tile() const { return tile_; }
  /// The first token of the band, in the sequence.
  KVIT_DEVICE uint32_t BandBegin() const {
    return uint32_t(tile_) * Scheduler::kTileTokens + uint32_t(band_ * BandTokens);
  }

  /// Tokens before this one need not be there: no row sees them. Where row tiles have a begin.
  KVIT_DEVICE int FirstKey() const { return scheduler_.FirstKey(work()); }

  /// To the next tile, if there is one. True where it is of the same work tile.
  KVIT_DEVICE bool Next() {
    if (++tile_ < end_) return true;
    works_.Next();
    Enter();
    return false;
  }

  /// Whether any of the band's tokens of this tile, if there is one, are among the call's new ones.
  KVIT_DEVICE bool IsNew() const {
    return !Done() && tile_ * Scheduler::kTileTokens + (band_ + 1) * BandTokens > work().of.OldTokens();
  }

 private:
  // To the first tile of this work tile, or of the next one that has any tile to see.
  KVIT_DEVICE void Enter() {
    for (; !Done(); works_.Next()) {
      const TileRange visible = scheduler_.VisibleTiles(work());
      tile_ = visible.first;
      end_ = visible.last;
      if (tile_ < end_) return;
    }
  }

  const Scheduler& scheduler_;
  WorkIterator<Scheduler> works_;
  int band_, tile_ = 0, end_ = 0;
};

}  // namespace kvit

#endif  // KVIT_PIPELINE_TILE_WALK_CUH
