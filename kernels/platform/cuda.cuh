// The GPU: built-in variables and, with the other cuda_*.cuh, all inline PTX of kvit. See platform.cuh for what each
// name means.
#ifndef KVIT_PLATFORM_CUDA_CUH
#define KVIT_PLATFORM_CUDA_CUH

#include "abi/fact.h"
#include "core/types.h"
#include "platform/cuda_math.cuh"
#include "platform/cuda_memory.cuh"
#include "platform/cuda_mma.cuh"
#include "platform/cuda_wgmma.cuh"

namespace kvit {

// --- ids -----------------------------------------------------------------------------------------------------------

KVIT_DEVICE int ThreadIndex() { return int(threadIdx.x); }
KVIT_DEVICE int LaneIndex() { return int(threadIdx.x) & 31; }
KVIT_DEVICE int BlockIndex() { return int(blockIdx.x); }
KVIT_DEVICE int GridSize() { return int(gridDim.x); }
KVIT_DEVICE int WarpIndex() { return int(threadIdx.x) >> 5; }

// --- CTA, warp and device --------------------------------------------------------------------------------------------

KVIT_DEVICE void SyncThreads() { __syncthreads(); }
KVIT_DEVICE bool SyncThreadsOr(bool x) { return __syncthreads_or(x) != 0; }
KVIT_DEVICE void SyncWarp() { __syncwarp(); }

template <class T>
KVIT_DEVICE T Shuffle(T x, int lane) {
  if constexpr (sizeof(T) == 8) {
    return BitCast<T>(__shfl_sync(0xffffffffu, BitCast<unsigned long long>(x), lane));
  } else {
    return BitCast<T>(__shfl_sync(0xffffffffu, BitCast<unsigned int>(x), lane));
  }
}
template <class T>
KVIT_DEVICE T ShuffleXor(T x, int mask) {
  if constexpr (sizeof(T) == 8) {
    return BitCast<T>(__shfl_xor_sync(0xffffffffu, BitCast<unsigned long long>(x), mask));
  } else {
    return BitCast<T>(__shfl_xor_sync(0xffffffffu, BitCast<unsigned int>(x), mask));
  }
}
// Lanes below `delta` get their own value back.
template <class T>
KVIT_DEVICE T ShuffleUp(T x, int delta) {
  if constexpr (sizeof(T) == 8) {
    return BitCast<T>(__shfl_up_sync(0xffffffffu, BitCast<unsigned long long>(x), delta));
  } else {
    return BitCast<T>(__shfl_up_sync(0xffffffffu, BitCast<unsigned int>(x), delta));
  }
}
KVIT_DEVICE int LowestBit(uint32_t x) { return __ffs(int(x)) - 1; }  // of x != 0
KVIT_DEVICE uint32_t Ballot(bool x) { return __ballot_sync(0xffffffffu, x); }

KVIT_DEVICE uint32_t AtomicAdd(uint32_t* p, uint32_t x) { return atomicAdd(p, x); }
// Adds one, or goes back to 0 from `last`; returns what was there.
KVIT_DEVICE uint32_t AtomicIncrement(uint32_t* p, uint32_t last) { return atomicInc(p, last); }
KVIT_DEVICE int32_t AtomicCas(int32_t* p, int32_t expected, int32_t desired) { return atomicCAS(p, expected, desired); }

KVIT_DEVICE void Pause() { __nanosleep(20); }

#if __CUDA_ARCH__ >= 900
inline constexpr bool kLaunchesOverlap = true;
#else
inline constexpr bool kLaunchesOverlap = false;
#endif
KVIT_DEVICE void GridDependencyWait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
KVIT_DEVICE void GridDependencyLaunch() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace kvit

// --- entry -----------------------------------------------------------------------------------------------------------

#define KVIT_KERNEL(symbol, ...)                                                                             \
  namespace kvit {                                                                                           \
  using symbol##_type = __VA_ARGS__;                                                                         \
  }                                                                                                          \
  extern "C" __global__ void __launch_bounds__(kvit::symbol##_type::kThreads, kvit::symbol##_type::kMinCtas) \
      symbol(const __grid_constant__ typename kvit::symbol##_type::Params params) {                          \
    extern __shared__ __align__(1024) char shared[];                                                         \
    kvit::symbol##_type::Run(params, shared);                                                                \
  }

#endif  // KVIT_PLATFORM_CUDA_CUH
