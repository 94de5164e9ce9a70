// RMSNorm of rows, as models apply it to queries and keys before they rotate. kvit.reference.rope defines it.
#ifndef KVIT_TRANSFER_ROW_NORM_CUH
#define KVIT_TRANSFER_ROW_NORM_CUH

#include <math.h>

#include "core/array.cuh"
#include "platform/platform.cuh"
#include "quant/row_codec.cuh"

namespace kvit {

/// The sum of the squares of eight channels, in the order of a tree.
KVIT_DEVICE float SumOfSquares(const Vec8& x) {
  float sums[4];
  KVIT_UNROLL
  for (int i = 0; i < 4; ++i) {
    sums[i] = RoundedSum(RoundedProduct(x[2 * i], x[2 * i]), RoundedProduct(x[2 * i + 1], x[2 * i + 1]));
  }
  return RoundedSum(RoundedSum(sums[0], sums[1]), RoundedSum(sums[2], sums[3]));
}

/// What the channels of a row are multiplied by: 1 / sqrt(their mean square + epsilon). All lanes of the warp together;
/// each has two vec8s of its row, of `lanes` lanes and `channels` channels, if it holds them: others count 0.
KVIT_DEVICE float InverseRms(const Vec8 (&vec8s)[2], const bool (&holds)[2], int lanes, int channels, float epsilon) {
  float sum = RoundedSum(holds[0] ? SumOfSquares(vec8s[0]) : 0.0f, holds[1] ? SumOfSquares(vec8s[1]) : 0.0f);
  for (int mask = 1; mask < lanes; mask *= 2) sum = RoundedSum(sum, ShuffleXor(sum, mask));
  return 1.0f / sqrtf(RoundedSum(RoundedProduct(sum, 1.0f / float(channels)), epsilon));
}

/// A vec8 of the row, times that and its weights; `offset` is added to each weight.
KVIT_DEVICE void ScaleByWeights(Vec8& x, float inverse_rms, const Vec8& weights, float offset) {
  KVIT_UNROLL
  for (int i = 0; i < 8; ++i) x[i] = RoundedProduct(RoundedProduct(x[i], inverse_rms), RoundedSum(offset, weights[i]));
}

}  // namespace kvit

#endif  // KVIT_TRANSFER_ROW_NORM_CUH
