// S^T = K Q^T for one warp: 16 tokens times the query rows of a row tile, K as its codec stores it.
#ifndef KVIT_ATTENTION_KEY_PRODUCT_CUH
#define KVIT_ATTENTION_KEY_PRODUCT_CUH

#include "attention/key_operands.cuh"
#include "attention/score.cuh"
#include "core/constants.cuh"
#include "core/types.h"
#include "mma/m16n8k16.cuh"
#include "platform/platform.cuh"
#include "quant/codec.cuh"

namespace kvit {

/// The queries are in registers, as B operands of Q^T. HasFactors: rows' scores are scaled by factors of their own. Mma
/// makes the products: M16N8K16, or M16N8K8.
template <class T, class Codec, int HeadDim, int Rows, bool HasFactors = false, class Mma = M16N8K16>
class KeyProduct {
 public:
  static constexpr int kRowTiles = Rows / 8;

  /// Loads the queries; `address(row)` is null for rows that do not exist, and `width` says which channels they have. A
  /// score is `scale` times the product, times `factor(row)` of a row that exists. hadamard: of the keys, as KvitCache
  /// has it
  template <class Address, class Width, class Factor = NoFactor>
  KVIT_DEVICE void LoadQueries(Address&& address, int hadamard, const Width& width, float scale,
                               const Factor& factor = {}) {
    if constexpr (!kHasScales) scale_[0][0] = NotZero(scale);
    KVIT_UNROLL
    for (int n = 0; n < kRowTiles; ++n) {
      q_[n].Read(address(OperandRow(n)), hadamard, width);
      KVIT_UNROLL
      for (int j = 0; j < 2; ++j) {
        float of_row = scale;
        if constexpr (HasFactors) of_row *= factor(FragmentRow(n, j));
        if constexpr (Codec::kScaled) {  // from the lanes that hold a row of Q to those that hold it in S
          const int from = (LaneIndex() % 4 * 2 + j) * 4;
          scale_[n][j] = NotZero(of_row / Shuffle(q_[n].up, from) * Operands::kUnit);
          sum_[n][j] = Shuffle(q_[n].sum, from) / Operands::kUnit;
        } else if constexpr (HasFactors) {
          scale_[n][j] = NotZero(of_row);
        }
      }
    }
  }

  /// What scores come out divided by, of FragmentRow(n, j). Never 0.
  KVIT_DEVICE float Scale(int n, int j) const { return kHasScales ? scale_[n][j] : scale_[0][0]; }

  /// `key(s, c)` is the shared-memory address of token s of the step from channel c on, `parameters(s)` that of the 4
  /// bytes of token s, where the codec has any.
  template <class Key, class Parameters>
  KVIT_DEVICE void Scores(float (&s)[kRowTiles][4], Key&& key, Parameters&& parameters) const {
    KVIT_UNROLL
    for (int n = 0; n < kRowTiles; ++n) s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0.0f;
    KVIT_UNROLL
    for (int load = 0; load < Operands::kLoads; ++load) {
      uint32_t k[4];
      Operands::Load(k, key, load);
      ForEachConstant<Operands::kOperands>([&](auto operand) {
        uint32_t a[4];
        Operands::template Expand<decltype(operand)::value>(a, k);
        KVIT_UNROLL
        for (int n = 0; n < kRowTiles; ++n) {
          Mma::template Multiply<typename Operands::Weight>(s[n], a, q_[n].word[load][decltype(operand)::value]);
        }
      });
    }
    if constexpr (Codec::kScaled) {
      KVIT_UNROLL
      for (int i = 0; i < 4; i += 2) {
        const ScaleZero p = Codec::template Parameters<T>(LoadShared<uint32_t>(parameters(FragmentToken(i))));
        KVIT_UNROLL
        for (int n = 0; n < kRowTiles; ++n) {
          KVIT_UNROLL
          for (int j = 0; j < 2; ++j) {
            s[n][i + j] *= p.scale;
            if constexpr (Codec::kHasZero) s[n][i + j] = fmaf(p.zero, sum_[n][j], s[n][i + j]);
          }
        }
      }
    }
  }

 private:
  using Operands = KeyOperands<T, Codec, HeadDim>;
  static constexpr bool kHasScales = Codec::kScaled || HasFactors;  // a row has its own

  typename Operands::Query q_[kRowTiles];
  float scale_[kRowTiles][2];  // of the rows' scores; [0][0] of all where rows have none of their own
  float sum_[kRowTiles][2];    // of the rows of Q, in the units of the products, where the codec has zeros
};

}  // namespace kvit

#endif  // KVIT_ATTENTION_KEY_PRODUCT_CUH
