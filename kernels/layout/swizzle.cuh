// Permutations of element offsets that spread the rows of a tile over the shared-memory banks.
#ifndef KVIT_LAYOUT_SWIZZLE_CUH
#define KVIT_LAYOUT_SWIZZLE_CUH

#include "core/macros.h"

namespace kvit {

/// XORs Bits bits of an element offset into the Bits bits that lie Shift lower:
///
///   <3, 3, 3>   offset   . . . . s s s v v v e e e     v ^= s
///                                    |     |     ^ Base = 3 low bits stay: vectors of 2^Base elements keep their
///                                    alignment
template <int Bits, int Base, int Shift>
struct Swizzle {
  static_assert(Bits >= 0 && Base >= 0 && Bits + Base + Shift < 31, "swizzle bits must lie inside a 31-bit offset");
  static_assert(Bits == 0 || Shift > 0, "a swizzle must read bits above those it changes, or it is not a permutation");

  static constexpr int kBits = Bits;
  static constexpr int kBase = Base;
  static constexpr int kShift = Shift;
  static constexpr int kMask = ((1 << Bits) - 1) << (Base + Shift);
  /// Runs of this many elements stay together, in order.
  static constexpr int kRun = Bits == 0 ? 1 << 30 : 1 << Base;
  /// Offsets are permuted within blocks of this many elements.
  static constexpr int kBlock = Bits == 0 ? 1 : 1 << (Base + Bits);

  static constexpr KVIT_HD int Apply(int offset) { return offset ^ ((offset & kMask) >> Shift); }
};

/// Leaves every offset as it is.
using Identity = Swizzle<0, 0, 0>;

}  // namespace kvit

#endif  // KVIT_LAYOUT_SWIZZLE_CUH
