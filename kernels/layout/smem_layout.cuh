// Where element (s, c) of a tile lies in shared memory.
#ifndef KVIT_LAYOUT_SMEM_LAYOUT_CUH
#define KVIT_LAYOUT_SMEM_LAYOUT_CUH

#include "core/macros.h"
#include "layout/swizzle.cuh"

namespace kvit {

/// An [S, C] tile cut into atoms of [S0, C0], atoms ordered along C first; the swizzle acts inside each atom.
///
///   S = 4, C = 8, S0 = 2, C0 = 4     atom 0 | atom 1        element (s, c) of an atom at Swz(s * C0 + c)
///                                    atom 2 | atom 3
///
/// All offsets are in elements.
template <int S, int C, int S0, int C0, class Swz>
struct SmemLayout {
  static_assert(S > 0 && C > 0 && S0 > 0 && C0 > 0, "a layout has positive sizes");
  static_assert(S % S0 == 0 && C % C0 == 0, "a tile must be a whole number of atoms");
  static_assert(S0 * C0 % Swz::kBlock == 0,
                "the swizzle must permute the atom: S0 * C0 must be a multiple of 2^(Bits + Base)");

  static constexpr int kS = S;
  static constexpr int kC = C;
  static constexpr int kS0 = S0;
  static constexpr int kC0 = C0;
  static constexpr int kSize = S * C;
  using SwizzleType = Swz;

  /// Offset of element (s, c); `offset` is added as it is: stage * kSize picks the ring slot.
  static constexpr KVIT_HD int Index(int s, int c, int offset = 0) {
    const int atom = s / S0 * (C / C0) + c / C0;
    return Swz::Apply(s % S0 * C0 + c % C0) + atom * (S0 * C0) + offset;
  }

  /// Whether every run of `elements` channels that starts at a multiple of `elements` stays one aligned run here.
  static constexpr KVIT_HD bool KeepsRuns(int elements) { return C0 % elements == 0 && Swz::kRun % elements == 0; }
};

}  // namespace kvit

#endif  // KVIT_LAYOUT_SMEM_LAYOUT_CUH
