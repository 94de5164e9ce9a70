// Walks through a CTA's range of its partition's line of work.
#ifndef KVIT_SCHEDULE_WORK_ITERATOR_CUH
#define KVIT_SCHEDULE_WORK_ITERATOR_CUH

#include <stdint.h>

#include "core/types.h"
#include "platform/platform.cuh"
#include "schedule/cta_range.cuh"
#include "schedule/work_tile.cuh"

namespace kvit {

/// Where a walk is: what is kept where a walk has no registers to itself.
template <class Work>
struct WorkPlace {
  int64_t position;  // on the partition's line
  Work work;
};

/// Walks a CTA's range, work tile by work tile. Within a sequence the line has head after head of the partition, within
/// a head row tile after row tile, which share its keys in L2, and within a row tile its units.
template <class Scheduler>
class WorkIterator {
 public:
  using Place = WorkPlace<typename Scheduler::Work>;

  KVIT_DEVICE WorkIterator(const Scheduler& scheduler, int num_heads, const CtaRange& range)
      : scheduler_(scheduler), num_heads_(num_heads), partition_(range.Partition()), end_(range.end) {
    position_ = range.begin;
    work_.sequence = range.sequence;
    work_.of = range.work;
    const int64_t within = range.begin - range.sequence_begin, of_head = scheduler_.HeadUnits(work_.of);
    const int64_t head = of_head >> 31 == 0 ? Divide(within, int(of_head)) : within / of_head;
    const auto place = scheduler_.FindRowTile(work_.of, within - head * of_head);
    work_.head = int(head) * scheduler_.partitions() + partition_;
    work_.row_tile = place.row_tile;
    work_.tiles = scheduler_.TilesOf(work_.of, work_.row_tile);
    Begin(int(within - head * of_head - place.before));
  }

  /// Goes on from a place on the same range.
  KVIT_DEVICE WorkIterator(const Scheduler& scheduler, int num_heads, const CtaRange& range, const Place& place)
      : scheduler_(scheduler), num_heads_(num_heads), partition_(range.Partition()), end_(range.end) {
    position_ = place.position;
    work_ = place.work;
  }

  KVIT_DEVICE Place place() const { return {position_, work_}; }
  KVIT_DEVICE bool Done() const { return position_ >= end_; }
  KVIT_DEVICE const typename Scheduler::Work& work() const { return work_; }

  KVIT_DEVICE void Next() {
    if constexpr (Scheduler::kOpening == 0) {
      position_ += scheduler_.IsSplit() ? 1 : work_.last - work_.first;
    } else {
      position_ = scheduler_.IsSplit() ? position_ + 1
                                       : work_.line_begin + Scheduler::kOpening + (work_.last - work_.tiles.first);
    }
    if (Done()) return;
    if (!work_.Ends()) {  // there is another split of the row tile
      Begin(int(position_ - work_.line_begin));
      return;
    }
    if (++work_.row_tile == work_.of.row_tiles) {
      work_.row_tile = 0;
      work_.head += scheduler_.partitions();
      if (work_.head >= num_heads_) {
        work_.head = partition_;
        do {
          work_.of = scheduler_.View(++work_.sequence);
        } while (work_.of.row_tiles == 0);
      }
    }
    work_.tiles = scheduler_.TilesOf(work_.of, work_.row_tile);
    Begin(0);
  }

 private:
  KVIT_DEVICE void Begin(int unit) {
    work_.line_begin = position_ - unit;
    if (scheduler_.IsSplit()) {
      const int split = scheduler_.SplitOf(work_.of);
      work_.first = (work_.tiles.first / split + unit) * split;
      work_.last = Min(work_.first + split, work_.tiles.last);
      if constexpr (Scheduler::kHasBegin && Scheduler::kSplitLevels == 0) work_.first = work_.tiles.first;  // one split
    } else {
      if constexpr (Scheduler::kOpening > 0) {
        if (unit < Scheduler::kOpening) {
          position_ += Scheduler::kOpening - unit;  // whoever has the first tile has all that comes before it
          unit = Scheduler::kOpening;
        }
        unit -= Scheduler::kOpening;
        if (Done()) return;
      }
      const int64_t left = end_ - position_;
      work_.first = work_.tiles.first + unit;
      work_.last = left < work_.tiles.last - work_.first ? work_.first + int(left) : work_.tiles.last;
    }
  }

  const Scheduler& scheduler_;
  int num_heads_, partition_;
  int64_t position_, end_;
  typename Scheduler::Work work_;
};

}  // namespace kvit

#endif  // KVIT_SCHEDULE_WORK_ITERATOR_CUH
