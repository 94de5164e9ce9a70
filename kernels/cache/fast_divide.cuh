// Division by a number that is known only at run time, without a division per use.
#ifndef KVIT_CACHE_FAST_DIVIDE_CUH
#define KVIT_CACHE_FAST_DIVIDE_CUH

#include <stdint.h>

#include "abi/divisor.h"
#include "core/macros.h"

namespace kvit {

/// Divides non-negative 31-bit numbers by a divisor >= 1 with one multiplication and a shift.
class FastDivide {
 public:
  KVIT_HD explicit FastDivide(const KvitDivisor& divisor) : magic_(divisor.magic), shift_(divisor.shift) {}

  /// Makes the divisor, by a division: for kernels that are not handed one.
  KVIT_HD explicit FastDivide(int32_t divisor) : FastDivide(KvitDivisorOf(divisor)) {}

  KVIT_HD uint32_t operator()(uint32_t dividend) const { return uint32_t(uint64_t(dividend) * magic_ >> shift_); }

 private:
  uint32_t magic_;
  int shift_;
};

}  // namespace kvit

#endif  // KVIT_CACHE_FAST_DIVIDE_CUH
