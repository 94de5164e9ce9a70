// Joins what the warps of a CTA, and then the CTAs of a head, have computed over disjoint keys. Always in the same
// order.
#ifndef KVIT_ATTENTION_PIECE_MERGE_CUH
#define KVIT_ATTENTION_PIECE_MERGE_CUH

#include <math.h>

#include "abi/params.h"
#include "attention/key_product.cuh"
#include "attention/work_line.cuh"
#include "core/array.cuh"
#include "core/types.h"
#include "platform/platform.cuh"

namespace kvit {

/// The weight of a part whose maximum is `part_max` in a whole whose maximum is `max`; 0 for parts that saw no key.
KVIT_DEVICE float MergeWeight(float part_max, float max) { return part_max == -INFINITY ? 0.0f : Exp2(part_max - max); }

/// A head's parts in the workspace. A word of zero has not been written yet: parts need no flags, no fences and no
/// order, and whoever joins them waits for the words themselves. Numbers are stored with their bits inverted, so that
/// none is zero but one NaN, which is stored as another.
///
///   outputs   [cta, slot, row, channel] f32, not yet divided by the sum
///   stats     [cta, slot, row, (max, sum, -, -)] f32, max in log2 units
///
/// slot 0: of the head that a CTA continues; slot 1: of the head that it begins and leaves unfinished.
template <int HeadDim, int Rows>
class Partials {
 public:
  KVIT_DEVICE explicit Partials(float* base) : outputs_(base), stats_(base + Index(GridSize(), 0, 0) * HeadDim) {}

  KVIT_DEVICE float* Output(int cta, int slot, int row) const { return outputs_ + Index(cta, slot, row) * HeadDim; }
  KVIT_DEVICE float* Stats(int cta, int slot, int row) const { return stats_ + Index(cta, slot, row) * 4; }

 private:
  static KVIT_DEVICE int64_t Index(int cta, int slot, int row) { return (int64_t(cta) * 2 + slot) * Rows + row; }

  float* outputs_;
  float* stats_;
};

/// Whoever ends a head that others began joins its parts, after everything else: CTAs start in the order of their
/// numbers, so those that it waits for run already, and none of them waits for a later one.
template <class T, int HeadDim, int Rows, int Warps, class Attention, class Line>
class PieceMerge {
 public:
  static constexpr int kThreads = Warps * 32;
  static constexpr int kPad = 4;  // keeps the rows that lanes write together in different banks
  static constexpr int kVector = 4;
  static constexpr int kVectors = HeadDim / kVector;
  static constexpr int kBatch = 20;  // parts of a head that are read together
  using Vector = Array<float, kVector>;
  static_assert(kThreads % kVectors == 0, "a row's vectors are joined in one go");

  /// Whose outputs are written: the rows of a row tile of a head.
  struct Target {
    int first_token, row_tile, rows, head;
    int first_cta;  // that has a part of it
  };

  static constexpr int kTargetWords = sizeof(Target) / sizeof(int);

  struct Shared {
    alignas(16) float outputs[Warps][Rows][HeadDim + kPad];
    Float2 stats[Warps][Rows];  // (max, sum)
    int joined[kTargetWords];
  };

  KVIT_DEVICE PieceMerge(const KvitDecodeParams& params, const Line& line, const Share& share, Shared& shared)
      : params_(params), line_(line), share_(share), shared_(shared), partials_(params.partials) {}

  /// All threads call, once per piece. Ends in the output if the piece is a whole head, else in the workspace.
  KVIT_DEVICE void Finish(Attention& attention, const Piece& piece) {
    ShareStats(attention);
    SyncThreads();
    ShareOutputs(attention);
    SyncThreads();
    const Target target = {piece.work.first_token, piece.row_tile, line_.NumRows(piece), piece.head,
                           share_.Owner(piece.head_begin)};
    const bool is_whole = piece.Begins() && piece.Ends();
    for (int item = ThreadIndex(); item < target.rows * kVectors; item += kThreads) {
      const int row = item / kVectors, vector = item % kVectors;
      Float2 stats;
      const Vector output = AddWarps(row, vector, stats);
      if (is_whole) {
        Write(target, row, vector, output, stats);
      } else {
        Publish(piece.Begins() ? 1 : 0, row, vector, output, stats);
      }
    }
    if (piece.Ends() && !piece.Begins()) {  // at most one of a CTA's pieces, its first
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
    const int first = target.first_cta, last = BlockIndex(), items = target.rows * kVectors;
    for (int begin = 0; begin < items; begin += kThreads) {
      const int item = begin + ThreadIndex(), row = item / kVectors, vector = item % kVectors;
      const bool is_mine = item < items;
      Float2 stats = {-INFINITY, 0.0f};
      Vector total = {};
      for (int cta = first; cta <= last; cta += kBatch) {
        if (is_mine) AddParts(first, cta, last, row, vector, stats, total);
        SyncThreads();  // the stats of a row are read by all of its vectors before they are taken back
        if (is_mine) TakeBack(first, cta, last, row, vector);
      }
      if (is_mine) Write(target, row, vector, total, stats);
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
        StoreShared(&shared_.stats[WarpIndex()][FragmentRow(n, j)], Float2{attention.Max(n, j), attention.Sum(n, j)});
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
      for (int j = 0; j < 2; ++j) weight[n][j] = MergeWeight(attention.Max(n, j), CtaMax(FragmentRow(n, j)));
    }
    attention.ForEachOutput([&](int n, int j, int channel, float value) {
      StoreShared(&shared_.outputs[WarpIndex()][FragmentRow(n, j)][channel], value * weight[n][j]);
    });
  }

  KVIT_DEVICE Vector AddWarps(int row, int vector, Float2& stats) const {
    Vector total = {};
    stats = {CtaMax(row), 0.0f};
    KVIT_UNROLL
    for (int warp = 0; warp < Warps; ++warp) {
      const auto part = LoadShared<Float2>(&shared_.stats[warp][row]);
      stats.hi += part.hi * MergeWeight(part.lo, stats.lo);
      const auto output = LoadShared<Vector>(&shared_.outputs[warp][row][vector * kVector]);
      KVIT_UNROLL
      for (int i = 0; i < kVector; ++i) total[i] += output[i];
    }
    return total;
  }

  // A number as it stands in the workspace, and back.
  static KVIT_DEVICE uint32_t Word(float x) { return ~BitCast<uint32_t>(x == x ? x : NAN); }
  static KVIT_DEVICE float Number(uint32_t word) { return BitCast<float>(~word); }
  static KVIT_DEVICE bool IsThere(const Words<16>& w) {
    return (w.word[0] != 0u) & (w.word[1] != 0u) & (w.word[2] != 0u) & (w.word[3] != 0u);
  }

  KVIT_DEVICE void Publish(int slot, int row, int vector, const Vector& output, Float2 stats) const {
    StoreStrong(partials_.Output(BlockIndex(), slot, row) + vector * kVector,
                Words<16>{{Word(output[0]), Word(output[1]), Word(output[2]), Word(output[3])}});
    if (vector == 0)
      StoreStrong(partials_.Stats(BlockIndex(), slot, row), Words<16>{{Word(stats.lo), Word(stats.hi), ~0u, ~0u}});
  }

  KVIT_DEVICE void TakeBack(int first, int cta, int last, int row, int vector) const {
    constexpr Words<16> kNotYet = {};
    for (int part = cta; part <= Min(last, cta + kBatch - 1); ++part) {
      const int slot = part == first;
      StoreStrong(partials_.Output(part, slot, row) + vector * kVector, kNotYet);
      if (vector == 0) StoreStrong(partials_.Stats(part, slot, row), kNotYet);
    }
  }

  // Adds parts [cta, cta + kBatch) to `stats` and `total`, once they are all there. All their loads are under way
  // together: one round trip, not kBatch.
  KVIT_DEVICE void AddParts(int first, int cta, int last, int row, int vector, Float2& stats, Vector& total) const {
    Words<16> s[kBatch], o[kBatch];
    for (bool all = false; !all;) {
      KVIT_UNROLL
      for (int i = 0; i < kBatch; ++i) {
        s[i] = Words<16>{{Word(-INFINITY), ~0u, ~0u, ~0u}};
        o[i] = Words<16>{{~0u, ~0u, ~0u, ~0u}};
        if (cta + i > last) continue;
        const int slot = cta + i == first;
        s[i] = LoadStrong(partials_.Stats(cta + i, slot, row));
        o[i] = LoadStrong(partials_.Output(cta + i, slot, row) + vector * kVector);
      }
      all = true;
      KVIT_UNROLL
      for (int i = 0; i < kBatch; ++i) all = all & IsThere(s[i]) & IsThere(o[i]);
      if (!all) Pause();
    }
    Float2 part[kBatch];
    Vector output[kBatch];
    KVIT_UNROLL
    for (int i = 0; i < kBatch; ++i) {
      part[i] = {Number(s[i].word[0]), Number(s[i].word[1])};
      KVIT_UNROLL
      for (int j = 0; j < kVector; ++j) output[i][j] = Number(o[i].word[j]);
    }
    float max = stats.lo;
    KVIT_UNROLL
    for (int i = 0; i < kBatch; ++i) max = fmaxf(max, part[i].lo);
    const float rescale = MergeWeight(stats.lo, max);
    stats = {max, stats.hi * rescale};
    KVIT_UNROLL
    for (int j = 0; j < kVector; ++j) total[j] *= rescale;
    KVIT_UNROLL
    for (int i = 0; i < kBatch; ++i) {
      const float weight = MergeWeight(part[i].lo, max);
      stats.hi += part[i].hi * weight;  // NaN stays NaN, whatever its weight
      KVIT_UNROLL
      for (int j = 0; j < kVector; ++j) total[j] += output[i][j] * weight;
    }
  }

  KVIT_DEVICE void Write(const Target& target, int row, int vector, const Vector& output, Float2 stats) const {
    const int index = target.row_tile * Rows + row, group = line_.group();
    const int token_of_sequence = line_.TokenOf(index);
    const int64_t token = target.first_token + token_of_sequence;
    const int64_t head = int64_t(target.head) * group + (index - token_of_sequence * group);
    const float scale = stats.hi == 0.0f ? 0.0f : 1.0f / stats.hi;  // no key seen: zeros
    const KvitRows& out = params_.out;
    StoreGlobal(static_cast<char*>(out.base) + token * out.token_stride + head * out.head_stride +
                    vector * kVector * int64_t(sizeof(T)),
                Array<uint32_t, 2>{Pack2<T>(output[0] * scale, output[1] * scale),
                                   Pack2<T>(output[2] * scale, output[3] * scale)});
    if (vector != 0 || params_.lse.base == nullptr) return;
    constexpr float kLn2 = 0.69314718055994531f;
    const float lse = stats.hi == 0.0f ? -INFINITY : (stats.lo + Log2(stats.hi)) * kLn2;
    const KvitLse& to = params_.lse;
    StoreGlobal(reinterpret_cast<char*>(to.base) + token * to.token_stride + head * to.head_stride, lse);
  }

  const KvitDecodeParams& params_;
  const Line& line_;
  const Share& share_;
  Shared& shared_;
  Partials<HeadDim, Rows> partials_;
  bool is_joiner_ = false;
};

}  // namespace kvit

#endif  // KVIT_ATTENTION_PIECE_MERGE_CUH
