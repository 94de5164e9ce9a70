// The GPU: built-in variables and, with cuda_memory.cuh and cuda_wgmma.cuh, all inline PTX of kvit. See platform.cuh
// for what each name means.
#ifndef KVIT_PLATFORM_CUDA_CUH
#define KVIT_PLATFORM_CUDA_CUH

#include "abi/fact.h"
#include "core/float8.h"
#include "core/types.h"
#include "platform/cuda_memory.cuh"
#include "platform/cuda_wgmma.cuh"

namespace kvit {

// --- ids -----------------------------------------------------------------------------------------------------------

KVIT_DEVICE int ThreadIndex() { return int(threadIdx.x); }
KVIT_DEVICE int LaneIndex() { return int(threadIdx.x) & 31; }
KVIT_DEVICE int BlockIndex() { return int(blockIdx.x); }
KVIT_DEVICE int GridSize() { return int(gridDim.x); }
KVIT_DEVICE int WarpIndex() { return int(threadIdx.x) >> 5; }

// --- values --------------------------------------------------------------------------------------------------------

template <class T>
KVIT_DEVICE T FromFloat(float x);

template <>
KVIT_DEVICE float FromFloat<float>(float x) {
  return x;
}
template <>
KVIT_DEVICE Half FromFloat<Half>(float x) {
  Half h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h.bits) : "f"(x));
  return h;
}
template <>
KVIT_DEVICE Bfloat16 FromFloat<Bfloat16>(float x) {
  Bfloat16 b;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(b.bits) : "f"(x));
  return b;
}

KVIT_DEVICE float ToFloat(float x) { return x; }
KVIT_DEVICE float ToFloat(Bfloat16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }
KVIT_DEVICE float ToFloat(Half x) {
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(x.bits));
  return f;
}

template <class T>
KVIT_DEVICE uint32_t Pack2(float lo, float hi);

template <>
KVIT_DEVICE uint32_t Pack2<Half>(float lo, float hi) {
  uint32_t d;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo));
  return d;
}
template <>
KVIT_DEVICE uint32_t Pack2<Bfloat16>(float lo, float hi) {
  uint32_t d;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo));
  return d;
}

template <class T>
KVIT_DEVICE Float2 Unpack2(uint32_t x) {
  return {ToFloat(T{uint16_t(x & 0xffffu)}), ToFloat(T{uint16_t(x >> 16)})};
}

#define KVIT_MINMAX2(Name, T, ptx)                       \
  template <>                                            \
  KVIT_DEVICE uint32_t Name<T>(uint32_t a, uint32_t b) { \
    uint32_t d;                                          \
    asm(ptx " %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));  \
    return d;                                            \
  }
template <class T>
KVIT_DEVICE uint32_t Min2(uint32_t a, uint32_t b);
template <class T>
KVIT_DEVICE uint32_t Max2(uint32_t a, uint32_t b);
KVIT_MINMAX2(Min2, Half, "min.NaN.f16x2")
KVIT_MINMAX2(Max2, Half, "max.NaN.f16x2")
KVIT_MINMAX2(Min2, Bfloat16, "min.NaN.bf16x2")
KVIT_MINMAX2(Max2, Bfloat16, "max.NaN.bf16x2")
#undef KVIT_MINMAX2

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
KVIT_DEVICE uint32_t PackE4M3(float lo, float hi) {
  uint16_t d;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(d) : "f"(hi), "f"(lo));
  return d;
}
KVIT_DEVICE uint32_t PackE5M2(float lo, float hi) {
  uint16_t d;
  asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(d) : "f"(hi), "f"(lo));
  return d;
}
#else
KVIT_DEVICE uint32_t PackE4M3(float lo, float hi) { return RoundToE4M3(lo) | RoundToE4M3(hi) << 8; }
KVIT_DEVICE uint32_t PackE5M2(float lo, float hi) { return RoundToE5M2(lo) | RoundToE5M2(hi) << 8; }
#endif

// Never fused with what follows or precedes.
KVIT_DEVICE float RoundedProduct(float a, float b) { return __fmul_rn(a, b); }
KVIT_DEVICE float RoundedSum(float a, float b) { return __fadd_rn(a, b); }

KVIT_DEVICE float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
KVIT_DEVICE float Log2(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
KVIT_DEVICE float Reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// fp8 (e4m3) to f16 in hardware: the two codes in the low (0) or high (1) half of x, exactly.
#if __CUDA_ARCH__ >= 890
inline constexpr bool kConvertsFloat8 = true;
template <int Unit>
KVIT_DEVICE uint32_t HalvesFromE4M3(uint32_t x) {
  uint32_t y;
  if constexpr (Unit == 0) {
    asm("{\n.reg .b16 lo, hi;\nmov.b32 {lo, hi}, %1;\ncvt.rn.f16x2.e4m3x2 %0, lo;\n}" : "=r"(y) : "r"(x));
  } else {
    asm("{\n.reg .b16 lo, hi;\nmov.b32 {lo, hi}, %1;\ncvt.rn.f16x2.e4m3x2 %0, hi;\n}" : "=r"(y) : "r"(x));
  }
  return y;
}
#else
inline constexpr bool kConvertsFloat8 = false;
template <int>
KVIT_DEVICE uint32_t HalvesFromE4M3(uint32_t) {
  return 0u;
}
#endif

// Byte i of the result is the byte that nibble i of `selector` picks: 0..3 of a, 4..7 of b.
KVIT_DEVICE uint32_t PermuteBytes(uint32_t a, uint32_t b, uint32_t selector) { return __byte_perm(a, b, selector); }
// (x & mask) | bits, in one instruction.
KVIT_DEVICE uint32_t MaskOr(uint32_t x, uint32_t mask, uint32_t bits) {
  uint32_t y;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(y) : "r"(x), "r"(mask), "r"(bits));
  return y;
}

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

// --- matrix ----------------------------------------------------------------------------------------------------------

// Lane l gives the address of row l % 8 of tile l / 8; r[i] holds (row lane / 4, columns lane % 4 * 2 and the next) of
// tile i.
KVIT_DEVICE void LoadMatrixX4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(SharedAddress(row))
               : "memory");
}
KVIT_DEVICE void LoadMatrixX4Transposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(SharedAddress(row))
               : "memory");
}
KVIT_DEVICE uint32_t TransposeMatrix(uint32_t x) {
  uint32_t y;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}

template <class T>
KVIT_DEVICE void MmaM16N8K16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

#define KVIT_MMA(T, ptx)                                                                           \
  template <>                                                                                      \
  KVIT_DEVICE void MmaM16N8K16<T>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { \
    asm("mma.sync.aligned.m16n8k16.row.col.f32." ptx "." ptx                                       \
        ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                     \
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                           \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                       \
  }
KVIT_MMA(Half, "f16")
KVIT_MMA(Bfloat16, "bf16")
#undef KVIT_MMA

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
