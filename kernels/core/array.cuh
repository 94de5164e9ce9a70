// A fixed number of values that move together: one access, one register fragment.
#ifndef KVIT_CORE_ARRAY_CUH
#define KVIT_CORE_ARRAY_CUH

#include "core/macros.h"

namespace kvit {

/// Largest power of two that divides n: 192 -> 64, 0 -> 0.
constexpr KVIT_HD int LowBit(int n) { return n & -n; }

/// Position of the highest set bit: 1 -> 0, 64 -> 6, 65 -> 6. Needs n >= 1.
constexpr KVIT_HD int Log2Floor(int n) {
  int bits = 0;
  while (n > 1) {
    n /= 2;
    ++bits;
  }
  return bits;
}

/// The alignment with which `bytes` bytes can move as vectors of up to 16 bytes.
constexpr KVIT_HD int AccessAlignment(int bytes) { return LowBit(bytes) > 16 ? 16 : LowBit(bytes); }

/// N values of T. Aligned so that 1, 2, 4, 8 or 16 bytes of them are one load; sub_byte.cuh packs types below a byte.
template <class T, int N>
struct alignas(AccessAlignment(sizeof(T) * N) > int(alignof(T)) ? AccessAlignment(sizeof(T) * N) : int(alignof(T)))
    Array {
  static_assert(N > 0, "an Array holds at least one value");
  using Element = T;
  static constexpr int kSize = N;

  constexpr KVIT_HD T& operator[](int i) { return values[i]; }
  constexpr KVIT_HD const T& operator[](int i) const { return values[i]; }

  T values[N];
};

}  // namespace kvit

#endif  // KVIT_CORE_ARRAY_CUH
