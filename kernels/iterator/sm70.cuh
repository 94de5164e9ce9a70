// Loads tiles through registers: for GPUs without asynchronous copies, and where values change on the way.
#ifndef KVIT_ITERATOR_SM70_CUH
#define KVIT_ITERATOR_SM70_CUH

#include "iterator/base.cuh"

namespace kvit {

/// Index is the pool that the tile iterator reads: 0 K, 1 V, 2 K parameters, 3 V parameters.
template <class T, class Map, class SmemLayout, int Index>
class Sm70GmemIterator : public BaseGmemIterator<T, Map, SmemLayout> {
 public:
  using Base = BaseGmemIterator<T, Map, SmemLayout>;
  using Base::Base;
  using typename Base::AccessType;
  using typename Base::Fragment;

  /// Fills `fragment` with this thread's elements of the tile; zeros where the tile iterator has no row and, in a
  /// residue tile, at or past row `max_s`. All lanes of a warp call together.
  template <bool is_residue, class TileIter>
  KVIT_DEVICE void Load(const TileIter& tile_iter, Fragment& fragment, int max_s) const {
    KVIT_UNROLL
    for (int i = 0; i < Map::kIterS; ++i) {
      const Coord row = Base::At(i, 0);
      const char* source = tile_iter.template OffsetPtr<Index>(row.s, int(BytesOf<T>(row.c)));
      const bool wanted = source != nullptr && Map::Covers(row) && (!is_residue || row.s < max_s);
      KVIT_UNROLL
      for (int j = 0; j < Map::kIterC; ++j) {
        fragment[i][j] = AccessType{};
        if (wanted) fragment[i][j] = LoadGlobalReadOnly<AccessType>(source + BytesOf<T>(j * Map::kDeltaC));
      }
    }
  }

  /// Writes `fragment` to the tile in ring slot `pipe_iter`.
  KVIT_DEVICE void Save(const Fragment& fragment, int pipe_iter = 0) const {
    KVIT_UNROLL
    for (int i = 0; i < Map::kIterS; ++i) {
      KVIT_UNROLL
      for (int j = 0; j < Map::kIterC; ++j) {
        const Coord at = Base::At(i, j);
        if (Map::Covers(at)) Base::smem_.Store(at.s, at.c, fragment[i][j], pipe_iter * SmemLayout::kSize);
      }
    }
  }
};

}  // namespace kvit

#endif  // KVIT_ITERATOR_SM70_CUH
