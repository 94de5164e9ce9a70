// The pieces of a tile of latent keys, each of which is asked for and left by itself.
#ifndef KVIT_LAYOUT_LATENT_PIECES_CUH
#define KVIT_LAYOUT_LATENT_PIECES_CUH

#include "core/macros.h"
#include "layout/tensor_layout.cuh"

namespace kvit {

/// Pieces of a tile [chunk of 64 channels][token][128 bytes], in the order in which they are left, and so asked for
/// again. Channels that are keys only are left first, when scores are there. Of those that are values too, each of two
/// warp groups has half, and leaves two chunks at a time:
///
///   piece           0    1      2      3      4           of 576 channels of which 512 are values
///   chunks          8    0, 1   4, 5   2, 3   6, 7
///   left by group   both 0      1      0      1
template <class Dims>
struct LatentPieces {
  static constexpr int kMostChunks = 2;                    // of a piece
  static constexpr int kGroupChunks = Dims::kValue / 128;  // of a group's values
  static constexpr int kCount = 1 + 2 * (kGroupChunks / kMostChunks);
  static_assert(kGroupChunks % kMostChunks == 0, "groups have whole pieces of values");
  static_assert(Dims::kKey > Dims::kValue && Dims::kKey <= Dims::kValue + 64 * kMostChunks,
                "keys beyond the values are one piece");

  static constexpr KVIT_HD ChunkRange Chunks(int piece) {
    if (piece == 0) return {Dims::kValue / 64, Dims::kKey / 64};
    const int first = (piece - 1) % 2 * kGroupChunks + (piece - 1) / 2 * kMostChunks;
    return {first, first + kMostChunks};
  }
};

}  // namespace kvit

#endif  // KVIT_LAYOUT_LATENT_PIECES_CUH
