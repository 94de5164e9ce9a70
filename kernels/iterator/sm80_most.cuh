// Loads tiles with asynchronous copies (cp.async) of rows that have fewer channels than a tile has room for.
#ifndef KVIT_ITERATOR_SM80_MOST_CUH
#define KVIT_ITERATOR_SM80_MOST_CUH

#include "core/types.h"
#include "iterator/base.cuh"

namespace kvit {

/// As Sm80GmemIterator. What a row does not have becomes zeros in the copy itself, and is not read.
///
///   Map::kDimC = 128, 96 channels in 16 bits      lanes of a row   0 .. 11   12 .. 15
///                                                                  16 bytes  zeros
template <class T, class Map, class SmemLayout, int Index>
class Sm80MostGmemIterator : public BaseGmemIterator<T, Map, SmemLayout> {
 public:
  using Base = BaseGmemIterator<T, Map, SmemLayout>;
  using Base::Base;
  using typename Base::AccessType;
  static constexpr bool kTakesDim = true;

  /// A row has `channels` channels, at most Map::kDimC; all of them if nobody says so.
  KVIT_DEVICE void SetDim(int channels) { row_bytes_ = int(BytesOf<T>(channels)); }

  template <class TileIter>
  KVIT_DEVICE void Prefetch(const TileIter& tile_iter, int max_s, int stage) const {
    Prefetch(tile_iter, 0, Map::kIterS, max_s, stage);
  }

  template <class TileIter>
  KVIT_DEVICE void Prefetch(const TileIter& tile_iter, int s_begin, int s_count, int max_s, int stage) const {
    constexpr int kBytes = sizeof(AccessType);
    KVIT_UNROLL
    for (int i = 0; i < Map::kIterS; ++i) {
      if (i < s_begin || i >= s_begin + s_count) continue;
      const Coord row = Base::At(i, 0);
      const char* source = tile_iter.template OffsetPtr<Index>(row.s, 0);
      const bool valid = source != nullptr && row.s < max_s;
      KVIT_UNROLL
      for (int j = 0; j < Map::kIterC; ++j) {
        const Coord at = Base::At(i, j);
        if (!Map::Covers(at)) continue;
        const int first = int(BytesOf<T>(at.c));
        const int bytes = valid ? Max(0, Min(kBytes, row_bytes_ - first)) : 0;
        CopyAsyncPart<kBytes>(Base::smem_.Address(at.s, at.c, stage * SmemLayout::kSize),
                              bytes > 0 ? source + first : nullptr, bytes);
      }
    }
  }

 private:
  int row_bytes_ = int(BytesOf<T>(Map::kDimC));
};

}  // namespace kvit

#endif  // KVIT_ITERATOR_SM80_MOST_CUH
