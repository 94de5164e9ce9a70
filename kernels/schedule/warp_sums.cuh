// A work tile's outputs where every warp has all its rows, over keys of its own: added up in shared memory.
#ifndef KVIT_SCHEDULE_WARP_SUMS_CUH
#define KVIT_SCHEDULE_WARP_SUMS_CUH

#include <math.h>

#include "abi/params.h"
#include "core/array.cuh"
#include "core/types.h"
#include "mma/m16n8k16.cuh"
#include "platform/platform.cuh"
#include "quant/hadamard.cuh"
#include "schedule/partial.cuh"

namespace kvit {

/// Threads share the (row, vector) pairs of the sum evenly. MayTransform: values may be stored as their Hadamard
/// transform.
template <int HeadDim, int Rows, int Warps, bool MayTransform>
class WarpSums {
 public:
  static constexpr int kThreads = Warps * 32, kVectors = HeadDim / Partial::kVector;
  static_assert(Rows * kVectors % 32 == 0, "rows fill whole warps");
  static constexpr int kPad = 4;  // keeps the rows that lanes write together in different banks
  struct Shared {
    alignas(16) float outputs[Warps][Rows][HeadDim + kPad];
    Float2 stats[Warps][Rows];  // (base, sum)
  };

  KVIT_DEVICE WarpSums(Shared& shared, const KvitCache& cache) : shared_(shared), cache_(cache) {}

  /// All threads call, once per work tile. `beside` is called meanwhile, in front of a barrier.
  template <class Attention, class Beside>
  KVIT_DEVICE void Share(Attention& attention, Beside&& beside) {
    if (is_used_) SyncThreads();  // all have read what the work tile before left in shared memory
    is_used_ = true;
    attention.Finish();
    Store(attention);
    beside();
    SyncThreads();
    if constexpr (MayTransform) {
      if (cache_.v_hadamard != 0) TransformSums();
    }
  }

  /// Warps that join the same rows meet.
  static KVIT_DEVICE void SyncRow() { SyncThreads(); }

  /// Calls use(place_of(row), row, vector, part) for the vectors of this thread, of the first `rows` rows.
  template <class Attention, class PlaceOf, class Use>
  KVIT_DEVICE void ForEachPart(const Attention&, int rows, PlaceOf&& place_of, Use&& use) const {
    for (int item = ThreadIndex(); item < rows * kVectors; item += kThreads) {
      const int row = item / kVectors, vector = item % kVectors;
      Partial part = Add(row, vector);
      use(place_of(row), row, vector, part);
    }
  }

 private:
  using Vector = Array<float, Partial::kVector>;

  // Outputs are weighted sums of transformed values, of blocks of at most as many channels as a warp has vectors of.
  // Each thread transforms back the sums that it will ask for, and leaves them in place of those of the warp with the
  // largest base, whose weight is 1, and zeros in place of the others': whoever adds them up knows of nothing.
  KVIT_DEVICE void TransformSums() const {
    KVIT_ROLLED
    for (int first = 0; first < Rows * kVectors; first += kThreads) {
      const int item = first + ThreadIndex(), row = item / kVectors, vector = item % kVectors;
      if (Rows * kVectors % kThreads != 0 && first + WarpIndex() * 32 >= Rows * kVectors) break;
      Partial part = Add(row, vector);
      ButterfliesWithin(part.output);
      for (int mask = 1; mask < cache_.v_hadamard / Partial::kVector; mask *= 2) {
        KVIT_UNROLL
        for (float& output : part.output.values) output = ButterflyOfLanes(output, mask);
      }
      const float unit = HadamardUnit(cache_.v_hadamard);
      KVIT_UNROLL
      for (float& output : part.output.values) output *= unit;
      bool is_left = part.max == -INFINITY;  // all are zeros
      KVIT_ROLLED
      for (int warp = 0; warp < Warps; ++warp) {
        const bool keeps = !is_left && LoadShared<Float2>(&shared_.stats[warp][row]).lo == part.max;
        StoreShared(&shared_.outputs[warp][row][vector * Partial::kVector], keeps ? part.output : Vector{});
        is_left |= keeps;
      }
    }
  }

  template <class Attention>
  KVIT_DEVICE void Store(const Attention& attention) {
    attention.ForEachOutput([&](int n, int j, int channel, float value) {
      StoreShared(&shared_.outputs[WarpIndex()][FragmentRow(n, j)][channel], value);
    });
    if (LaneIndex() >= 4) return;  // lanes 0..3 hold all rows between them
    KVIT_UNROLL
    for (int n = 0; n < Rows / 8; ++n) {
      KVIT_UNROLL
      for (int j = 0; j < 2; ++j) {
        StoreShared(&shared_.stats[WarpIndex()][FragmentRow(n, j)], Float2{attention.Base(n, j), attention.Sum(n, j)});
      }
    }
  }

  KVIT_DEVICE Partial Add(int row, int vector) const {
    Float2 stats[Warps];
    Partial total;
    KVIT_UNROLL
    for (int warp = 0; warp < Warps; ++warp) {
      stats[warp] = LoadShared<Float2>(&shared_.stats[warp][row]);
      total.max = fmaxf(total.max, stats[warp].lo);
    }
    KVIT_UNROLL
    for (int warp = 0; warp < Warps; ++warp) {
      const auto output = LoadShared<Vector>(&shared_.outputs[warp][row][vector * Partial::kVector]);
      total.Add({stats[warp].lo, stats[warp].hi, output}, MergeWeight(stats[warp].lo, total.max));
    }
    return total;
  }

  Shared& shared_;
  const KvitCache& cache_;
  bool is_used_ = false;
};

}  // namespace kvit

#endif  // KVIT_SCHEDULE_WARP_SUMS_CUH
