// Work tiles on their way from the warp that walks along them to the warps that load and compute them.
#ifndef KVIT_PIPELINE_WORK_PLAN_CUH
#define KVIT_PIPELINE_WORK_PLAN_CUH

#include <stdint.h>

#include "pipeline/stage_barriers.cuh"
#include "platform/platform.cuh"
#include "schedule/work_iterator.cuh"
#include "schedule/work_tile.cuh"

namespace kvit {

/// A work tile, and what follows from it.
template <class Work>
struct Assignment {
  Work work;
  TileRange visible;                // tiles that some row sees; none where last <= first
  decltype(Work::tiles) are_whole;  // tiles of which all rows see all
  bool exists;                      // false: there is no more work

  KVIT_HD bool IsEmpty() const { return visible.last <= visible.first; }
};

/// In shared memory: one warp writes what a CTA has to do, a few work tiles ahead, so that it is worked out once and
/// beside everything else; `readers` warps read it, each from the first to the one that does not exist.
template <class Work, int Slots>
class WorkPlan {
 public:
  /// One thread calls, before a barrier of all.
  KVIT_DEVICE void Init(int readers) { barriers_.Init(readers); }

  /// All lanes of the writing warp call: the next assignment, as soon as its slot is free. False: that was the last,
  /// the one that does not exist.
  template <class Scheduler>
  KVIT_DEVICE bool Write(const Scheduler& scheduler, WorkIterator<Scheduler>& works, uint32_t count) {
    barriers_.WaitFree(int(count % Slots), count / Slots);
    Assignment<Work>& slot = slots_[count % Slots];
    const bool exists = !works.Done();
    if (LaneIndex() == 0) {
      slot.exists = exists;
      if (exists) {
        slot.work = works.work();
        slot.visible = scheduler.VisibleTiles(slot.work);
        slot.are_whole = scheduler.WholeTiles(slot.work);
      }
      Arrive(&barriers_.full[count % Slots]);
    }
    SyncWarp();
    if (exists) works.Next();
    return exists;
  }

  /// The assignment behind `count` others, once it is there, until the calling warp releases it.
  KVIT_DEVICE const Assignment<Work>& Read(uint32_t count) {
    barriers_.WaitFull(int(count % Slots), count / Slots);
    return slots_[count % Slots];
  }
  /// The same where the calling warp has read it before.
  KVIT_DEVICE const Assignment<Work>& At(uint32_t count) const { return slots_[count % Slots]; }
  /// All lanes call.
  KVIT_DEVICE void Release(uint32_t count) {
    SyncWarp();
    if (LaneIndex() == 0) barriers_.Release(int(count % Slots));
  }

 private:
  StageBarriers<Slots> barriers_;
  Assignment<Work> slots_[Slots];
};

}  // namespace kvit

#endif  // KVIT_PIPELINE_WORK_PLAN_CUH
