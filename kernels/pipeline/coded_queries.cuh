// Makes the query rows of a warp group f16, for products with codes.
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

/// A row's Hadamard transform by blocks of `block` channels, eight channels a lane. All lanes of a warp call.
KVIT_DEVICE void TransformRow(Vec8& x, int block) {
  ButterfliesWithin(x);
  for (int mask = 1; mask < block / 8; mask *= 2) {
    KVIT_UNROLL
    for (float& channel : x.values) channel = ButterflyOfLanes(channel, mask);
  }
  const float unit = HadamardUnit(block);
  KVIT_UNROLL
  for (float& channel : x.values) channel *= unit;
}

/// Makes 16 rows of T, of which `first` is the first, f16 where they lie. All lanes of a warp call. Each row is scaled
/// by a power of two, as KeyOperands does it. Where keys are stored as their Hadamard transform, by blocks of
/// `hadamard` channels, the rows are transformed too; 0: they are not.
template <class T, int HeadDim>
KVIT_DEVICE void CodeQueries(GroupQueries<Half, HeadDim>& queries, QueryScales& scales, int first, int hadamard) {
  constexpr int kLanes = HeadDim / 8, kRowsAtOnce = 32 / kLanes, kRows = 16;  // lanes of a row
  constexpr int kAtOnce = Min(4, kRows / kRowsAtOnce);                        // loads that are under way together
  const int vector = LaneIndex() % kLanes;
  KVIT_ROLLED
  for (int begin = first + LaneIndex() / kLanes; begin < first + kRows; begin += kAtOnce * kRowsAtOnce) {
    PackedVec8 raw[kAtOnce];
    KVIT_UNROLL
    for (int i = 0; i < kAtOnce; ++i) raw[i] = LoadShared<PackedVec8>(queries.Vector(begin + i * kRowsAtOnce, vector));
    KVIT_UNROLL
    for (int i = 0; i < kAtOnce; ++i) {
      const int row = begin + i * kRowsAtOnce;
      Vec8 x = Unpack<T>(raw[i]);
      if (hadamard != 0) TransformRow(x, hadamard);
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
  SyncWarp();  // any lane may read what became of a row
}

}  // namespace kvit

#endif  // KVIT_PIPELINE_CODED_QUERIES_CUH
