// The Hadamard transform of rows that are encoded next, or have been decoded.
#ifndef KVIT_QUANT_ROW_HADAMARD_CUH
#define KVIT_QUANT_ROW_HADAMARD_CUH

#include "core/types.h"
#include "platform/platform.cuh"
#include "quant/hadamard.cuh"
#include "quant/row_codec.cuh"

namespace kvit {

/// Rows of T, rounded to T, that lanes hold in order: of N vec8s, lane l of a row's `lanes` has vec8s l, lanes + l, ...
/// `block` is 8 or more, and N * lanes * 8 at most. All lanes of the warp call together.
template <class T, int N>
KVIT_DEVICE RowPart<N> HadamardOfRows(const RowPart<N>& part, int lanes, int block) {
  static_assert(N <= 2, "one stage between the vec8s of a lane");
  Vec8 x[N];
  KVIT_UNROLL
  for (int i = 0; i < N; ++i) {
    x[i] = Unpack<T>(part[i]);
    ButterfliesWithin(x[i]);
  }
  const int vec8s = block / 8;
  for (int mask = 1; mask < Min(lanes, vec8s); mask *= 2) {
    KVIT_UNROLL
    for (int i = 0; i < 8 * N; ++i) x[i / 8][i % 8] = ButterflyOfLanes(x[i / 8][i % 8], mask);
  }
  const float unit = HadamardUnit(block);
  RowPart<N> transformed;
  if constexpr (N == 2) {
    if (vec8s > lanes) {
      KVIT_UNROLL
      for (int i = 0; i < 8; ++i) Butterfly(x[0][i], x[1][i]);
    }
  }
  KVIT_UNROLL
  for (int i = 0; i < N; ++i) {
    KVIT_UNROLL
    for (float& channel : x[i].values) channel = RoundedProduct(channel, unit);
    transformed[i] = RoundTo<T>(x[i]);
  }
  return transformed;
}

}  // namespace kvit

#endif  // KVIT_QUANT_ROW_HADAMARD_CUH
