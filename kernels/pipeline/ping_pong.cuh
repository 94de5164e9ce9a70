// Warp groups take turns at something.
#ifndef KVIT_PIPELINE_PING_PONG_CUH
#define KVIT_PIPELINE_PING_PONG_CUH

#include <stdint.h>

#include "platform/platform.cuh"

namespace kvit {

/// Each of Groups warp groups in its turn, group 0 first, the same number of turns each.
template <int Groups>
struct PingPong {
  uint64_t begun[Groups];

  /// One thread calls, before a barrier of all. warps: of a group.
  KVIT_DEVICE void Init(int warps) {
    for (int group = 0; group < Groups; ++group) InitBarrier(&begun[group], warps);
  }
  /// All threads of a group call: waits for its turn, of which it had `turn` before. Of group 0 this is the phase
  /// before the one that the next arrivals end, which in the beginning is over.
  KVIT_DEVICE void Wait(int group, uint32_t turn) { WaitBarrier(&begun[group], (turn + uint32_t(group == 0)) & 1u); }
  /// After what it waited for: the next group's turn begins.
  KVIT_DEVICE void Pass(int group) {
    if (LaneIndex() == 0) Arrive(&begun[group + 1 == Groups ? 0 : group + 1]);
  }
};

}  // namespace kvit

#endif  // KVIT_PIPELINE_PING_PONG_CUH
