// Finds which part of a call's work belongs to a CTA.
#ifndef KVIT_SCHEDULE_RANGE_FINDER_CUH
#define KVIT_SCHEDULE_RANGE_FINDER_CUH

#include <stdint.h>

#include "core/types.h"
#include "platform/platform.cuh"
#include "schedule/cta_range.cuh"
#include "schedule/ticket.cuh"
#include "schedule/warp_counts.cuh"
#include "schedule/work_tile.cuh"

namespace kvit {

template <int Warps>
struct RangeFinderShared {
  int64_t warp_units[Warps];
  int64_t sequence_begin;
  int sequence;
  int ticket;
};

/// Adds up the units of all sequences, as a TileScheduler counts them, and cuts the line: in each warp where there are
/// at most 32 sequences, and else in the CTA.
template <class Scheduler>
class RangeFinder {
 public:
  using Shared = typename Scheduler::Shared;

  KVIT_DEVICE RangeFinder(const Scheduler& scheduler, int num_sequences)
      : scheduler_(scheduler), num_sequences_(num_sequences) {}

  /// The range of the CTA with this ticket, which it shares. All threads call.
  KVIT_DEVICE CtaRange Find(Shared& shared, const Ticket& ticket) const {
    return num_sequences_ <= 32 ? FindInWarp(shared, ticket) : FindInCta(shared, ticket);
  }

 private:
  static constexpr int kWarps = Scheduler::kWarps;

  // Each warp for itself, a lane for each sequence. Of one sequence, all lanes know all there is to know.
  KVIT_DEVICE CtaRange FindInWarp(Shared& shared, const Ticket& ticket) const {
    const int sequences = num_sequences_, sequence = sequences == 1 ? 0 : LaneIndex();
    SequenceWork work = {};
    if (sequence < sequences) work = scheduler_.View(sequence, BlockIndex() == 0);
    const int64_t units = UnitsOfLanes(work, sequences == 1);
    const int64_t through = sequences == 1 ? units : SumUpToLane(units);
    CtaRange range = Cut(Shuffle(through, 31), ticket.Share(shared.ticket));
    const int64_t before = through - units;
    const uint32_t holders = Ballot(before <= range.begin && range.begin < through);  // none without a share
    const int holder = holders == 0 ? 0 : LowestBit(holders);
    range.sequence = Shuffle(sequence, holder);
    range.sequence_begin = Shuffle(before, holder);
    range.work = OfLane(work, holder);
    return range;
  }

  // Each thread looks at a run of consecutive sequences, twice: at first for its units alone.
  KVIT_DEVICE CtaRange FindInCta(Shared& shared, const Ticket& ticket) const {
    const int run = (num_sequences_ + kWarps * 32 - 1) / (kWarps * 32);
    const int from = Min(ThreadIndex() * run, num_sequences_), to = Min(from + run, num_sequences_);
    CtaRange range = {};
    int64_t before = 0;  // units before `sequence`
    int sequence = from;
    for (bool is_cut = false;; is_cut = true) {
      const auto view = [&](int i) { return scheduler_.View(i, BlockIndex() == 0 && !is_cut); };
      if constexpr (Scheduler::kCountsInWarp) {
        sequence = from;
        for (bool goes_on = from < to; Ballot(goes_on) != 0u;) {
          const int64_t units = UnitsOfLanes(goes_on ? view(sequence) : SequenceWork{}, false);
          if (!goes_on) continue;
          goes_on = !is_cut || range.begin >= before + units;
          if (!goes_on) continue;
          before += units;
          goes_on = ++sequence < to;
        }
      } else {
        for (sequence = from; sequence < to; ++sequence) {
          const int64_t units = scheduler_.UnitsOf(view(sequence));
          if (is_cut && range.begin < before + units) break;
          before += units;
        }
      }
      if (is_cut) break;
      const int64_t units = before;
      before = SumUpToLane(units);
      if (LaneIndex() == 31) StoreShared(&shared.warp_units[WarpIndex()], before);
      SyncThreads();
      int64_t total = 0;
      before -= units;
      KVIT_UNROLL
      for (int warp = 0; warp < kWarps; ++warp) {
        const auto warp_units = LoadShared<int64_t>(&shared.warp_units[warp]);
        if (warp < WarpIndex()) before += warp_units;
        total += warp_units;
      }
      range = Cut(total, ticket.Share(shared.ticket));
      if (range.IsEmpty()) return range;  // the whole CTA leaves together
    }
    if (sequence < to && before <= range.begin) {  // exactly one thread
      StoreShared(&shared.sequence, sequence);
      StoreShared(&shared.sequence_begin, before);
    }
    SyncThreads();
    range.sequence = LoadShared<int>(&shared.sequence);
    range.sequence_begin = LoadShared<int64_t>(&shared.sequence_begin);
    range.work = scheduler_.View(range.sequence);
    return range;
  }

  // Of each lane's own sequence, or of the one that all have. Where the warp counts together, one long sequence after
  // the other.
  KVIT_DEVICE int64_t UnitsOfLanes(const SequenceWork& work, bool is_one) const {
    if constexpr (Scheduler::kCountsInWarp) {
      if (is_one) return scheduler_.UnitsOf(work);
      int64_t units = work.row_tiles == 1 ? scheduler_.UnitsOf(work) : 0;
      KVIT_ROLLED
      for (uint32_t left = Ballot(work.row_tiles > 1); left != 0u; left &= left - 1u) {
        const int lane = LowestBit(left);
        const int64_t of_lane = scheduler_.UnitsOf(OfLane(work, lane));
        if (LaneIndex() == lane) units = of_lane;
      }
      return units;
    } else {
      return scheduler_.UnitsOf(work);
    }
  }

  KVIT_DEVICE CtaRange Cut(int64_t total, int ticket) const {
    // Units of a kernel that never cuts a row tile where heads are split are whole row tiles.
    const int fewest = Scheduler::kFewestUnits == 1 || scheduler_.IsSplit() ? 1 : Scheduler::kFewestUnits;
    return CtaRange::Cut(total, ticket, GridSize(), scheduler_.partitions(), fewest);
  }

  const Scheduler& scheduler_;
  int num_sequences_;
};

}  // namespace kvit

#endif  // KVIT_SCHEDULE_RANGE_FINDER_CUH
