// Which matrix instruction a kernel multiplies by.
#ifndef KVIT_ATTENTION_MMA_FOR_CUH
#define KVIT_ATTENTION_MMA_FOR_CUH

#include <type_traits>

#include "mma/m16n8k16.cuh"
#include "mma/m16n8k8.cuh"

namespace kvit {

/// MultipliesBfloat16: what GPUs of compute capability 8.0 and newer do, and have m16n8k16 for.
template <bool MultipliesBfloat16>
using MmaFor = std::conditional_t<MultipliesBfloat16, M16N8K16, M16N8K8>;

}  // namespace kvit

#endif  // KVIT_ATTENTION_MMA_FOR_CUH
