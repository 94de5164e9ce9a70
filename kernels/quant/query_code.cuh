// Queries as f16, whatever their type, for products with codes.
#ifndef KVIT_QUANT_QUERY_CODE_CUH
#define KVIT_QUANT_QUERY_CODE_CUH

#include <stdint.h>

#include "core/types.h"

namespace kvit {

/// What a row whose largest element is x is multiplied by, exactly: 2^e with x 2^e in [2^10, 2^11). 1 where x is 0 or
/// so small that nothing matters.
KVIT_DEVICE float PowerToReach2To10(float x) {
  const int exponent = int(BitCast<uint32_t>(x) >> 23);
  return exponent < 11 ? 1.0f : BitCast<float>(uint32_t(264 - exponent) << 23);
}

}  // namespace kvit

#endif  // KVIT_QUANT_QUERY_CODE_CUH
