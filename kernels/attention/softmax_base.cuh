// What the weights of a row are relative to, and when that moves.
#ifndef KVIT_ATTENTION_SOFTMAX_BASE_CUH
#define KVIT_ATTENTION_SOFTMAX_BASE_CUH

#include <stdint.h>

#include "core/types.h"

namespace kvit {

/// All weights of a row are relative to a base, in log2 units, which follows the largest of them: not at every step,
/// since weights may grow for a while before f16 cannot hold them, but before they do.
struct SoftmaxBase {
  static constexpr float kNone = -0x1.fffffep127f;  // of a row that saw no key: any weight is infinite or 0
  // A weight, and its logarithm, that makes a step look at its bases: far below what an f16 holds.
  static constexpr float kMostWeight = 256.0f, kMostRise = 8.0f;
  // A base follows a step's largest weight where that is so many times the last one, in log2 units: a little more than
  // what makes a step look, so that a row's base depends on the row alone, and not on others that made the step look.
  static constexpr float kLeastRise = 8.01f;

  /// The exponent that moves from a sum into its base, or 0. V's scales alone may have brought bases far apart, and
  /// whoever joins parts shall see the weights of their keys.
  static KVIT_DEVICE int Excess(float sum) {
    const int exponent = int(BitCast<uint32_t>(sum) >> 23) - 127;
    if (exponent < -126 || exponent > 127) return 0;  // 0, infinite, NaN
    return -60 <= exponent && exponent <= 60 ? 0 : exponent;
  }
  static KVIT_DEVICE float PowerOfTwo(int exponent) { return BitCast<float>(uint32_t(127 + exponent) << 23); }
};

}  // namespace kvit

#endif  // KVIT_ATTENTION_SOFTMAX_BASE_CUH
