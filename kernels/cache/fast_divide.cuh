// Division by a number that is known only at run time, without a division per use.
#ifndef KVIT_CACHE_FAST_DIVIDE_CUH
#define KVIT_CACHE_FAST_DIVIDE_CUH

#include <stdint.h>

#include "abi/params.h"
#include "core/macros.h"

namespace kvit {

/// Divides non-negative 31-bit numbers by `divisor` >= 1 with one multiplication and a shift.
///
/// With 2^(shift-1) < divisor <= 2^shift, magic = ceil(2^(31+shift) / divisor) fits in 32 bits, and magic * divisor
/// exceeds 2^(31+shift) by less than 2^shift: too little to change a quotient of a dividend below 2^31. Granlund and
/// Montgomery, Division by Invariant Integers using Multiplication, 1994.
class FastDivide {
 public:
  KVIT_HD explicit FastDivide(int32_t divisor) {
    int bits = 0;
    while ((int64_t(1) << bits) < divisor) ++bits;
    shift_ = 31 + bits;
    magic_ = uint32_t(((uint64_t(1) << shift_) + uint32_t(divisor) - 1) / uint32_t(divisor));
  }

  KVIT_HD explicit FastDivide(const KvitDivisor& divisor) : magic_(divisor.magic), shift_(divisor.shift) {}

  KVIT_HD uint32_t operator()(uint32_t dividend) const { return uint32_t(uint64_t(dividend) * magic_ >> shift_); }

 private:
  uint32_t magic_;
  int shift_;
};

}  // namespace kvit

#endif  // KVIT_CACHE_FAST_DIVIDE_CUH
