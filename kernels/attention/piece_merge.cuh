// Joins what the warps of a CTA, and then the CTAs of a head, have computed over disjoint keys. Always in the same
// order.
#ifndef KVIT_ATTENTION_PIECE_MERGE_CUH
#define KVIT_ATTENTION_PIECE_MERGE_CUH

#include <math.h>

#include "abi/params.h"
#include "attention/key_product.cuh"
#include "attention/partial.cuh"
#include "attention/split_tree.cuh"
#include "attention/work_line.cuh"
#include "core/array.cuh"
#include "core/types.h"
#include "platform/platform.cuh"

namespace kvit {

/// Whoever ends a head that others began joins its parts, after everything else. It waits for CTAs with lower numbers
/// alone: CTAs start in that order, so they run already, and what they leave is there before they wait themselves. So
/// the lowest one that has not ended always goes on.
///
///   parts of a CTA    stream-K: [0] of the head that it continues, [1] of the head that it begins and leaves
///   unfinished
///                     where heads are split: of nodes of SplitTree
template <class T, int HeadDim, int Rows, int Warps, class Attention, class Line>
class PieceMerge {
 public:
  static constexpr int kThreads = Warps * 32;
  static constexpr int kPad = 4;  // keeps the rows that lanes write together in different banks
  static constexpr int kVector = Partial::kVector;
  static constexpr int kVectors = HeadDim / kVector;
  static constexpr int kBatch = 20;  // parts of a head that are read together
  using Vector = Array<float, kVector>;
  using Tree = SplitTree<HeadDim, Rows>;
  static constexpr int kParts = 2, kSplitParts = Tree::kParts;  // of a CTA, in the workspace
  static_assert(kThreads % kVectors == 0, "a row's vectors are joined in one go");

  /// Whose outputs are written: the rows of a row tile of a head.
  struct Target {
    int first_token, row_tile, rows, head;
    int first_cta;   // that has a part of it
    SplitRun joins;  // where heads are split: the run of the CTA that joins them
  };

  static constexpr int kTargetWords = sizeof(Target) / sizeof(int);

  struct Shared {
    alignas(16) float outputs[Warps][Rows][HeadDim + kPad];
    Float2 stats[Warps][Rows];  // (max, sum)
    int joined[kTargetWords];
  };

  KVIT_DEVICE PieceMerge(const KvitDecodeParams& params, const Line& line, const Share& share, Shared& shared)
      : params_(params),
        line_(line),
        share_(share),
        shared_(shared),
        parts_(params.partials),
        tree_(share, params.partials) {}

  /// All threads call, once per piece. Ends in the output if the piece is a whole head, else in the workspace.
  KVIT_DEVICE void Finish(Attention& attention, const Piece& piece) {
    ShareStats(attention);
    SyncThreads();
    ShareOutputs(attention);
    SyncThreads();
    Target target = {
        piece.work.first_token, piece.row_tile, line_.NumRows(piece), piece.head, share_.Owner(piece.head_begin), {}};
    const bool is_split = line_.IsSplit(), is_whole = piece.Begins() && piece.Ends();
    int split = 0;
    if (is_split) {
      split = piece.first / line_.SplitOf(piece.work.tiles);
      target.joins = SplitRun::Of(share_, piece.head_begin, line_.HeadUnits(piece.work.tiles));
    }
    for (int item = ThreadIndex(); item < target.rows * kVectors; item += kThreads) {
      const int row = item / kVectors, vector = item % kVectors;
      Partial part = AddWarps(row, vector);
      if (is_split ? tree_.Add(target.joins, split, row, vector, part) : is_whole) {
        Write(target, row, vector, part);
      } else if (!is_split) {
        parts_.Store(BlockIndex(), piece.Begins() ? 1 : 0, row, vector, part);
      }
    }
    // At most one of a CTA's heads, its first.
    if (piece.Ends() && (is_split ? target.joins.begin > 0 : !piece.Begins())) {
      is_joiner_ = true;
      const auto words = BitCast<Array<int, kTargetWords>>(target);
      KVIT_UNROLL
      for (int i = 0; i < kTargetWords; ++i) {
        if (ThreadIndex() == i) StoreShared(&shared_.joined[i], words[i]);
      }
    }
    SyncThreads();  // the next piece writes the same shared memory
  }

  /// All threads call, after the last piece: joins the head that this CTA has ended and not begun, if there is one.
  /// First part to last, whatever was ready first.
  KVIT_DEVICE void Join() {
    if (!is_joiner_) return;
    Array<int, kTargetWords> words;
    KVIT_UNROLL
    for (int i = 0; i < kTargetWords; ++i) words[i] = LoadShared<int>(&shared_.joined[i]);
    const auto target = BitCast<Target>(words);
    const int first = target.first_cta, last = share_.cta, items = target.rows * kVectors;
    for (int begin = 0; begin < items; begin += kThreads) {
      const int item = begin + ThreadIndex(), row = item / kVectors, vector = item % kVectors;
      const bool is_mine = item < items;
      Partial whole;
      if (line_.IsSplit()) {
        whole = tree_.Join(target.joins, first, row, vector, is_mine);
      } else {
        for (int cta = first; cta <= last; cta += kBatch) {
          if (is_mine) AddParts(first, cta, last, row, vector, whole);
          SyncThreads();  // the stats of a row are read by all of its vectors before they are taken back
          if (is_mine) TakeBack(first, cta, last, row, vector);
        }
      }
      if (is_mine) Write(target, row, vector, whole);
    }
  }

 private:
  KVIT_DEVICE void ShareStats(Attention& attention) {
    attention.Finish();
    if (LaneIndex() >= 4) return;  // lanes 0..3 hold all rows between them
    KVIT_UNROLL
    for (int n = 0; n < Rows / 8; ++n) {
      KVIT_UNROLL
      for (int j = 0; j < 2; ++j) {
        StoreShared(&shared_.stats[WarpIndex()][FragmentRow(n, j)], Float2{attention.Base(n, j), attention.Sum(n, j)});
      }
    }
  }

  KVIT_DEVICE float CtaMax(int row) const {
    float max = -INFINITY;
    KVIT_UNROLL
    for (int warp = 0; warp < Warps; ++warp) max = fmaxf(max, LoadShared<Float2>(&shared_.stats[warp][row]).lo);
    return max;
  }

  KVIT_DEVICE void ShareOutputs(const Attention& attention) {
    float weight[Rows / 8][2];
    KVIT_UNROLL
    for (int n = 0; n < Rows / 8; ++n) {
      KVIT_UNROLL
      for (int j = 0; j < 2; ++j) weight[n][j] = MergeWeight(attention.Base(n, j), CtaMax(FragmentRow(n, j)));
    }
    attention.ForEachOutput([&](int n, int j, int channel, float value) {
      StoreShared(&shared_.outputs[WarpIndex()][FragmentRow(n, j)][channel], value * weight[n][j]);
    });
  }

  KVIT_DEVICE Partial AddWarps(int row, int vector) const {
    Partial total;
    total.max = CtaMax(row);
    KVIT_UNROLL
    for (int warp = 0; warp < Warps; ++warp) {
      const auto part = LoadShared<Float2>(&shared_.stats[warp][row]);
      total.sum += part.hi * MergeWeight(part.lo, total.max);
      const auto output = LoadShared<Vector>(&shared_.outputs[warp][row][vector * kVector]);
      KVIT_UNROLL
      for (int i = 0; i < kVector; ++i) total.output[i] += output[i];
    }
    return total;
  }

  KVIT_DEVICE void TakeBack(int first, int cta, int last, int row, int vector) const {
    for (int part = cta; part <= Min(last, cta + kBatch - 1); ++part) {
      parts_.Clear(share_.BlockOf(part), part == first, row, vector);
    }
  }

  // Adds parts [cta, cta + kBatch) to `whole`, once they are all there. All their loads are under way together: one
  // round trip, not kBatch.
  KVIT_DEVICE void AddParts(int first, int cta, int last, int row, int vector, Partial& whole) const {
    PartialWords words[kBatch];
    for (uint32_t missing = (1u << Min(last - cta + 1, kBatch)) - 1u;;) {
      KVIT_UNROLL
      for (int i = 0; i < kBatch; ++i) {
        if (missing >> i & 1u) words[i] = parts_.Load(share_.BlockOf(cta + i), cta + i == first, row, vector);
      }
      KVIT_UNROLL
      for (int i = 0; i < kBatch; ++i) missing &= ~(uint32_t(words[i].AreThere()) << i);
      if (missing == 0u) break;
      Pause();
    }
    Partial part[kBatch];
    float max = whole.max;
    KVIT_UNROLL
    for (int i = 0; i < kBatch; ++i) {
      part[i] = words[i].Get();
      max = fmaxf(max, part[i].max);
    }
    const float rescale = MergeWeight(whole.max, max);
    whole.max = max;
    whole.sum *= rescale;
    KVIT_UNROLL
    for (int j = 0; j < kVector; ++j) whole.output[j] *= rescale;
    KVIT_UNROLL
    for (int i = 0; i < kBatch; ++i) {
      const float weight = MergeWeight(part[i].max, max);
      whole.sum += part[i].sum * weight;  // NaN stays NaN, whatever its weight
      KVIT_UNROLL
      for (int j = 0; j < kVector; ++j) whole.output[j] += part[i].output[j] * weight;
    }
  }

  KVIT_DEVICE void Write(const Target& target, int row, int vector, const Partial& part) const {
    const int index = target.row_tile * Rows + row, group = line_.group();
    const int token_of_sequence = line_.TokenOf(index);
    const int64_t token = target.first_token + token_of_sequence;
    const int64_t head = int64_t(target.head) * group + (index - token_of_sequence * group);
    const float scale = part.sum == 0.0f ? 0.0f : 1.0f / part.sum;  // no key seen: zeros
    const KvitRows& out = params_.out;
    StoreGlobal(static_cast<char*>(out.base) + token * out.token_stride + head * out.head_stride +
                    vector * kVector * int64_t(sizeof(T)),
                Array<uint32_t, 2>{Pack2<T>(part.output[0] * scale, part.output[1] * scale),
                                   Pack2<T>(part.output[2] * scale, part.output[3] * scale)});
    if (vector != 0 || params_.lse.base == nullptr) return;
    constexpr float kLn2 = 0.69314718055994531f;
    const float lse = part.sum == 0.0f ? -INFINITY : (part.max + Log2(part.sum)) * kLn2;
    const KvitLse& to = params_.lse;
    StoreGlobal(reinterpret_cast<char*>(to.base) + token * to.token_stride + head * to.head_stride, lse);
  }

  const KvitDecodeParams& params_;
  const Line& line_;
  const Share& share_;
  Shared& shared_;
  Partials<HeadDim, Rows, kParts> parts_;
  Tree tree_;
  bool is_joiner_ = false;
};

}  // namespace kvit

#endif  // KVIT_ATTENTION_PIECE_MERGE_CUH
