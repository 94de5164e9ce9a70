// Joins what the CTAs of a head have computed over disjoint keys, and writes results. Always in the same order.
#ifndef KVIT_SCHEDULE_COMBINE_CUH
#define KVIT_SCHEDULE_COMBINE_CUH

#include <math.h>

#include "abi/params.h"
#include "core/array.cuh"
#include "core/types.h"
#include "platform/platform.cuh"
#include "schedule/cta_range.cuh"
#include "schedule/partial.cuh"
#include "schedule/row_writer.cuh"
#include "schedule/split_tree.cuh"
#include "schedule/work_tile.cuh"

namespace kvit {

/// Whoever ends a head that others began joins its parts, after everything else. It waits for CTAs with lower numbers
/// alone: CTAs start in that order, so they run already, and what they leave is there before they wait themselves. So
/// the lowest one that has not ended always goes on.
///
///   parts of a CTA    stream-K: [0] of the head that it continues, [1] of the head that it begins and leaves
///   unfinished
///                     where heads are split: of nodes of SplitTree
///
/// At the end of a launch one warp on each scheduler does this and nothing else, so it costs what its instructions
/// take one after the other: what others wait for comes first.
///
/// Outputs says which thread has which part of a work tile (schedule/warp_sums.cuh, schedule/rows_of_warps.cuh):
/// Shared, and ForEachPart(attention, rows, use), which calls use(row, vector, part) for those of the calling thread.
template <class T, class Dims, int Rows, int Warps, class Outputs, class Scheduler, class Score>
class Combine {
  static constexpr int kHeadDim = Dims::kValue;

 public:
  static constexpr int kThreads = Warps * 32;
  static constexpr int kVector = Partial::kVector;
  static constexpr int kVectors = kHeadDim / kVector;
  static constexpr int kRowLanes = Min(32, kVectors);  // of a warp, that join the same row
  // Rows of a thread, and parts of each, that are read together: a round trip for all of them.
  static constexpr int kItems = Rows >= 64 ? 4 : 1, kBatch = Min(20, kRowLanes) / kItems;
  using Vector = Array<float, kVector>;
  using Work = typename Scheduler::Work;
  using Tree = SplitTree<kHeadDim, Rows, Scheduler::kSplitLevels, Min(kVectors, kThreads)>;
  static constexpr int kParts = 2;
  // Of a CTA, in the workspace.
  static constexpr int kPartBytes = Partials<kHeadDim, Rows, kParts>::kCtaBytes;
  static constexpr int kSplitPartBytes = Partials<kHeadDim, Rows, Tree::kParts>::kCtaBytes;
  static_assert(kThreads % kVectors == 0 || (kItems == 1 && kVectors % kThreads == 0),
                "all threads join vectors of the same number of rows");
  static constexpr int kRowsAtOnce = kThreads / kVectors;
  static_assert(kItems == 1 || Tree::kParts == 0, "nodes of a tree are joined row by row");

  /// Whose outputs are written: the rows of a row tile of a head.
  struct Target {
    int first_token, row_tile, rows, head;
  };
  /// The head that this CTA joins.
  struct Joined {
    Target target;
    int first_cta;  // that has a part of it
    SplitRun run;   // where heads are split: this CTA's
  };
  static constexpr int kJoinedWords = sizeof(Joined) / sizeof(int);

  struct Shared {
    typename Outputs::Shared outputs;
    int joined[Warps][kJoinedWords];
  };

  KVIT_DEVICE Combine(const KvitDecodeParams& params, const Scheduler& scheduler, const CtaRange& range, Shared& shared)
      : writer_(params),
        scheduler_(scheduler),
        range_(range),
        shared_(shared),
        outputs_(shared.outputs, params.cache),
        parts_(PartialsOf(params.workspace)),
        tree_(range, PartialsOf(params.workspace)) {}

  /// All threads call, once per work tile. Ends in the output if that is all of its row tile, else in the workspace.
  template <class Attention>
  KVIT_DEVICE void Finish(Attention& attention, const Work& work) {
    outputs_.Share(attention, [&] {
      if constexpr (Scheduler::kHasBegin && Tree::kParts > 0) AddUnseen(work);
    });
    const Target target = TargetOf(work);
    const bool is_split = scheduler_.IsSplit(), is_whole = work.Begins() && work.Ends();
    int split = 0;
    SplitRun run = {};
    if (is_split) {
      split = work.first / scheduler_.SplitOf(work.of);
      run = RunOf(work);
    }
    const auto output_of = [&](int row) { return OutputOf(target, row); };
    const auto part_of = [&](int row, int vector) {
      return parts_.At(range_.ticket, work.Begins() ? 1 : 0, row, vector);
    };
    if constexpr (Tree::kParts > 0) {
      outputs_.ForEachPart(attention, target.rows, output_of,
                           [&](const typename Writer::Place& output, int row, int vector, Partial& part) {
                             bool writes = is_whole;
                             if (is_split) {
                               writes = tree_.Add(run, split, row, vector, part);
                             } else if (!is_whole) {
                               part_of(row, vector).Store(part, vector == 0);
                             }
                             if (writes) writer_.Write(output, vector, part);
                           });
    } else if (is_whole) {  // loops of their own, since a thread with rows to itself has no loop to go round
      outputs_.ForEachPart(attention, target.rows, output_of,
                           [&](const typename Writer::Place& output, int, int vector, const Partial& part) {
                             writer_.Write(output, vector, part);
                           });
    } else {
      outputs_.ForEachPart(
          attention, target.rows, [&](int row) { return part_of(row, 0); },
          [&](const auto& place, int, int vector, const Partial& part) {
            place.Vector(vector).Store(part, vector == 0);
          });
    }
    // At most one of a CTA's heads, its first.
    const bool ends_others_head = work.Ends() && (is_split ? run.begin > 0 : !work.Begins());
    if (ends_others_head) Note({target, range_.Owner(work.line_begin + scheduler_.Openings()), run});
  }

  /// All threads call, after the last work tile: joins the head that this CTA has ended and not begun, if there is one.
  /// First part to last, whatever was ready first.
  KVIT_DEVICE void Join() {
    if (!is_joiner_) return;
    SyncWarp();
    Array<int, kJoinedWords> words;
    KVIT_UNROLL
    for (int i = 0; i < kJoinedWords; ++i) words[i] = LoadShared<int>(&shared_.joined[WarpIndex()][i]);
    const auto joined = BitCast<Joined>(words);
    const int first = joined.first_cta, last = range_.cta, items = joined.target.rows * kVectors;
    for (int begin = 0; begin < items; begin += kThreads * kItems) {
      const int item = begin + ThreadIndex(), row = item / kVectors, vector = item % kVectors;
      if constexpr (Tree::kParts > 0) {
        if (scheduler_.IsSplit()) {
          const Partial whole = tree_.Join(joined.run, first, row, vector, item < items);
          if (item < items) writer_.Write(OutputOf(joined.target, row), vector, whole);
          continue;
        }
      }
      Partial whole[kItems];
      for (int cta = first; cta <= last; cta += kBatch) {
        AddParts(cta, cta == first, Min(last - cta + 1, kBatch), row, vector, joined.target.rows, whole);
      }
      KVIT_UNROLL
      for (int j = 0; j < kItems; ++j) {
        const int at = row + j * kRowsAtOnce;
        if (at < joined.target.rows) writer_.Write(OutputOf(joined.target, at), vector, whole[j]);
      }
    }
  }

 private:
  using Writer = RowWriter<T, Dims, Score>;

  KVIT_DEVICE Target TargetOf(const Work& work) const {
    return {work.of.first_token, work.row_tile, scheduler_.NumRows(work), work.head};
  }
  KVIT_DEVICE SplitRun RunOf(const Work& work) const {
    const int first = Scheduler::kHasBegin ? scheduler_.FirstSplit(work) : 0;
    return SplitRun::Of(range_, work.line_begin, scheduler_.Units(work.of, work.tiles), first);
  }

  // Where splits of a head stand before the first that is computed.
  KVIT_DEVICE void AddUnseen(const Work& work) const {
    if (!scheduler_.IsSplit() || work.first > work.tiles.first) return;
    const int first = scheduler_.FirstSplit(work), rows = scheduler_.NumRows(work);
    const SplitRun run = RunOf(work);
    for (int item = ThreadIndex(); first != 0 && item < rows * kVectors; item += kThreads) {
      tree_.AddUnseen(run, first, item / kVectors, item % kVectors);
    }
  }

  // For Join: in shared memory, each warp for itself, since registers are scarce until then.
  KVIT_DEVICE void Note(const Joined& joined) {
    is_joiner_ = true;
    const auto words = BitCast<Array<int, kJoinedWords>>(joined);
    KVIT_UNROLL
    for (int i = 0; i < kJoinedWords; ++i) {
      if (LaneIndex() == i) StoreShared(&shared_.joined[WarpIndex()][i], words[i]);
    }
  }

  // Whether the parts from i on are behind the last: asked of every fourth alone, since a branch costs as much as they.
  static KVIT_DEVICE bool IsBehind(int i, int count) { return i % 4 == 0 && i >= count; }

  // Adds `count` parts from that of `cta` on to `whole`, once they are all there, and takes them back: of row `row`,
  // and of every kRowsAtOnce-th behind it, below `rows`. All their loads are under way together: one round trip, not
  // one each. All threads call, those without a row for nothing.
  //
  //   lanes of a row    each has its vector of all parts; lane i has the stats of part i besides
  KVIT_DEVICE void AddParts(int cta, bool is_first, int count, int row, int vector, int rows,
                            Partial (&whole)[kItems]) const {
    using Parts = Partials<kHeadDim, Rows, kParts>;
    const int lane = LaneIndex() % kRowLanes, first_lane = LaneIndex() - lane;
    const auto is_mine = [&](int j) { return row + j * kRowsAtOnce < rows; };
    const auto place = [&](int j, int i) {
      const auto begin = parts_.At(range_.TicketOf(cta), 0, row + j * kRowsAtOnce, vector);
      return begin.Behind(i * range_.partitions * Parts::kRows + (i == 0 && is_first ? Rows : 0));
    };
    const auto has_stats = [&](int j) { return is_mine(j) && lane < count; };
    Words<8> stats[kItems] = {};
    Words<16> outputs[kItems][kBatch] = {};
    uint32_t missing = 0u;
    KVIT_UNROLL
    for (int j = 0; j < kItems; ++j) missing |= (is_mine(j) ? (1u << count) - 1u : 0u) << j * kBatch;
    for (;;) {
      bool lacks_stats = false;
      KVIT_UNROLL
      for (int j = 0; j < kItems; ++j) {
        if (has_stats(j) && !AreThere(stats[j])) stats[j] = place(j, lane).LoadStats();
        KVIT_UNROLL
        for (int i = 0; i < kBatch; ++i) {
          if (IsBehind(i, count)) break;
          if (missing >> (j * kBatch + i) & 1u) outputs[j][i] = place(j, i).LoadOutput();
        }
      }
      KVIT_UNROLL
      for (int j = 0; j < kItems; ++j) {
        lacks_stats |= has_stats(j) && !AreThere(stats[j]);
        KVIT_UNROLL
        for (int i = 0; i < kBatch; ++i) missing &= ~(uint32_t(AreThere(outputs[j][i])) << (j * kBatch + i));
      }
      if (missing == 0u && !lacks_stats) break;
      Pause();
    }
    // All warps read the stats of a row before one takes them back, that of its last vectors.
    if constexpr (kVectors > 32) Outputs::SyncRow();
    SyncWarp();
    KVIT_UNROLL
    for (int j = 0; j < kItems; ++j) {
      if (has_stats(j) && vector >= kVectors - kRowLanes) place(j, lane).ClearStats();
      KVIT_UNROLL
      for (int i = 0; i < kBatch; ++i) {
        if (IsBehind(i, count)) break;
        if (is_mine(j) && i < count) place(j, i).ClearOutput();
      }
      Add(has_stats(j), stats[j], outputs[j], count, first_lane, whole[j]);
    }
  }

  KVIT_DEVICE void Add(bool has_stats, const Words<8>& stats, const Words<16> (&outputs)[kBatch], int count,
                       int first_lane, Partial& whole) const {
    const auto mine = has_stats ? BitCast<Float2>(stats) : Float2{-INFINITY, 0.0f};
    Partial all;
    all.max = mine.lo;
    for (int mask = 1; mask < count; mask *= 2) all.max = fmaxf(all.max, ShuffleXor(all.max, mask));
    all.max = fmaxf(whole.max, Shuffle(all.max, first_lane));
    const float weight = MergeWeight(mine.lo, all.max);
    all.sum = mine.hi * weight;  // NaN stays NaN, whatever its weight
    for (int mask = 1; mask < count; mask *= 2) all.sum += ShuffleXor(all.sum, mask);
    all.sum = Shuffle(all.sum, first_lane);
    all.Add(whole, MergeWeight(whole.max, all.max));
    KVIT_UNROLL
    for (int i = 0; i < kBatch; ++i) {
      if (IsBehind(i, count)) break;
      all.Add({0.0f, 0.0f, BitCast<Vector>(outputs[i])}, Shuffle(weight, first_lane + i));
    }
    whole = all;
  }

  KVIT_DEVICE typename Writer::Place OutputOf(const Target& target, int row) const {
    return writer_.PlaceOf(scheduler_, target.first_token, target.head, target.row_tile * Rows + row);
  }

  Writer writer_;
  const Scheduler& scheduler_;
  const CtaRange& range_;
  Shared& shared_;
  Outputs outputs_;
  Partials<kHeadDim, Rows, kParts> parts_;
  Tree tree_;
  bool is_joiner_ = false;
};

}  // namespace kvit

#endif  // KVIT_SCHEDULE_COMBINE_CUH
