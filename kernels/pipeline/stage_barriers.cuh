// The two barriers of a ring slot whose tile one warp asks for and others consume.
#ifndef KVIT_PIPELINE_STAGE_BARRIERS_CUH
#define KVIT_PIPELINE_STAGE_BARRIERS_CUH

#include <stdint.h>

#include "platform/platform.cuh"

namespace kvit {

/// Barriers in shared memory of Stages ring slots. A producer waits until a slot is free, says how many bytes it will
/// bring, and asks for them; each of the consumers waits until they are there, and releases the slot.
///
///   producer   WaitFree(0)  Expect(0) copies   WaitFree(1)  Expect(1) copies   WaitFree(0) ...
///   consumer                      WaitFull(0)  computes  Release(0)    WaitFull(1)  ...
///
/// Where a warp fills its own slots it needs no release: `full` alone.
template <int Stages>
struct StageBarriers {
  uint64_t full[Stages], free[Stages];

  /// One thread calls, before a barrier of all. fillers: warps that fill a slot together.
  KVIT_DEVICE void Init(int consumers, int fillers = 1) {
    for (int stage = 0; stage < Stages; ++stage) {
      InitBarrier(&full[stage], fillers);
      InitBarrier(&free[stage], consumers);
    }
    FenceBarrierInit();
  }

  /// `round` counts how often the ring has been gone round: the first time every slot is free.
  KVIT_DEVICE void WaitFree(int stage, uint32_t round) {
    if (round != 0) WaitBarrier(&free[stage], (round - 1) & 1u);
  }
  KVIT_DEVICE void Expect(int stage, int bytes) { ArriveExpecting(&full[stage], bytes); }
  KVIT_DEVICE void WaitFull(int stage, uint32_t round) { WaitBarrier(&full[stage], round & 1u); }
  /// One thread of each consumer calls, after all of the consumer's threads have read the slot.
  KVIT_DEVICE void Release(int stage) { Arrive(&free[stage]); }
};

}  // namespace kvit

#endif  // KVIT_PIPELINE_STAGE_BARRIERS_CUH
