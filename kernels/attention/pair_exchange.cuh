// Two warps that hold the same rows of attention over different keys give each other what they have.
#ifndef KVIT_ATTENTION_PAIR_EXCHANGE_CUH
#define KVIT_ATTENTION_PAIR_EXCHANGE_CUH

#include <stdint.h>

#include "core/types.h"
#include "platform/platform.cuh"

namespace kvit {

/// Warps w and w + 4 of two warp groups. Each lane gives eight words to the same lane of the other warp, and a flag
/// that is the same in the whole warp.
///
///   warp w        writes   full     waits for the other's full   reads   taken
///   warp w + 4    writes   full     waits for the other's full   reads   taken      writes when its own is taken ...
struct PairExchange {
  uint64_t full[8], taken[8];  // of each warp's words: they are there; the other has read them
  int flag[8];
  alignas(16) Words<16> words[2][8][32];

  /// One thread calls, before a barrier of all.
  KVIT_DEVICE void Init() {
    for (int warp = 0; warp < 8; ++warp) {
      InitBarrier(&full[warp], 1);
      InitBarrier(&taken[warp], 1);
    }
  }
};

/// A warp's side of it.
class PairSide {
 public:
  KVIT_DEVICE explicit PairSide(PairExchange& shared) : shared_(shared) {}

  KVIT_DEVICE void Give(const uint32_t (&mine)[8], bool flag) {
    const int own = WarpIndex();
    if (count_ != 0) WaitBarrier(&shared_.taken[own], (count_ - 1) & 1u);
    KVIT_UNROLL
    for (int i = 0; i < 2; ++i) {
      StoreShared(&shared_.words[i][own][LaneIndex()],
                  Words<16>{{mine[4 * i], mine[4 * i + 1], mine[4 * i + 2], mine[4 * i + 3]}});
    }
    if (LaneIndex() == 0) StoreShared(&shared_.flag[own], int(flag));
    SyncWarp();
    if (LaneIndex() == 0) Arrive(&shared_.full[own]);
  }
  /// After Give: waits until the other warp has given too. Whether one of both flags was set.
  KVIT_DEVICE bool Meet(bool flag) const {
    WaitBarrier(&shared_.full[Other()], count_ & 1u);
    return LoadShared<int>(&shared_.flag[Other()]) != 0 || flag;
  }
  /// After Meet: what the other warp gave.
  KVIT_DEVICE void Take(uint32_t (&others)[8]) {
    KVIT_UNROLL
    for (int i = 0; i < 2; ++i) {
      const auto words = LoadShared<Words<16>>(&shared_.words[i][Other()][LaneIndex()]);
      KVIT_UNROLL
      for (int j = 0; j < 4; ++j) others[4 * i + j] = words.word[j];
    }
    Leave();
  }
  /// In place of Take, where nobody wants it.
  KVIT_DEVICE void Leave() {
    SyncWarp();
    if (LaneIndex() == 0) Arrive(&shared_.taken[Other()]);
    ++count_;
  }

 private:
  static KVIT_DEVICE int Other() { return WarpIndex() ^ 4; }

  PairExchange& shared_;
  uint32_t count_ = 0;  // exchanges so far
};

}  // namespace kvit

#endif  // KVIT_ATTENTION_PAIR_EXCHANGE_CUH
