// What a token of V weighs in a row's base: its scale, within what floats can bear.
#ifndef KVIT_QUANT_VALUE_WEIGHT_CUH
#define KVIT_QUANT_VALUE_WEIGHT_CUH

#include <math.h>

#include "platform/platform.cuh"
#include "quant/codec.cuh"

namespace kvit {

/// A base follows the largest w = p * scale, so p is 1 / scale there: the scale counts as no less than lets p, p z and
/// their sums stay finite.
template <class Codec>
struct ValueWeight {
  static constexpr float kLeastScale = 0x1p-104f, kLeastOfZero = 0x1p-64f;

  static KVIT_DEVICE float InBase(const ScaleZero& v) {
    const float scale = fmaxf(fabsf(v.scale), kLeastScale);
    return Codec::kHasZero ? fmaxf(scale, fabsf(v.zero) * kLeastOfZero) : scale;
  }
  /// Below kLeastScale where a token counts as more than its scale: then w does not tell when a base must move.
  static KVIT_DEVICE float Slack(const ScaleZero& v) {
    return Codec::kHasZero ? fmaf(fabsf(v.zero), -kLeastOfZero, fabsf(v.scale)) : fabsf(v.scale);
  }
};

}  // namespace kvit

#endif  // KVIT_QUANT_VALUE_WEIGHT_CUH
