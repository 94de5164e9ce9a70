// Joins the splits of a head as the leaves of one binary tree, whoever computed them: the same sums in the same order
// in any batch and on any grid.
#ifndef KVIT_SCHEDULE_SPLIT_TREE_CUH
#define KVIT_SCHEDULE_SPLIT_TREE_CUH

#include <stdint.h>

#include "core/array.cuh"
#include "core/types.h"
#include "platform/platform.cuh"
#include "schedule/cta_range.cuh"
#include "schedule/partial.cuh"

namespace kvit {

/// The union of two states over disjoint keys. Every operation is rounded by itself: no two compilations of it may
/// differ.
KVIT_DEVICE Partial JoinPair(const Partial& a, const Partial& b) {
  Partial whole;
  whole.max = fmaxf(a.max, b.max);
  const float of_a = MergeWeight(a.max, whole.max), of_b = MergeWeight(b.max, whole.max);
  // NaN stays NaN, whatever its weight.
  whole.sum = RoundedSum(RoundedProduct(a.sum, of_a), RoundedProduct(b.sum, of_b));
  KVIT_UNROLL
  for (int i = 0; i < Partial::kVector; ++i) {
    whole.output[i] = RoundedSum(RoundedProduct(a.output[i], of_a), RoundedProduct(b.output[i], of_b));
  }
  return whole;
}

/// The splits [begin, end) of a head of `splits`, that one CTA computes. Behind the last one the tree goes on with
/// splits that have no keys: a part joined with one of those is what it was, bit for bit. So a run that ends with its
/// head has no end. Nor have those before the first that a row sees, which nobody computes: they belong to the run that
/// begins with the head.
struct SplitRun {
  static constexpr int kNoEnd = 1 << 30;  // more than any row tile has splits
  int begin, end, splits;

  /// Of a head whose first split with a key is `first`: `units` splits from there on stand on the line of work.
  KVIT_DEVICE static SplitRun Of(const CtaRange& range, int64_t head_begin, int units, int first = 0) {
    const int64_t begin = range.begin - head_begin, end = range.end - head_begin;
    return {begin > 0 ? int(begin) + first : 0, end < units ? int(end) + first : kNoEnd, units + first};
  }
};

/// Node `index` of a level covers the splits [index << level, (index + 1) << level). A CTA joins what it can by itself,
/// and leaves the largest nodes that lie in its run: at most one even and one odd one of each level, however long the
/// run is. The CTA that computes a head's last split joins the rest.
///
///   split      0   1   2 | 3   4   5   6  (7)
///               \ /     \|/     \ /     \ /       one CTA has splits 0..2, and leaves nodes 0-1 and 2,
///   level 1      .       .       .       .        the next one 3..6, and leaves nodes 3 and 4-7;
///                 \     /         \     /         joining these makes 2-3, 0-3 and 0-7
///   level 2          .               .
///
///   workspace    parts of Partials: [level] the even node, [Levels + level] the odd one
///                behind all CTAs' parts, what each holds for itself until its sibling is there, of any bytes before:
///                outputs [cta, level, row, channel] f32, stats [cta, level, row, (max, sum)] f32
///
/// A row tile has at most 2^Levels splits. Threads join AtOnce vectors of a row together, and where a row has more, the
/// first of them before the others.
template <int HeadDim, int Rows, int Levels, int AtOnce = HeadDim / Partial::kVector>
class SplitTree {
  static constexpr int kLeft = 2 * Levels;
  static constexpr int kBatch = 4;  // parts that are read together
  static constexpr int kVectors = HeadDim / Partial::kVector;
  using Left = Partials<HeadDim, Rows, kLeft>;

 public:
  static constexpr int kParts = kLeft + Levels;  // of each CTA, held ones included

  KVIT_DEVICE SplitTree(const CtaRange& range, float* base)
      : range_(range),
        left_(base),
        held_outputs_(base + int64_t(GridSize()) * kLeft * Rows * Left::kFloats),
        held_stats_(held_outputs_ + int64_t(GridSize()) * Levels * Rows * HeadDim) {}

  /// Adds a split of this CTA's run of a head. Splits come in order, with a barrier of the CTA between them. True where
  /// `part` has become the whole head.
  KVIT_DEVICE bool Add(const SplitRun& run, int split, int row, int vector, Partial& part) const {
    int index = split;
    for (int level = 0;; ++level, index >>= 1) {
      if (index == 0 && 1 << level >= run.splits) return true;
      const int parent = index >> 1 << (level + 1);
      if (parent < run.begin || parent + (2 << level) > run.end) {
        left_.At(range_.ticket, PartOf(level, index), row, vector).Store(part, vector == 0);
        return false;
      }
      if (index & 1) {
        part = JoinPair(Held(level, row, vector), part);
      } else if ((index + 1) << level < run.splits) {
        Hold(level, row, vector, part);
        return false;
      }
    }
  }

  /// Adds the splits before `first`, which have no keys and which nobody computes: at once the largest nodes of them.
  /// Where a head begins, with a barrier of the CTA before Add.
  KVIT_DEVICE void AddUnseen(const SplitRun& run, int first, int row, int vector) const {
    for (int level = 0; first >> level != 0; ++level) {
      if ((first >> level & 1) == 0) continue;
      const int index = (first >> level) - 1, parent = index << level;
      if (parent + (2 << level) > run.end) {
        left_.At(range_.ticket, PartOf(level, index), row, vector).Store(Partial{}, vector == 0);
      } else {
        Hold(level, row, vector, Partial{});
      }
    }
  }

  /// The whole head, of which this CTA has computed the last splits, and the CTAs from `first_cta` on those before. All
  /// threads call together; those of them that are not `mine` for nothing. Waits for what is not there yet. Holds nodes
  /// as Add does, which is over.
  KVIT_DEVICE Partial Join(const SplitRun& run, int first_cta, int row, int vector, bool mine) const {
    Partial part;
    for (Walk walk(*this, run, first_cta); !walk.Done();) {
      Words<8> stats[kBatch] = {};
      Words<16> outputs[kBatch] = {};
      for (bool all = !mine; !all;) {
        Walk next = walk;
        int asked = 0;
        KVIT_UNROLL
        for (int i = 0; i < kBatch; ++i) {
          if (next.Done()) break;
          const auto place = PlaceOf(next, row, vector);
          stats[i] = place.LoadStats();
          outputs[i] = place.LoadOutput();
          next.Next();
          asked = i + 1;
        }
        all = true;
        KVIT_UNROLL
        for (int i = 0; i < kBatch; ++i) all = all & (i >= asked || (AreThere(stats[i]) && AreThere(outputs[i])));
        if (!all) Pause();
      }
      SyncThreads();  // the stats of a row are read by all of its vectors before they are taken back
      for (int i = 0; i < kBatch && !walk.Done(); ++i) {
        if (mine) PlaceOf(walk, row, vector).ClearOutput();
        if (mine && vector == kVectors - 1) PlaceOf(walk, row, vector).ClearStats();
        const auto first = BitCast<Float2>(stats[0]);
        part = {first.lo, first.hi, BitCast<Array<float, Partial::kVector>>(outputs[0])};
        KVIT_UNROLL
        for (int j = 0; j + 1 < kBatch; ++j) {
          stats[j] = stats[j + 1];
          outputs[j] = outputs[j + 1];
        }
        const int level = walk.level(), begin = walk.begin();
        walk.Next();
        for (int l = level; mine && l < Levels; ++l) {
          if (begin >> l & 1) {
            part = JoinPair(Held(l, row, vector), part);
          } else if (!walk.Done()) {
            Hold(l, row, vector, part);
            break;
          }
        }
        SyncThreads();  // the stats of a row are read by all of its vectors
      }
    }
    return part;
  }

 private:
  static KVIT_DEVICE int PartOf(int level, int index) { return (index & 1) * Levels + level; }

  /// The nodes that CTAs have left of a head, first to last.
  class Walk {
   public:
    KVIT_DEVICE Walk(const SplitTree& tree, const SplitRun& run, int first_cta)
        : range_(tree.range_), run_(run), cta_(first_cta), end_(EndOf(first_cta)) {
      Find();
    }

    KVIT_DEVICE bool Done() const { return begin_ >= run_.splits; }
    KVIT_DEVICE int cta() const { return cta_; }
    KVIT_DEVICE int level() const { return level_; }
    KVIT_DEVICE int begin() const { return begin_; }  // its first split
    KVIT_DEVICE int index() const { return begin_ >> level_; }

    KVIT_DEVICE void Next() {
      begin_ += 1 << level_;
      if (begin_ == end_) end_ = EndOf(++cta_);
      Find();
    }

   private:
    // Of the splits of a CTA that takes part; the last one is the one that asks.
    KVIT_DEVICE int EndOf(int cta) const {
      return cta >= range_.cta ? SplitRun::kNoEnd : run_.begin - int(range_.begin - range_.BeginOf(cta + 1));
    }
    // The largest node that begins at begin_ and ends in the run.
    KVIT_DEVICE void Find() {
      if (Done()) return;
      level_ = LowestBit(uint32_t(begin_ | SplitRun::kNoEnd));
      while (begin_ + (1 << level_) > end_) --level_;
    }

    const CtaRange& range_;
    SplitRun run_;
    int cta_, end_, begin_ = 0, level_ = 0;
  };

  KVIT_DEVICE typename Left::Place PlaceOf(const Walk& walk, int row, int vector) const {
    return left_.At(range_.TicketOf(walk.cta()), PartOf(walk.level(), walk.index()), row, vector);
  }
  KVIT_DEVICE int64_t HeldRow(int level, int row) const {
    return (int64_t(range_.ticket) * Levels + level) * Rows + row;
  }
  KVIT_DEVICE Partial Held(int level, int row, int vector) const {
    const int64_t at = HeldRow(level, row);
    const auto stats = LoadGlobal<Float2>(held_stats_ + at * Left::kStats);
    return {stats.lo, stats.hi,
            LoadGlobal<Array<float, Partial::kVector>>(held_outputs_ + at * HeadDim + vector * Partial::kVector)};
  }
  KVIT_DEVICE void Hold(int level, int row, int vector, const Partial& part) const {
    const int64_t at = HeldRow(level, row);
    StoreGlobal(held_outputs_ + at * HeadDim + vector * Partial::kVector, part.output);
    if (vector % AtOnce == 0) StoreGlobal(held_stats_ + at * Left::kStats, Float2{part.max, part.sum});
  }

  const CtaRange& range_;
  Left left_;
  float *held_outputs_, *held_stats_;
};

}  // namespace kvit

#endif  // KVIT_SCHEDULE_SPLIT_TREE_CUH
