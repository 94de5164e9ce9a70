// Which thread moves which part of a tile.
#ifndef KVIT_LAYOUT_RAKED_THREAD_MAP_CUH
#define KVIT_LAYOUT_RAKED_THREAD_MAP_CUH

#include "core/array.cuh"
#include "core/macros.h"
#include "core/types.h"

namespace kvit {

/// A place in a tile: token s, channel c.
struct Coord {
  int s, c;
};

/// Deals a [DimS, DimC] tile to WarpCount warps, AccessC channels per access. Each warp owns a band of kFootprintS
/// consecutive tokens; inside the band its lanes are raked: a lane's accesses are kDeltaS tokens apart. So a warp
/// copies exactly the tokens that it consumes, and needs no CTA-wide barrier in between.
///
///   DimC = 64, DimS = 32, AccessC = 8, 4 warps:    lane  0 .. 7   -> token 0, 4      of warp 0: tokens 0..7
///                                                  lane  8 .. 15  -> token 1, 5         warp 1: tokens 8..15
///                                                  lane 24 .. 31  -> token 3, 7         ...
///
/// Where the lanes of a row reach past DimC (kPartialC) or the last band past DimS (kPartialS), Covers says no.
template <int DimC, int DimS, int AccessC, int WarpCount, int WarpThreadC = LowBit(DimC) / AccessC, int WarpC = 1>
struct RakedThreadMap {
  static_assert(DimC > 0 && DimS > 0 && AccessC > 0 && WarpCount > 0 && WarpC > 0, "a thread map has positive sizes");
  static_assert(DimC % AccessC == 0, "a row must be a whole number of accesses");
  static_assert(WarpThreadC > 0 && 32 % WarpThreadC == 0, "the lanes of a row must divide the 32 lanes of a warp");
  static_assert(WarpCount % WarpC == 0, "the warps of a row must divide the warps of the CTA");

  static constexpr int kDimC = DimC;
  static constexpr int kDimS = DimS;
  static constexpr int kAccessC = AccessC;
  static constexpr int kWarpCount = WarpCount;
  static constexpr int kWarpThreadC = WarpThreadC;
  static constexpr int kWarpThreadS = 32 / WarpThreadC;
  static constexpr int kWarpAccessC = WarpThreadC * AccessC;
  static constexpr int kWarpAccessS = kWarpThreadS;
  static constexpr int kWarpIterC = CeilDiv(DimC, kWarpAccessC);
  static constexpr int kWarpIterS = CeilDiv(DimS, kWarpAccessS);
  static constexpr int kWarpC = WarpC;
  static constexpr int kWarpS = WarpCount / WarpC;
  static constexpr int kIterC = CeilDiv(kWarpIterC, kWarpC);
  static constexpr int kIterS = CeilDiv(kWarpIterS, kWarpS);
  static constexpr int kDeltaC = kWarpAccessC;
  static constexpr int kDeltaS = kWarpAccessS;
  static constexpr int kFootprintC = kWarpAccessC * kIterC;
  static constexpr int kFootprintS = kWarpAccessS * kIterS;
  static constexpr bool kPartialC = kFootprintC * kWarpC != DimC;
  static constexpr bool kPartialS = kFootprintS * kWarpS != DimS;

  static_assert(!kPartialC || kIterC == 1, "only a map with one access along a row may reach past its end");

  /// First token of a warp's band.
  static constexpr KVIT_HD int BandBegin(int warp) { return kFootprintS * (warp / WarpC); }

  /// (s, c) of a lane's first access; access (i, j) is at (s + i * kDeltaS, c + j * kDeltaC).
  static constexpr KVIT_HD Coord Offset(int warp, int lane) {
    return {BandBegin(warp) + lane / WarpThreadC, kFootprintC * (warp % WarpC) + AccessC * (lane % WarpThreadC)};
  }

  /// Whether an access that starts here lies in the tile; folds to true where the map covers the tile exactly.
  static constexpr KVIT_HD bool Covers(Coord at) { return (!kPartialS || at.s < DimS) && (!kPartialC || at.c < DimC); }
};

}  // namespace kvit

#endif  // KVIT_LAYOUT_RAKED_THREAD_MAP_CUH
