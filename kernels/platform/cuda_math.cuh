// The GPU's values: conversions between floats of 32, 16 and 8 bits, and what else of arithmetic is an instruction. See
// platform.cuh for what each name means.
#ifndef KVIT_PLATFORM_CUDA_MATH_CUH
#define KVIT_PLATFORM_CUDA_MATH_CUH

#include "core/bfloat16.h"
#include "core/float8.h"
#include "core/types.h"

namespace kvit {

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
#if __CUDA_ARCH__ >= 800
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(b.bits) : "f"(x));
#else
  b.bits = uint16_t(RoundToBfloat16(x));
#endif
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

#if __CUDA_ARCH__ >= 800
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
#else
template <>
KVIT_DEVICE uint32_t Pack2<Half>(float lo, float hi) {
  return uint32_t(FromFloat<Half>(lo).bits) | uint32_t(FromFloat<Half>(hi).bits) << 16;
}
template <>
KVIT_DEVICE uint32_t Pack2<Bfloat16>(float lo, float hi) {
  return RoundToBfloat16(lo) | RoundToBfloat16(hi) << 16;
}
#endif

template <class T>
KVIT_DEVICE Float2 Unpack2(uint32_t x) {
  return {ToFloat(T{uint16_t(x & 0xffffu)}), ToFloat(T{uint16_t(x >> 16)})};
}

#if __CUDA_ARCH__ >= 800
template <class T>
KVIT_DEVICE uint32_t Min2(uint32_t a, uint32_t b);
template <class T>
KVIT_DEVICE uint32_t Max2(uint32_t a, uint32_t b);
#define KVIT_MINMAX2(Name, T, ptx)                       \
  template <>                                            \
  KVIT_DEVICE uint32_t Name<T>(uint32_t a, uint32_t b) { \
    uint32_t d;                                          \
    asm(ptx " %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));  \
    return d;                                            \
  }
KVIT_MINMAX2(Min2, Half, "min.NaN.f16x2")
KVIT_MINMAX2(Max2, Half, "max.NaN.f16x2")
KVIT_MINMAX2(Min2, Bfloat16, "min.NaN.bf16x2")
KVIT_MINMAX2(Max2, Bfloat16, "max.NaN.bf16x2")
#undef KVIT_MINMAX2
#else
// The lesser of two, or NaN where one is.
KVIT_DEVICE float Lesser(float a, float b) { return a != a ? a : a < b ? a : b; }
template <class T>
KVIT_DEVICE uint32_t Min2(uint32_t a, uint32_t b) {
  const Float2 x = Unpack2<T>(a), y = Unpack2<T>(b);
  return Pack2<T>(Lesser(x.lo, y.lo), Lesser(x.hi, y.hi));
}
template <class T>
KVIT_DEVICE uint32_t Max2(uint32_t a, uint32_t b) {
  const Float2 x = Unpack2<T>(a), y = Unpack2<T>(b);
  return Pack2<T>(-Lesser(-x.lo, -y.lo), -Lesser(-x.hi, -y.hi));
}
#endif

KVIT_DEVICE uint32_t MaxUnsigned2(uint32_t a, uint32_t b) { return __vmaxu2(a, b); }

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

}  // namespace kvit

#endif  // KVIT_PLATFORM_CUDA_MATH_CUH
