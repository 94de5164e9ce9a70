// S = Q K^T and O += P V by warp groups of Hopper's matrix units: 16 rows for each of four warps, K and V as TMA leaves
// them in shared memory.
#ifndef KVIT_ATTENTION_GROUP_PRODUCTS_CUH
#define KVIT_ATTENTION_GROUP_PRODUCTS_CUH

#include "attention/key_operands.cuh"
#include "attention/row_products.cuh"
#include "platform/platform.cuh"

namespace kvit {

/// 16-bit tiles only. Queries are in registers, as A operands. Scores come back when the products have ended.
template <class T, int HeadDim>
class GroupKeys {
  using Operands = KeyOperands<T, Plain, HeadDim>;

 public:
  struct Shared {};

  KVIT_DEVICE explicit GroupKeys(Shared&) {}

  template <class Address>
  KVIT_DEVICE void LoadQueries(Address&& address, float scale) {
    scale_ = NotZero(scale);
    typename Operands::Query query[2];
    KVIT_UNROLL
    for (int h = 0; h < 2; ++h) query[h].Read(address(h * 8 + LaneIndex() / 4));
    KVIT_UNROLL
    for (int load = 0; load < Operands::kLoads; ++load) {
      KVIT_UNROLL
      for (int i = 0; i < 4; ++i) q_[load][i] = query[i % 2].word[load][0][i / 2];
    }
  }
  KVIT_DEVICE float Scale(int, int) const { return scale_; }

  /// step.KeyTile() is where the tile lies: [chunk of 64 channels][token][128 bytes].
  template <int Blocks, class Step>
  KVIT_DEVICE void Scores(BlockFragment (&s)[Blocks][1], const Step& step) const {
    float (&outputs)[Blocks * 8] = reinterpret_cast<float (&)[Blocks * 8]>(s);
    WgmmaFence();
    KVIT_UNROLL
    for (int load = 0; load < Operands::kLoads; ++load) {
      const char* const base = step.KeyTile() + load / 4 * Step::kChunkBytes + load % 4 * 32;
      IssueWgmma<T, false>(outputs, q_[load], SharedMatrix{base, 16, 1024}, load > 0);
    }
    WgmmaCommit();
    WgmmaWait<0>();
  }

 private:
  uint32_t q_[Operands::kLoads][4];
  float scale_;
};

/// Where a step hides something, its values are multiplied as RowValues does, from the same fragments.
template <class T, int HeadDim>
class GroupValues : public RowValues<T, Plain, HeadDim, 1> {
 public:
  /// step.ValueTile() as KeyTile.
  template <int Blocks, class Step>
  KVIT_DEVICE void AddAll(const uint32_t (&p)[Blocks][1][4], const Step& step) {
    float (&outputs)[HeadDim / 2] = reinterpret_cast<float (&)[HeadDim / 2]>(this->o_);
    WgmmaFence();
    KVIT_UNROLL
    for (int b = 0; b < Blocks; ++b) {
      const char* const base = step.ValueTile() + b * 16 * 128;
      IssueWgmma<T, true>(outputs, p[b][0], SharedMatrix{base, Step::kChunkBytes, 1024}, true);
    }
    WgmmaCommit();
    WgmmaWait<0>();
  }
};

}  // namespace kvit

#endif  // KVIT_ATTENTION_GROUP_PRODUCTS_CUH
