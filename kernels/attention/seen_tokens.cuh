// Which tokens of a step count: for a row, and in an operand of V.
#ifndef KVIT_ATTENTION_SEEN_TOKENS_CUH
#define KVIT_ATTENTION_SEEN_TOKENS_CUH

#include <stdint.h>

#include <type_traits>

#include "core/macros.h"
#include "platform/platform.cuh"
#include "schedule/row_tiles.cuh"

namespace kvit {

/// What becomes of V's operands before they are multiplied, where every token of a step is seen.
struct KeepsAll {
  KVIT_DEVICE void operator()(uint32_t (&)[4]) const {}
};

/// Zeroes in registers what a step does not see: 16 tokens, of which a lane holds two neighbours in each register.
class KeepsSeen {
 public:
  /// sees(s): whether token s of the 16 is seen
  template <class Sees>
  KVIT_DEVICE explicit KeepsSeen(Sees&& sees) {
    KVIT_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int token = half * 8 + LaneIndex() % 4 * 2;
      kept_[half] = (sees(token) ? 0x0000ffffu : 0u) | (sees(token + 1) ? 0xffff0000u : 0u);
    }
  }
  /// v: [tokens 0..7, 8..15][2], as LoadValueOperand gives them
  KVIT_DEVICE void operator()(uint32_t (&v)[4]) const {
    KVIT_UNROLL
    for (int i = 0; i < 4; ++i) v[i] &= kept_[i / 2];
  }

 private:
  uint32_t kept_[2];
};

/// What is infinite or NaN among 16-bit values, two in a register.
template <class T>
struct SpecialValues {
  static constexpr uint32_t kExponent = std::is_same_v<T, Bfloat16> ? 0x7f807f80u : 0x7c007c00u;
  static constexpr uint32_t kCarry = kExponent & ~(kExponent << 1);  // the lowest bit of both exponents

  /// Bits 15 and 31: whether the lower one is, and the upper one. Other bits may be anything.
  static KVIT_DEVICE uint32_t Flags(uint32_t x) { return (x & kExponent) + kCarry; }
  static KVIT_DEVICE bool Any(uint32_t flags) { return (flags & 0x80008000u) != 0u; }
  /// Ones in the place of those that are.
  static KVIT_DEVICE uint32_t Mask(uint32_t x) { return (Flags(x) >> 15 & 0x00010001u) * 0xffffu; }
};

/// Zeroes all but what is seen, and infinite or NaN.
template <class T>
class KeepsSpecial {
 public:
  template <class Sees>
  KVIT_DEVICE explicit KeepsSpecial(Sees&& sees) : seen_(sees) {}
  KVIT_DEVICE void operator()(uint32_t (&v)[4]) const {
    seen_(v);
    KVIT_UNROLL
    for (int i = 0; i < 4; ++i) v[i] &= SpecialValues<T>::Mask(v[i]);
  }

 private:
  KeepsSeen seen_;
};

/// What a lane's rows see of a step: all of it, or where something is hidden, a range each.
template <bool kIsMasked, int RowTiles>
struct SeenKeys {
  KVIT_DEVICE bool Has(int, int, int) const { return true; }
};
template <int RowTiles>
struct SeenKeys<true, RowTiles> {
  KeyRange range[RowTiles][2];
  KVIT_DEVICE bool Has(int m, int h, int token) const { return range[m][h].begin <= token && token < range[m][h].end; }
};

}  // namespace kvit

#endif  // KVIT_ATTENTION_SEEN_TOKENS_CUH
