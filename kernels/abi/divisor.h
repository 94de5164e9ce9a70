// What stands for a divisor that is known only at run time: for whoever packs a launch, and for kernels.
#ifndef KVIT_ABI_DIVISOR_H
#define KVIT_ABI_DIVISOR_H

#include "abi/params.h"

#ifdef __CUDACC__
#define KVIT_ABI_FUNCTION static inline __host__ __device__
#else
#define KVIT_ABI_FUNCTION static inline
#endif

// With 2^(bits-1) < divisor <= 2^bits and shift = 31 + bits, magic = ceil(2^shift / divisor) fits in 32 bits, and magic
// * divisor exceeds 2^shift by less than 2^bits: too little to change a quotient of a dividend below 2^31. Granlund and
// Montgomery, Division by Invariant Integers using Multiplication, 1994.
KVIT_ABI_FUNCTION KvitDivisor KvitDivisorOf(int32_t divisor) {
  KvitDivisor found;
  int32_t bits = 0;
  while (((int64_t)1 << bits) < divisor) ++bits;
  found.shift = 31 + bits;
  found.magic = (uint32_t)((((uint64_t)1 << found.shift) + (uint32_t)divisor - 1) / (uint32_t)divisor);
  return found;
}

#endif  // KVIT_ABI_DIVISOR_H
