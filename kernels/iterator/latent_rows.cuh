// Loads tiles of 8-bit latent rows through registers, and saves them as numbers of 16 bits.
#ifndef KVIT_ITERATOR_LATENT_ROWS_CUH
#define KVIT_ITERATOR_LATENT_ROWS_CUH

#include <concepts>

#include "core/types.h"
#include "iterator/base.cuh"
#include "quant/latent_codec.cuh"
#include "quant/row_codec.cuh"

namespace kvit {

/// Rows of pool 0, their scales in pool 2. Each channel is code * scale in float32, rounded to T once.
template <class T, LatentCodec Codec, class Map, class SmemLayout>
class LatentRowsIterator : public BaseGmemIterator<T, Map, SmemLayout> {
 public:
  using Base = BaseGmemIterator<T, Map, SmemLayout>;
  using Base::Base;
  using typename Base::AccessType;
  static_assert(std::same_as<T, Bfloat16>, "rotary channels are stored in bfloat16");
  static_assert(Map::kAccessC == 8 && !Map::kPartialC && Codec::kCodes % Map::kDeltaC == 0,
                "an access is of eight channels, and an access of all lanes of a row is of codes or of none");

  /// Brings the tile into ring slot `stage`: the warp may read it after a SyncWarp. Rows that the tile iterator does
  /// not have, and rows at or past `max_s`, become zeros. All lanes of a warp call together.
  template <class TileIter>
  KVIT_DEVICE void Prefetch(const TileIter& tile_iter, int max_s, int stage) const {
    KVIT_ROLLED  // one row under way at a time: more would leave outputs no registers
        for (int i = 0; i < Map::kIterS; ++i) {
      const Coord row = Base::At(i, 0);
      const char* codes = tile_iter.template OffsetPtr<0>(row.s, 0);
      const char* scales = tile_iter.template OffsetPtr<2>(row.s, 0);
      const bool has_row = codes != nullptr && row.s < max_s;
      Stored stored = {};
      if (has_row) stored = Load(codes, scales, row.c);  // all of it is under way before any is widened
      KVIT_UNROLL
      for (int j = 0; j < Map::kIterC; ++j) {
        const Coord at = Base::At(i, j);
        const auto channels = BitCast<AccessType>(Widen(stored, j, at.c));  // zeros become zeros
        if (Map::Covers(at)) Base::smem_.Store(at.s, at.c, channels, stage * SmemLayout::kSize);
      }
    }
  }

 private:
  using Row = RowCodec<T, Float8E4M3>;
  static constexpr int kCodeAccesses = Codec::kCodes / Map::kDeltaC;
  static constexpr int kRotaryAccesses = Map::kIterC - kCodeAccesses;

  /// A lane's part of a row.
  struct Stored {
    typename Row::Data codes[kCodeAccesses];
    PackedVec8 rotary[kRotaryAccesses];
    typename Codec::Scales scales;
  };

  static KVIT_DEVICE Stored Load(const char* codes, const char* scales, int c) {
    Stored stored;
    stored.scales = LoadGlobalReadOnly<typename Codec::Scales>(scales);
    KVIT_UNROLL
    for (int j = 0; j < kCodeAccesses; ++j) {
      stored.codes[j] = LoadGlobalReadOnly<typename Row::Data>(codes + c + j * Map::kDeltaC);
    }
    KVIT_UNROLL
    for (int j = 0; j < kRotaryAccesses; ++j) {
      stored.rotary[j] =
          LoadGlobalReadOnly<PackedVec8>(codes + Codec::kRotaryByte + (c + j * Map::kDeltaC) * int(sizeof(T)));
    }
    return stored;
  }

  static KVIT_DEVICE PackedVec8 Widen(const Stored& stored, int j, int c) {
    if (j >= kCodeAccesses) return stored.rotary[j - kCodeAccesses];
    return Row::Decode(stored.codes[j], Codec::Scale(stored.scales, c));
  }
};

}  // namespace kvit

#endif  // KVIT_ITERATOR_LATENT_ROWS_CUH
