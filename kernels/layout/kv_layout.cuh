// The thread maps and shared-memory layouts of K and V tiles and their quantisation parameters: one choice for every
// kernel.
#ifndef KVIT_LAYOUT_KV_LAYOUT_CUH
#define KVIT_LAYOUT_KV_LAYOUT_CUH

#include "core/array.cuh"
#include "core/sub_byte.cuh"
#include "core/types.h"
#include "layout/raked_thread_map.cuh"
#include "layout/smem_layout.cuh"
#include "layout/swizzle.cuh"

namespace kvit {

namespace detail {

template <class T, int D>
struct KvAtom {
  static constexpr int kVector = 128 / kBitsOf<T>;  // elements of a 16-byte access
  // Channels of an atom's row: at most the 128 bytes that the banks span. A row of the tile that is not a multiple of
  // them (head_dim 64 in 8 or 4 bits, 192) takes the largest power of two that divides it.
  static constexpr int kC0 = Min(LowBit(D), 8 * kVector);
  static constexpr int kVectors = kC0 / kVector;  // 8, 4 or 2 per row
  static_assert(kVectors >= 2, "a head_dim must be a multiple of 32 bytes of channels");

  // Three bits above the 128-byte line number its eight successors; XORed into the three bits that number the 16-byte
  // vectors of a line, they send both eight tokens of one vector (ldmatrix) and eight vectors of a line (a copy) to
  // eight different bank groups. Base keeps every 16-byte vector whole and aligned.
  using SwizzleType = Swizzle<3, Log2Floor(kVector), 3>;
  // The swizzle permutes 1 KiB: 8, 16 or 32 rows. At least 16, the tokens that a warp multiplies at a time.
  static constexpr int kS0 = kVectors == 2 ? 32 : 16;
};

}  // namespace detail

/// Layout of a [Tokens, D] tile of T. Free of bank conflicts for 16-byte copies and for ldmatrix, in every type:
///
///   bits     head_dim         S0 x C0     swizzle      (the seed's)
///   16       64 .. 256        16 x 64     <3, 3, 3>    same
///   8        64, 192          16 x 64     <3, 4, 3>    32 x 64 <3, 4, 3>
///   8        128, 256         16 x 128    <3, 4, 3>    32 x 64 <3, 4, 3>: copies 2-way
///   4        64, 192          32 x 64     <3, 5, 3>    32 x 64 <3, 4, 3>: misaligned
///   4        128              16 x 128    <3, 5, 3>    32 x 128 <2, 5, 3>
///   4        256              16 x 256    <3, 5, 3>    32 x 128 <2, 5, 3>: copies 2-way
template <class T, int D, int Tokens>
using KvLayout = SmemLayout<Tokens, D, detail::KvAtom<T, D>::kS0, detail::KvAtom<T, D>::kC0,
                            typename detail::KvAtom<T, D>::SwizzleType>;

/// Deals a [Tokens, D] tile of T to Warps warps, 16 bytes per access.
template <class T, int D, int Tokens, int Warps>
using KvThreadMap =
    RakedThreadMap<D, Tokens, detail::KvAtom<T, D>::kVector, Warps, Min(32, LowBit(D) / detail::KvAtom<T, D>::kVector)>;

/// Layout of a tile's parameters: a (scale, zero) pair per token, densely.
template <int Tokens>
using ParamLayout = SmemLayout<Tokens, 2, Tokens, 2, Identity>;

/// Deals the parameters of DataMap's tile, one (scale, zero) pair per access: each warp those of its own tokens. Lanes
/// that would reach past the pair are idle.
template <class DataMap>
using ParamThreadMap = RakedThreadMap<2, DataMap::kDimS, 2, DataMap::kWarpCount,
                                      DataMap::kFootprintS >= 32 ? 1 : 32 / DataMap::kFootprintS, DataMap::kWarpC>;

}  // namespace kvit

#endif  // KVIT_LAYOUT_KV_LAYOUT_CUH
