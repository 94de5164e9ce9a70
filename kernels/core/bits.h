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

/// Bits 0 to `count` - 1: none of less than 0, all of 32 and more.
KVIT_HD uint32_t OnesBelow(int count) { return count <= 0 ? 0u : count >= 32 ? ~0u : (1u << count) - 1u; }

}  // namespace kvit

#endif  // KVIT_CORE_BITS_H
