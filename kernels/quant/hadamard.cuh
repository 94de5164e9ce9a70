// The Hadamard transform of rows, by blocks of channels: codes of outliers that it has spread over a block lose less.
// kvit.reference.hadamard defines it.
#ifndef KVIT_QUANT_HADAMARD_CUH
#define KVIT_QUANT_HADAMARD_CUH

#include "core/array.cuh"
#include "core/types.h"
#include "platform/platform.cuh"

namespace kvit {

/// What makes the transform of a block of so many channels, a power of two, its own inverse: 1 / sqrt(block).
KVIT_DEVICE float HadamardUnit(int block) {
  const auto log2 = int(BitCast<uint32_t>(float(block)) >> 23) - 127;
  const float power = BitCast<float>(uint32_t(127 - log2 / 2) << 23);
  return log2 % 2 == 0 ? power : power * 0.70710678118654752f;
}

/// One stage of two channels: their sum and their difference.
KVIT_DEVICE void Butterfly(float& x, float& y) {
  const float sum = RoundedSum(x, y);
  y = RoundedSum(x, -y);
  x = sum;
}

/// The same where lane ^ mask has the other channel, the later one if its lane is. All lanes of the warp call together.
KVIT_DEVICE float ButterflyOfLanes(float x, int mask) {
  const float other = ShuffleXor(x, mask);
  return RoundedSum(other, (LaneIndex() & mask) != 0 ? -x : x);
}

/// Stages of neighbours in N numbers, a power of two, that are `step` apart.
template <int N>
KVIT_DEVICE void ButterfliesOf(Array<float, N>& x, int step) {
  KVIT_UNROLL
  for (int i = 0; i < N; ++i) {
    if ((i & step) == 0) Butterfly(x[i], x[i | step]);
  }
}

/// All stages within N numbers.
template <int N>
KVIT_DEVICE void ButterfliesWithin(Array<float, N>& x) {
  KVIT_UNROLL
  for (int step = 1; step < N; step *= 2) ButterfliesOf(x, step);
}

}  // namespace kvit

#endif  // KVIT_QUANT_HADAMARD_CUH
