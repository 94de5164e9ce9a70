// 8-bit floats in software: to nearest even, saturating, as the conversions of sm_89 and later do it.
#ifndef KVIT_CORE_FLOAT8_H
#define KVIT_CORE_FLOAT8_H

#include <math.h>
#include <stdint.h>

#include "core/types.h"

namespace kvit {

/// A sign, an exponent and MantissaBits of mantissa. Beyond `largest` comes `largest`; NaN becomes 0x7f.
template <int ExponentBias, int MantissaBits>
KVIT_HD uint32_t RoundToFloat8(float x, float largest) {
  const uint32_t sign = BitCast<uint32_t>(x) >> 24 & 0x80u;
  if (x != x) return 0x7fu;
  const float magnitude = fminf(fabsf(x), largest);
  const float least_normal = BitCast<float>(uint32_t(128 - ExponentBias) << 23);
  if (magnitude < least_normal) {  // evenly spaced, 2^MantissaBits of them
    const float spacing_inverse = BitCast<float>(uint32_t(127 + ExponentBias - 1 + MantissaBits) << 23);
    return sign | uint32_t(rintf(magnitude * spacing_inverse));
  }
  constexpr int kDropped = 23 - MantissaBits;
  const uint32_t bits = BitCast<uint32_t>(magnitude);
  const uint32_t rounded = bits + ((1u << (kDropped - 1)) - 1) + (bits >> kDropped & 1u);
  return sign | ((rounded >> kDropped) - (uint32_t(127 - ExponentBias) << MantissaBits));
}

KVIT_HD uint32_t RoundToE4M3(float x) { return RoundToFloat8<7, 3>(x, 448.0f); }
KVIT_HD uint32_t RoundToE5M2(float x) { return RoundToFloat8<15, 2>(x, 57344.0f); }

}  // namespace kvit

#endif  // KVIT_CORE_FLOAT8_H
