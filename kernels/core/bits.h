// Counts of bits, on any machine.
#ifndef KVIT_CORE_BITS_H
#define KVIT_CORE_BITS_H

#include <stdint.h>

#include "core/macros.h"

namespace kvit {

/// Bits that are set.
KVIT_HD int CountBits(uint64_t x) {
#ifdef __CUDA_ARCH__
  return __popcll(x);
#else
  return __builtin_popcountll(x);
#endif
}

}  // namespace kvit

#endif  // KVIT_CORE_BITS_H
