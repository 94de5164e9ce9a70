// mma.m16n8k8, which GPUs of compute capability 7.5 have in place of mma.m16n8k16: of f16 operands alone. Its operands
// are halves of those of m16n8k16, lane for lane, so that all of m16n8k16.cuh holds for both.
//
//   A of m16n8k16   {0, 1}: its columns 0..7    {2, 3}: 8..15
//   B of m16n8k16   {0}:    its rows    0..7    {1}:    8..15
#ifndef KVIT_MMA_M16N8K8_CUH
#define KVIT_MMA_M16N8K8_CUH

#include <type_traits>

#include "core/types.h"
#include "platform/platform.cuh"

namespace kvit {

/// As M16N8K16, by two instructions.
struct M16N8K8 {
  template <class T>
  static KVIT_DEVICE void Multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    static_assert(std::is_same_v<T, Half>, "compute capability 7.5 multiplies f16 alone: see ScaledHalf");
    const uint32_t low[2] = {a[0], a[1]}, high[2] = {a[2], a[3]};
    MmaM16N8K8(d, low, b[0]);
    MmaM16N8K8(d, high, b[1]);
  }
};

}  // namespace kvit

#endif  // KVIT_MMA_M16N8K8_CUH
