// bfloat16 in software: to nearest even, as the conversions of sm_80 and later do it.
#ifndef KVIT_CORE_BFLOAT16_H
#define KVIT_CORE_BFLOAT16_H

#include <stdint.h>

#include "core/types.h"

namespace kvit {

/// The bits of the bfloat16 nearest to x; NaN becomes 0x7fff.
KVIT_HD uint32_t RoundToBfloat16(float x) {
  const uint32_t bits = BitCast<uint32_t>(x);
  return x != x ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}

}  // namespace kvit

#endif  // KVIT_CORE_BFLOAT16_H
