// Loads tiles with asynchronous copies (cp.async), straight from global to shared memory.
#ifndef KVIT_ITERATOR_SM80_CUH
#define KVIT_ITERATOR_SM80_CUH

#include "iterator/base.cuh"

namespace kvit {

/// Index is the pool that the tile iterator reads: 0 K, 1 V, 2 K parameters, 3 V parameters.
template <class T, class Map, class SmemLayout, int Index>
class Sm80GmemIterator : public BaseGmemIterator<T, Map, SmemLayout> {
 public:
  using Base = BaseGmemIterator<T, Map, SmemLayout>;
  using Base::Base;
  using typename Base::AccessType;

  static_assert(sizeof(AccessType) >= 4, "an asynchronous copy moves 4, 8 or 16 bytes");
  // As much as a row is sure to have of: what lies beyond may be another head's, and fetched in vain.
  static constexpr int kLine = BytesOf<T>(Map::kDimC) % 128 == 0 ? 128 : BytesOf<T>(Map::kDimC) % 64 == 0 ? 64 : 0;

  /// Begins to copy the tile into ring slot `stage`. Rows that the tile iterator does not have, and rows at or past
  /// `max_s`, become zeros in the copy itself: nothing needs to be cleared, and nobody's bytes are read. The caller
  /// commits and waits. All lanes of a warp call together.
  template <class TileIter>
  KVIT_DEVICE void Prefetch(const TileIter& tile_iter, int max_s, int stage) const {
    Prefetch(tile_iter, 0, Map::kIterS, max_s, stage);
  }

  /// The same for accesses [s_begin, s_begin + s_count) along S only, those past Map::kIterS ignored: slices let a main
  /// loop spread the copies between its arithmetic.
  template <class TileIter>
  KVIT_DEVICE void Prefetch(const TileIter& tile_iter, int s_begin, int s_count, int max_s, int stage) const {
    KVIT_UNROLL
    for (int i = 0; i < Map::kIterS; ++i) {
      if (i < s_begin || i >= s_begin + s_count) continue;
      const Coord row = Base::At(i, 0);
      const char* source = tile_iter.template OffsetPtr<Index>(row.s, int(BytesOf<T>(row.c)));
      const bool valid = source != nullptr && row.s < max_s;
      KVIT_UNROLL
      for (int j = 0; j < Map::kIterC; ++j) {
        const Coord at = Base::At(i, j);
        if (!Map::Covers(at)) continue;
        CopyAsync<sizeof(AccessType), kLine>(Base::smem_.Address(at.s, at.c, stage * SmemLayout::kSize),
                                             valid ? source + BytesOf<T>(j * Map::kDeltaC) : nullptr, valid);
      }
    }
  }
};

}  // namespace kvit

#endif  // KVIT_ITERATOR_SM80_CUH
