// Loads tiles of bfloat16 through registers, and saves them as ScaledHalf.
#ifndef KVIT_ITERATOR_SM70_SCALED_HALF_CUH
#define KVIT_ITERATOR_SM70_SCALED_HALF_CUH

#include <stdint.h>

#include "core/types.h"
#include "iterator/sm70.cuh"
#include "quant/scaled_half.cuh"

namespace kvit {

/// As Sm70GmemIterator. The values change on their way from registers to shared memory: the lanes of a row agree on its
/// power of two, which goes beside the tile.
template <class Map, class SmemLayout, int Index>
class Sm70ScaledHalfIterator : public Sm70GmemIterator<Bfloat16, Map, SmemLayout, Index> {
 public:
  using Base = Sm70GmemIterator<Bfloat16, Map, SmemLayout, Index>;
  using Base::Base;
  using typename Base::AccessType;
  using typename Base::Fragment;
  static_assert(!Map::kPartialC && !Map::kPartialS && Map::kWarpC == 1, "the lanes of a warp have whole rows");

  /// Binds the iterator to a ring of tiles, and to a parameter for each of their tokens.
  KVIT_DEVICE void SetSmem(typename Base::Pointer tiles, uint32_t* parameters) {
    Base::SetSmem(tiles);
    parameters_ = parameters;
  }

  /// Writes `fragment` to the tile in ring slot `pipe_iter`. All lanes of a warp call together.
  KVIT_DEVICE void Save(const Fragment& fragment, int pipe_iter = 0) const {
    KVIT_UNROLL
    for (int i = 0; i < Map::kIterS; ++i) {
      ScaledHalf::Extent mine[Map::kIterC];
      uint32_t magnitude = 0;
      KVIT_UNROLL
      for (int j = 0; j < Map::kIterC; ++j) {
        mine[j] = ScaledHalf::Measure(BitCast<Words<16>>(fragment[i][j]).word);
        magnitude = Larger(magnitude, mine[j].magnitude);
      }
      KVIT_UNROLL
      for (int mask = 1; mask < Map::kWarpThreadC; mask *= 2) {
        magnitude = Larger(magnitude, ShuffleXor(magnitude, mask));
      }
      const uint32_t shift = ScaledHalf::Shift(magnitude);
      KVIT_UNROLL
      for (int j = 0; j < Map::kIterC; ++j) {
        auto words = BitCast<Words<16>>(fragment[i][j]);
        ScaledHalf::Encode(words.word, mine[j], shift);
        const Coord at = Base::At(i, j);
        Base::smem_.Store(at.s, at.c, BitCast<AccessType>(words), pipe_iter * SmemLayout::kSize);
      }
      const Coord row = Base::At(i, 0);
      if (row.c == 0) StoreShared(parameters_ + pipe_iter * Map::kDimS + row.s, ScaledHalf::Scale(shift));
    }
  }

 private:
  static KVIT_DEVICE uint32_t Larger(uint32_t a, uint32_t b) { return a < b ? b : a; }

  uint32_t* parameters_ = nullptr;
};

}  // namespace kvit

#endif  // KVIT_ITERATOR_SM70_SCALED_HALF_CUH
