// Brings the query rows of a warp group as f16, for products with codes.
#ifndef KVIT_PIPELINE_CODED_QUERIES_CUH
#define KVIT_PIPELINE_CODED_QUERIES_CUH

#include <stdint.h>

#include "core/array.cuh"
#include "core/types.h"
#include "layout/group_queries.cuh"
#include "platform/platform.cuh"
#include "quant/hadamard.cuh"
#include "quant/query_code.cuh"
#include "quant/row_codec.cuh"

namespace kvit {

/// What became of the rows of a warp group: row = f16 row / up, and the sum of the f16 row.
struct QueryScales {
  using Pair = Array<float, 2>;
  Pair row[64];

  KVIT_DEVICE void Store(int r, float up, float sum) { StoreShared(&row[r], Pair{up, sum}); }
  KVIT_DEVICE Pair Of(int r) const { return LoadShared<Pair>(&row[r]); }
};

/// Loads rows of T. All lanes of a warp call, and rows are there afterwards for this warp. `walk` is at the first row,
/// of which there are `rows`; the others become zeros. Each row is scaled by a power of two, as KeyOperands does it.
/// Where keys are stored as their Hadamard transform, by blocks of `hadamard` channels, the rows are transformed too;
/// 0: they are not.
template <class T, int HeadDim, class QueryWalk>
KVIT_DEVICE void LoadCodedQueries(GroupQueries<Half, HeadDim>& queries, QueryScales& scales, QueryWalk walk, int rows,
                                  int hadamard) {
  using Queries = GroupQueries<Half, HeadDim>;
  constexpr int kLanes = Queries::kVectors, kRowsAtOnce = 32 / kLanes;  // lanes of a row
  constexpr int kAtOnce = 4;                                            // loads that are under way together
  const int vector = LaneIndex() % kLanes, first = LaneIndex() / kLanes;
  walk.Advance(first);
  KVIT_ROLLED
  for (int begin = first; begin < Queries::kRows; begin += kAtOnce * kRowsAtOnce) {
    PackedVec8 raw[kAtOnce];
    KVIT_UNROLL
    for (int i = 0; i < kAtOnce; ++i) {
      const bool has = begin + i * kRowsAtOnce < rows;
      raw[i] = has ? LoadGlobal<PackedVec8>(walk.address + vector * 16) : PackedVec8{};
      walk.Advance(kRowsAtOnce);
    }
    KVIT_UNROLL
    for (int i = 0; i < kAtOnce; ++i) {
      const int row = begin + i * kRowsAtOnce;
      Vec8 x = Unpack<T>(raw[i]);
      if (hadamard != 0) {
        ButterfliesWithin(x);
        for (int mask = 1; mask < hadamard / 8; mask *= 2) {
          KVIT_UNROLL
          for (float& channel : x.values) channel = ButterflyOfLanes(channel, mask);
        }
        const float unit = HadamardUnit(hadamard);
        KVIT_UNROLL
        for (float& channel : x.values) channel *= unit;
      }
      float top = 0.0f, sum = 0.0f;
      KVIT_UNROLL
      for (const float channel : x.values) top = fmaxf(top, fabsf(channel));
      KVIT_UNROLL
      for (int mask = 1; mask < kLanes; mask *= 2) top = fmaxf(top, ShuffleXor(top, mask));
      const float up = PowerToReach2To10(top);
      PackedVec8 coded;
      KVIT_UNROLL
      for (int j = 0; j < 4; ++j) {
        coded.word[j] = Pack2<Half>(x[2 * j] * up, x[2 * j + 1] * up);
        const Float2 rounded = Unpack2<Half>(coded.word[j]);
        sum += rounded.lo + rounded.hi;
      }
      KVIT_UNROLL
      for (int mask = 1; mask < kLanes; mask *= 2) sum += ShuffleXor(sum, mask);
      StoreShared(queries.Vector(row, vector), coded);
      if (vector == 0) scales.Store(row, up, sum);
    }
  }
}

}  // namespace kvit

#endif  // KVIT_PIPELINE_CODED_QUERIES_CUH
