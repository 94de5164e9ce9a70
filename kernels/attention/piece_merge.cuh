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

/// A head's parts in the workspace.
///
///   outputs   [cta, slot, row, channel] f32, not yet divided by the sum
///   stats     [cta, slot, row, (max, sum)] f32, max in log2 units
///
/// slot 0: of the head that a CTA continues; slot 1: of the head that it begins and leaves unfinished.
template <int HeadDim, int Rows>
class Partials {
 public:
  KVIT_DEVICE explicit Partials(float* base) : outputs_(base), stats_(base + Index(GridSize(), 0, 0) * HeadDim) {}

  KVIT_DEVICE float* Output(int cta, int slot, int row) const { return outputs_ + Index(cta, slot, row) * HeadDim; }
  KVIT_DEVICE float* Stats(int cta, int slot, int row) const { return stats_ + Index(cta, slot, row) * 2; }

 private:
  static KVIT_DEVICE int64_t Index(int cta, int slot, int row) { return (int64_t(cta) * 2 + slot) * Rows + row; }

  float* outputs_;
  float* stats_;
};

template <class T, int HeadDim, int Rows, int Warps, class Attention, class Line>
class PieceMerge {
 public:
  static constexpr int kThreads = Warps * 32;
  static constexpr int kPad = 4;  // keeps the rows that lanes write together in different banks
  static constexpr int kVector = 4;
  static constexpr int kVectors = HeadDim / kVector;
  static constexpr int kBatch = 16;  // parts of a head that are read together
  using Vector = Array<float, kVector>;

  struct Shared {
    alignas(16) float outputs[Warps][Rows][HeadDim + kPad];
    Float2 stats[Warps][Rows];  // (max, sum)
    int last;
  };

  KVIT_DEVICE PieceMerge(const KvitDecodeParams& params, const Line& line, const Share& share, Shared& shared)
      : params_(params), line_(line), share_(share), shared_(shared), partials_(params.partials) {}

  /// All threads call, once per piece. Ends in the output if the piece is a whole head or completes one, else in the
  /// workspace.
  KVIT_DEVICE void Finish(Attention& attention, const Piece& piece) {
    ShareStats(attention);
    SyncThreads();
    ShareOutputs(attention);
    SyncThreads();
    const int rows = line_.NumRows(piece);
    if (piece.Begins() && piece.Ends()) {
      ForEachVector(rows, [&](int row, int vector) {
        Float2 stats;
        const Vector output = AddWarps(row, vector, stats);
        Write(piece, row, vector, output, stats);
      });
    } else {
      const int slot = piece.Begins() ? 1 : 0;
      ForEachVector(rows, [&](int row, int vector) {
        Float2 stats;
        const Vector output = AddWarps(row, vector, stats);
        StoreGlobal(partials_.Output(BlockIndex(), slot, row) + vector * kVector, output);
        if (vector == 0) StoreGlobal(partials_.Stats(BlockIndex(), slot, row), stats);
      });
      JoinHead(piece, rows);
    }
    SyncThreads();  // the next piece writes the same shared memory
  }

 private:
  template <class Body>
  KVIT_DEVICE void ForEachVector(int rows, Body&& body) const {
    for (int item = ThreadIndex(); item < rows * kVectors; item += kThreads) body(item / kVectors, item % kVectors);
  }

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

  // The CTA that brings the last part of a head adds them all up, first to last, whoever it is.
  KVIT_DEVICE void JoinHead(const Piece& piece, int rows) {
    const int first = share_.Owner(piece.head_begin), last = share_.Owner(piece.head_begin + piece.work.tiles - 1);
    uint32_t* counter = params_.counters + first;  // a CTA begins at most one head that it does not finish
    Fence();
    SyncThreads();
    if (ThreadIndex() == 0) {
      const bool is_last = AtomicAdd(counter, 1u) == uint32_t(last - first);
      if (is_last) StoreGlobal(counter, 0u);
      StoreShared(&shared_.last, int(is_last));
    }
    SyncThreads();
    if (LoadShared<int>(&shared_.last) == 0) return;
    Fence();
    ForEachVector(rows, [&](int row, int vector) {
      Float2 stats = {-INFINITY, 0.0f};
      Vector total = {};
      for (int cta = first; cta <= last; cta += kBatch) AddParts(first, cta, last, row, vector, stats, total);
      Write(piece, row, vector, total, stats);
    });
  }

  // Adds parts [cta, cta + kBatch) to `stats` and `total`. All their loads are under way together: one round trip, not
  // kBatch.
  KVIT_DEVICE void AddParts(int first, int cta, int last, int row, int vector, Float2& stats, Vector& total) const {
    Float2 part[kBatch];
    Vector output[kBatch];
    KVIT_UNROLL
    for (int i = 0; i < kBatch; ++i) {
      part[i] = {-INFINITY, 0.0f};
      output[i] = {};
      if (cta + i > last) continue;
      const int slot = cta + i == first;
      part[i] = LoadGlobalL2<Float2>(partials_.Stats(cta + i, slot, row));
      output[i] = LoadGlobalL2<Vector>(partials_.Output(cta + i, slot, row) + vector * kVector);
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

  KVIT_DEVICE void Write(const Piece& piece, int row, int vector, const Vector& output, Float2 stats) const {
    const int index = piece.row_tile * Rows + row, group = line_.group();
    const int64_t token = piece.work.first_token + index / group;
    const int64_t head = int64_t(piece.head) * group + index % group;
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
};

}  // namespace kvit

#endif  // KVIT_ATTENTION_PIECE_MERGE_CUH
