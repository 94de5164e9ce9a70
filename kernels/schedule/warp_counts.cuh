// What the lanes of a warp count together: sums, and the row tiles of long sequences.
#ifndef KVIT_SCHEDULE_WARP_COUNTS_CUH
#define KVIT_SCHEDULE_WARP_COUNTS_CUH

#include <stdint.h>

#include "core/macros.h"
#include "platform/platform.cuh"
#include "schedule/work_tile.cuh"

namespace kvit {

/// Of this lane and those below it.
KVIT_DEVICE int64_t SumUpToLane(int64_t x) {
  KVIT_UNROLL
  for (int delta = 1; delta < 32; delta *= 2) {
    const int64_t lower = ShuffleUp(x, delta);
    if (LaneIndex() >= delta) x += lower;
  }
  return x;
}

/// A lane's sequence.
KVIT_DEVICE SequenceWork OfLane(const SequenceWork& work, int lane) {
  return {Shuffle(work.length, lane),    Shuffle(work.new_tokens, lane), Shuffle(work.first_token, lane),
          Shuffle(work.row_tiles, lane), Shuffle(work.pages, lane),      Shuffle(int(work.is_bad), lane) != 0};
}

/// Total() and Find() of RowTiles of which all lanes have the same, 32 row tiles at a time.
template <class RowTiles>
KVIT_DEVICE int64_t TotalInWarp(const RowTiles& tiles) {
  int64_t units = 0;
  KVIT_ROLLED
  for (int i = LaneIndex(); i < tiles.Count(); i += 32) units += tiles.Units(i);
  return Shuffle(SumUpToLane(units), 31);
}
template <class RowTiles>
KVIT_DEVICE typename RowTiles::Place FindInWarp(const RowTiles& tiles, int64_t unit) {
  int64_t before = 0;
  KVIT_ROLLED
  for (int first = 0;; first += 32) {
    const int i = first + LaneIndex(), units = i < tiles.Count() ? tiles.Units(i) : 0;
    const int64_t through = before + SumUpToLane(units);
    const uint32_t behind = Ballot(unit < through);
    if (behind != 0u) {
      const int lane = LowestBit(behind);
      return {first + lane, Shuffle(through - units, lane)};
    }
    before = Shuffle(through, 31);
  }
}

}  // namespace kvit

#endif  // KVIT_SCHEDULE_WARP_COUNTS_CUH
