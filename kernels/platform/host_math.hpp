// 16-bit floats in software, bit for bit as the GPU converts them (round to nearest even).
#ifndef KVIT_PLATFORM_HOST_MATH_HPP
#define KVIT_PLATFORM_HOST_MATH_HPP

#include <cmath>

#include "core/bfloat16.h"
#include "core/float8.h"
#include "core/types.h"

namespace kvit {

inline float ToFloat(float x) { return x; }
inline float ToFloat(Bfloat16 x) { return BitCast<float>(uint32_t(x.bits) << 16); }

inline float ToFloat(Half x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000u) << 16, magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return BitCast<float>(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  // A half's exponent and mantissa, shifted into place, are the value times 2^-112, subnormals included.
  return BitCast<float>(sign | BitCast<uint32_t>(BitCast<float>(magnitude << 13) * 0x1p112f));
}

template <class T>
T FromFloat(float x);

template <>
inline float FromFloat<float>(float x) {
  return x;
}

template <>
inline Bfloat16 FromFloat<Bfloat16>(float x) {
  return {uint16_t(RoundToBfloat16(x))};
}

template <>
inline Half FromFloat<Half>(float x) {
  if (std::isnan(x)) return {0x7fff};
  const uint32_t sign = BitCast<uint32_t>(x) >> 16 & 0x8000u;
  const float magnitude = std::fabs(x);
  if (magnitude >= 65520.0f) return {uint16_t(sign | 0x7c00u)};
  if (magnitude < 0x1p-14f) {  // subnormal: the spacing is 2^-24
    return {uint16_t(sign | uint32_t(std::nearbyint(magnitude * 0x1p24f)))};
  }
  const uint32_t bits = BitCast<uint32_t>(magnitude);
  return {uint16_t(sign | (bits - 0x38000000u + 0xfffu + (bits >> 13 & 1u)) >> 13)};
}

template <class T>
uint32_t Pack2(float lo, float hi) {
  return uint32_t(FromFloat<T>(lo).bits) | uint32_t(FromFloat<T>(hi).bits) << 16;
}

template <class T>
Float2 Unpack2(uint32_t x) {
  return {ToFloat(T{uint16_t(x & 0xffffu)}), ToFloat(T{uint16_t(x >> 16)})};
}

inline float Lesser(float a, float b) { return std::isnan(a) || std::isnan(b) ? NAN : std::fmin(a, b); }
template <class T>
uint32_t Min2(uint32_t a, uint32_t b) {
  const Float2 x = Unpack2<T>(a), y = Unpack2<T>(b);
  return Pack2<T>(Lesser(x.lo, y.lo), Lesser(x.hi, y.hi));
}
template <class T>
uint32_t Max2(uint32_t a, uint32_t b) {
  const Float2 x = Unpack2<T>(a), y = Unpack2<T>(b);
  return Pack2<T>(-Lesser(-x.lo, -y.lo), -Lesser(-x.hi, -y.hi));
}
inline uint32_t MaxUnsigned2(uint32_t a, uint32_t b) {
  const uint32_t low = std::max(a & 0xffffu, b & 0xffffu), high = std::max(a >> 16, b >> 16);
  return high << 16 | low;
}

inline uint32_t PackE4M3(float lo, float hi) { return RoundToE4M3(lo) | RoundToE4M3(hi) << 8; }
inline uint32_t PackE5M2(float lo, float hi) { return RoundToE5M2(lo) | RoundToE5M2(hi) << 8; }

// The backend is compiled without contraction of a product and a sum.
inline float RoundedProduct(float a, float b) { return a * b; }
inline float RoundedSum(float a, float b) { return a + b; }

inline uint32_t PermuteBytes(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = a | uint64_t(b) << 32;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) result |= uint32_t(bytes >> (selector >> (4 * i) & 7u) * 8 & 0xffu) << (8 * i);
  return result;
}
inline uint32_t MaskOr(uint32_t x, uint32_t mask, uint32_t bits) { return (x & mask) | bits; }

inline float Exp2(float x) { return std::exp2(x); }
inline float Log2(float x) { return std::log2(x); }
inline float Reciprocal(float x) { return 1.0f / x; }

inline constexpr bool kConvertsFloat8 = false;
template <int>
uint32_t HalvesFromE4M3(uint32_t) {
  return 0;
}

}  // namespace kvit

#endif  // KVIT_PLATFORM_HOST_MATH_HPP
