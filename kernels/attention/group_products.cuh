// S = Q K^T and O += P V by warp groups of Hopper's matrix units: 16 rows for each of four warps, K and V as TMA leaves
// them in shared memory, and Q as they are.
#ifndef KVIT_ATTENTION_GROUP_PRODUCTS_CUH
#define KVIT_ATTENTION_GROUP_PRODUCTS_CUH

#include "attention/block_fragment.cuh"
#include "attention/row_values.cuh"
#include "layout/group_queries.cuh"
#include "platform/platform.cuh"

namespace kvit {

/// Begins the products of a group's queries and a tile of keys, [chunk of 64 channels][token][128 bytes]: s comes when
/// they have ended.
template <class T, int HeadDim, int Blocks>
KVIT_DEVICE void IssueScores(BlockFragment (&s)[Blocks][1], const GroupQueries<T, HeadDim>& queries, const char* tile) {
  float (&outputs)[Blocks * 8] = reinterpret_cast<float (&)[Blocks * 8]>(s);
  WgmmaFence();
  KVIT_UNROLL
  for (int k = 0; k < HeadDim / 16; ++k) {
    const SharedMatrix keys = {tile, k / 4 * (Blocks * 16 * 128) + k % 4 * 32, 16, 1024};
    IssueWgmma<T, false>(outputs, queries.Matrix(k), keys, k > 0);
  }
  WgmmaCommit();
}

/// Outputs of a warp group. Where a step hides what is infinite or NaN, that is multiplied as RowValues does it, in the
/// same registers.
///
/// Codec is Plain, or that of codes that have been widened.
template <class T, class Codec, int HeadDim>
class GroupValues : public RowValues<T, Codec, HeadDim, 1> {
  static constexpr int kWidth = Min(HeadDim, 128);  // channels of an instruction

 public:
  using typename RowValues<T, Codec, HeadDim, 1>::Weight;

  /// Begins to add p times a tile of values, which lies as tiles of keys do.
  template <int Blocks>
  KVIT_DEVICE void Issue(const uint32_t (&p)[Blocks][1][4], const char* tile) {
    constexpr int kChunkBytes = Blocks * 16 * 128;
    WgmmaFence();
    KVIT_UNROLL
    for (int part = 0; part < HeadDim / kWidth; ++part) {
      using Outputs = float[kWidth / 2];
      Outputs& outputs = reinterpret_cast<Outputs&>(this->o_[0][part * (kWidth / 16)]);
      KVIT_UNROLL
      for (int b = 0; b < Blocks; ++b) {
        const int offset = part * (kWidth / 64) * kChunkBytes + b * 16 * 128;
        IssueWgmma<Weight, true>(outputs, p[b][0], SharedMatrix{tile, offset, kChunkBytes, 1024}, true);
      }
    }
    WgmmaCommit();
  }
};

}  // namespace kvit

#endif  // KVIT_ATTENTION_GROUP_PRODUCTS_CUH
