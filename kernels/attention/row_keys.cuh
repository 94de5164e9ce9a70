// S = Q K^T for one warp that has query rows to itself: 16 of them a row tile, times tokens that all warps share, K as
// its codec stores it.
#ifndef KVIT_ATTENTION_ROW_KEYS_CUH
#define KVIT_ATTENTION_ROW_KEYS_CUH

#include "attention/block_fragment.cuh"
#include "attention/key_operands.cuh"
#include "core/constants.cuh"
#include "core/types.h"
#include "mma/m16n8k16.cuh"
#include "platform/platform.cuh"

namespace kvit {

/// The queries are in shared memory, as A operands, since registers are for outputs: 16 bytes a lane and operand.
/// HasFactors: rows' scores are scaled by factors of their own. Mma makes the products: M16N8K16, or M16N8K8.
template <class T, class Codec, int HeadDim, int RowTiles, bool HasFactors = false, class Mma = M16N8K16>
class RowKeys {
  using Operands = KeyOperands<T, Codec, HeadDim>;
  static constexpr int kOperands = Operands::kOperands;
  static constexpr bool kHasScales = Codec::kScaled || HasFactors;  // a row has its own

 public:
  struct Shared {
    Words<16> queries[Operands::kLoads][kOperands][RowTiles][32];
  };

  KVIT_DEVICE explicit RowKeys(Shared& shared) : shared_(shared) {}

  /// `address(row)` of the warp's rows, null for rows that do not exist. A score is `scale` times the product, times
  /// `factor(row)`. hadamard: of the keys, as KvitCache has it
  template <class Address, class Factor>
  KVIT_DEVICE void LoadQueries(Address&& address, int hadamard, float scale, const Factor& factor) {
    if constexpr (!kHasScales) scale_[0][0] = NotZero(scale);
    SyncWarp();  // all lanes have read the queries before
    KVIT_UNROLL
    for (int m = 0; m < RowTiles; ++m) {
      typename Operands::Query query[2];
      KVIT_UNROLL
      for (int h = 0; h < 2; ++h) {
        const int row = m * 16 + h * 8 + LaneIndex() / 4;
        query[h].Read(address(row), hadamard);
        float of_row = scale;
        if constexpr (HasFactors) of_row *= factor(row);
        if constexpr (Codec::kScaled) {
          scale_[m][h] = NotZero(of_row / query[h].up * Operands::kUnit);
          sum_[m][h] = query[h].sum / Operands::kUnit;
        } else if constexpr (HasFactors) {
          scale_[m][h] = NotZero(of_row);
        }
      }
      KVIT_UNROLL
      for (int load = 0; load < Operands::kLoads; ++load) {
        KVIT_UNROLL
        for (int i = 0; i < kOperands; ++i) {
          const auto &low = query[0].word[load][i], &high = query[1].word[load][i];
          StoreShared(&shared_.queries[load][i][m][LaneIndex()], Words<16>{{low[0], high[0], low[1], high[1]}});
        }
      }
    }
    SyncWarp();
  }

  /// What scores of row h * 8 + lane / 4 of row tile m come out divided by. Never 0.
  KVIT_DEVICE float Scale(int m, int h) const { return kHasScales ? scale_[m][h] : scale_[0][0]; }

  /// Of all blocks of 16 tokens of a step; step.Key and step.KeyParameters as RowAttention::Step has them.
  template <int Blocks, class Step>
  KVIT_DEVICE void Scores(BlockFragment (&s)[Blocks][RowTiles], const Step& step) const {
    KVIT_UNROLL
    for (int b = 0; b < Blocks; ++b) {
      KVIT_UNROLL
      for (int m = 0; m < RowTiles; ++m) {
        KVIT_UNROLL
        for (int i = 0; i < 8; ++i) s[b][m][i / 4][i % 4] = 0.0f;
      }
    }
    KVIT_UNROLL
    for (int load = 0; load < Operands::kLoads; ++load) {
      uint32_t q[kOperands][RowTiles][4];
      KVIT_UNROLL
      for (int i = 0; i < kOperands * RowTiles; ++i) {
        const auto words = LoadShared<Words<16>>(&shared_.queries[load][i / RowTiles][i % RowTiles][LaneIndex()]);
        KVIT_UNROLL
        for (int w = 0; w < 4; ++w) q[i / RowTiles][i % RowTiles][w] = words.word[w];
      }
      KVIT_UNROLL
      for (int b = 0; b < Blocks; ++b) {
        uint32_t k[4];
        Operands::Load(k, [&](int token, int c) { return step.Key(b * 16 + token, c); }, load);
        ForEachConstant<kOperands>([&](auto operand) {
          uint32_t a[4];
          Operands::template Expand<decltype(operand)::value>(a, k);
          KVIT_UNROLL
          for (int m = 0; m < RowTiles; ++m) {
            MmaStraight<Mma, typename Operands::Weight>(s[b][m], q[decltype(operand)::value][m], a);
          }
        });
      }
    }
    if constexpr (Codec::kScaled) Scale(s, [&](int token) { return step.KeyParameters(token); });
  }

 private:
  // Each token's parameters meet its scores.
  template <int Blocks, class Parameters>
  KVIT_DEVICE void Scale(BlockFragment (&s)[Blocks][RowTiles], Parameters&& parameters) const {
    KVIT_UNROLL
    for (int i = 0; i < Blocks * 4; ++i) {  // this lane's tokens: [block][half][j]
      const int b = i / 4, half = i / 2 % 2, j = i % 2;
      const int token = b * 16 + half * 8 + LaneIndex() % 4 * 2 + j;
      const ScaleZero p = Codec::template Parameters<T>(LoadShared<uint32_t>(parameters(token)));
      KVIT_UNROLL
      for (int m = 0; m < RowTiles; ++m) {
        KVIT_UNROLL
        for (int h = 0; h < 2; ++h) {
          float& score = s[b][m][half][h * 2 + j];
          score *= p.scale;
          if constexpr (Codec::kHasZero) score = fmaf(p.zero, sum_[m][h], score);
        }
      }
    }
  }

  Shared& shared_;
  float scale_[RowTiles][2];  // of the rows' scores; [0][0] of all where rows have none of their own
  float sum_[RowTiles][2];    // of the rows of Q, in the units of the products, where the codec has zeros
};

}  // namespace kvit

#endif  // KVIT_ATTENTION_ROW_KEYS_CUH
