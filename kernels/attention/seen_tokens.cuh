// Which tokens of a step count: for a row, and in an operand of V.
#ifndef KVIT_ATTENTION_SEEN_TOKENS_CUH
#define KVIT_ATTENTION_SEEN_TOKENS_CUH

#include <stdint.h>

#include <type_traits>

#include "core/bits.h"
#include "core/macros.h"
#include "core/types.h"
#include "platform/platform.cuh"

namespace kvit {

/// The i-th of the tokens that a lane has of a step in scores and weights: of every eight two neighbours.
KVIT_DEVICE int LaneToken(int i) { return i / 2 * 8 + LaneIndex() % 4 * 2 + i % 2; }

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

/// Tokens [0, end) of a step.
struct SeenFromFirst {
  int end;

  KVIT_DEVICE bool Has(int token) const { return token < end; }
  KVIT_DEVICE bool IsEmpty() const { return end <= 0; }
  KVIT_DEVICE bool operator==(const SeenFromFirst& other) const { return end == other.end; }
};

/// Of a step of Tokens tokens, a bit for each that is seen.
template <int Tokens>
struct SeenBits {
  static constexpr int kWords = CeilDiv(Tokens, 32);
  uint32_t word[kWords];

  KVIT_DEVICE bool Has(int token) const { return (word[token / 32] >> token % 32 & 1u) != 0u; }
  KVIT_DEVICE bool IsEmpty() const {
    uint32_t any = 0u;
    KVIT_UNROLL
    for (int i = 0; i < kWords; ++i) any |= word[i];
    return any == 0u;
  }
  KVIT_DEVICE bool IsWhole() const {
    uint32_t all = ~0u;
    KVIT_UNROLL
    for (int i = 0; i < kWords; ++i) all &= word[i];
    return all == ~0u;
  }
  KVIT_DEVICE bool operator==(const SeenBits& other) const {
    uint32_t differ = 0u;
    KVIT_UNROLL
    for (int i = 0; i < kWords; ++i) differ |= word[i] ^ other.word[i];
    return differ == 0u;
  }
  /// Those before `token`.
  KVIT_DEVICE int CountBefore(int token) const {
    int count = 0;
    KVIT_UNROLL
    for (int i = 0; i < kWords; ++i) count += CountBits(word[i] & OnesBelow(token - i * 32));
    return count;
  }
};

/// Which of its tokens of a step a lane's rows see: all of them.
struct LaneSeesAll {
  KVIT_DEVICE bool Has(int, int, int) const { return true; }
};
/// Those before the end of each row.
template <int RowTiles>
struct LaneSeesFromFirst {
  SeenFromFirst row[RowTiles][2];
  KVIT_DEVICE bool Has(int m, int h, int i) const { return row[m][h].Has(LaneToken(i)); }
};
/// Those whose bits are set.
template <int RowTiles>
struct LaneSeesBits {
  uint32_t row[RowTiles][2];
  KVIT_DEVICE bool Has(int m, int h, int i) const { return (row[m][h] >> i & 1u) != 0u; }
};

}  // namespace kvit

#endif  // KVIT_ATTENTION_SEEN_TOKENS_CUH
