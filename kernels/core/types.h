// 16-bit floats as bits, small vectors, and bit casts: values that need no hardware.
#ifndef KVIT_CORE_TYPES_H
#define KVIT_CORE_TYPES_H

#include <stdint.h>

#include "core/macros.h"

namespace kvit {

struct Half {  // IEEE binary16
  uint16_t bits;
};

struct Bfloat16 {  // the upper half of an IEEE binary32
  uint16_t bits;
};

/// The smallest positive normal number.
template <class T>
inline constexpr T kLeastNormal = {};
template <>
inline constexpr Half kLeastNormal<Half> = {0x0400};
template <>
inline constexpr Bfloat16 kLeastNormal<Bfloat16> = {0x0080};

struct Float2 {
  float lo, hi;
};

/// Channels of a row of K and of V. SharesKv: a row of V is the first channels of the row of K, in the same memory.
template <int K, int V = K, bool SharesKv = false>
struct Dims {
  static constexpr int kKey = K, kValue = V;
  static constexpr bool kSharesKv = SharesKv, kAreMost = false;
};

/// The same of kernels that have room for so many: rows may have fewer, a multiple of 8, as the launch says.
template <class D>
struct AtMost : D {
  static constexpr bool kAreMost = true;
};

/// Which channels a row has: all that a kernel has room for, or where IsMost is set the first `channels` of them.
template <int Most, bool IsMost>
struct RowWidth {
  int channels = Most;
  KVIT_HD bool Has(int channel) const { return !IsMost || channel < channels; }
};

/// An unsigned vector register image of N bytes, aligned to its size.
template <int Bytes>
struct alignas(Bytes < 16 ? Bytes : 16) Words {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "a memory access moves 4, 8 or 16 bytes");
  uint32_t word[Bytes / 4];
};

template <class To, class From>
KVIT_HD To BitCast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
  return __builtin_bit_cast(To, from);
}

constexpr KVIT_HD int CeilDiv(int a, int b) { return (a + b - 1) / b; }
constexpr KVIT_HD int Min(int a, int b) { return a < b ? a : b; }
constexpr KVIT_HD int Max(int a, int b) { return a > b ? a : b; }

}  // namespace kvit

#endif  // KVIT_CORE_TYPES_H
