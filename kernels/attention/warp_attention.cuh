// One warp's attention over its tokens of each tile: scores, online softmax and weighted values, in registers.
#ifndef KVIT_ATTENTION_WARP_ATTENTION_CUH
#define KVIT_ATTENTION_WARP_ATTENTION_CUH

#include <math.h>

#include "attention/key_product.cuh"
#include "attention/value_product.cuh"
#include "core/types.h"
#include "platform/platform.cuh"

namespace kvit {

/// Computes both products transposed, so that query rows take the narrow side (n = 8) of the matrix instruction and a
/// group of 8 query heads reads each key and value once:
///
///   S^T [16 tokens, 8 rows] = K [16 tokens, 16 channels] Q^T      O^T [16 channels, 8 rows] += V^T P^T
///
/// A lane holds rows lane % 4 * 2 and the next of every n-tile, in S, P and O alike, so the running maximum and sum of
/// a row sit beside the values that they scale.
///
/// With values v = s c + z, a token's weight in the product is w = p s, its weight in the softmax p, and p z is added
/// once per row: all three relative to the largest w so far, so that the f16 that carry w never overflow, whatever the
/// scales.
template <class T, class KeyCodec, class ValueCodec, int HeadDim, int Rows, int Tokens>
class WarpAttention {
 public:
  static constexpr int kTokens = Tokens;  // per step
  static constexpr int kBlocks = Tokens / 16;
  static constexpr int kRowTiles = Rows / 8;
  static_assert(Rows % 8 == 0 && Tokens % 16 == 0, "rows come in eights, tokens in sixteens");

  /// Begins a row tile; `address(row)` is null for rows that do not exist. Scores are scaled into log2 units.
  template <class Address>
  KVIT_DEVICE void Begin(Address&& address, float scale_log2) {
    keys_.LoadQueries(address, scale_log2);
    values_.Clear();
    KVIT_UNROLL
    for (int n = 0; n < kRowTiles; ++n) {
      KVIT_UNROLL
      for (int j = 0; j < 2; ++j) {
        max_[n][j] = -INFINITY;
        sum_[n][j] = zero_[n][j] = 0.0f;
      }
    }
  }

  /// Makes every output of this row tile NaN.
  KVIT_DEVICE void Poison() {
    KVIT_UNROLL
    for (int n = 0; n < kRowTiles; ++n) sum_[n][0] = sum_[n][1] = NAN;
  }

  /// One step. `key(s, c)` and `value(s, c)` give shared-memory addresses of token s from channel c on,
  /// `key_parameters(s)` and `value_parameters(s)` those of its parameters. Where `masked`, row r sees only the first
  /// visible(r) tokens.
  template <class Key, class Value, class KeyParameters, class ValueParameters, class Visible>
  KVIT_DEVICE void Step(Key&& key, KeyParameters&& key_parameters, Value&& value, ValueParameters&& value_parameters,
                        bool masked, Visible&& visible) {
    // Of the values of this lane's two tokens of a block.
    float log2_scale[kBlocks][2] = {}, scale_inverse[kBlocks][2] = {}, zero[kBlocks][2] = {};
    if constexpr (ValueCodec::kScaled) {
      KVIT_UNROLL
      for (int b = 0; b < kBlocks; ++b) {
        KVIT_UNROLL
        for (int t = 0; t < 2; ++t) {
          const ScaleZero v =
              ValueCodec::template Parameters<T>(LoadShared<uint32_t>(value_parameters(b * 16 + FragmentToken(2 * t))));
          log2_scale[b][t] = Log2(fmaxf(v.scale, kLeastScale));
          scale_inverse[b][t] = Exp2(-log2_scale[b][t]);
          zero[b][t] = v.zero;
        }
      }
    }

    float s[kBlocks][kRowTiles][4];  // log2 of a token's weight in the product: its score, and its value's scale
    KVIT_UNROLL
    for (int b = 0; b < kBlocks; ++b) {
      keys_.Scores(
          s[b], [&](int token, int c) { return key(b * 16 + token, c); },
          [&](int token) { return key_parameters(b * 16 + token); }, log2_scale[b]);
    }
    if (masked) {  // selects, so that whatever stands in a hidden score is gone
      KVIT_UNROLL
      for (int n = 0; n < kRowTiles; ++n) {
        KVIT_UNROLL
        for (int j = 0; j < 2; ++j) {
          const int end = visible(FragmentRow(n, j));
          KVIT_UNROLL
          for (int b = 0; b < kBlocks; ++b) {
            if (b * 16 + FragmentToken(0) >= end) s[b][n][j] = -INFINITY;
            if (b * 16 + FragmentToken(2) >= end) s[b][n][j + 2] = -INFINITY;
          }
        }
      }
    }
    float rescale[kRowTiles][2];
    bool is_new_max = false;
    KVIT_UNROLL
    for (int n = 0; n < kRowTiles; ++n) {
      KVIT_UNROLL
      for (int j = 0; j < 2; ++j) {
        float top = max_[n][j];
        KVIT_UNROLL
        for (int b = 0; b < kBlocks; ++b) {
          top = fmaxf(top, fmaxf(s[b][n][j], s[b][n][j + 2]));
        }
        KVIT_UNROLL
        for (int mask = 4; mask < 32; mask *= 2) top = fmaxf(top, ShuffleXor(top, mask));
        is_new_max = is_new_max || top != max_[n][j];
        rescale[n][j] = Exp2(max_[n][j] - (top == -INFINITY ? 0.0f : top));
        max_[n][j] = top;
      }
    }
    // Maxima settle early in a sequence: most steps have nothing to rescale.
    if (Ballot(is_new_max) != 0) {
      KVIT_UNROLL
      for (int n = 0; n < kRowTiles; ++n) {
        KVIT_UNROLL
        for (int j = 0; j < 2; ++j) {
          sum_[n][j] *= rescale[n][j];
          zero_[n][j] *= rescale[n][j];
          values_.Rescale(n, j, rescale[n][j]);
        }
      }
    }
    KVIT_UNROLL
    for (int b = 0; b < kBlocks; ++b) {
      uint32_t p[kRowTiles][2];
      KVIT_UNROLL
      for (int n = 0; n < kRowTiles; ++n) {
        float w[4];
        KVIT_UNROLL
        for (int j = 0; j < 2; ++j) {
          // Of a row that has seen nothing yet: exp2(-inf), not exp2(-inf + inf).
          const float base = max_[n][j] == -INFINITY ? 0.0f : max_[n][j];
          w[j] = Exp2(s[b][n][j] - base);
          w[j + 2] = Exp2(s[b][n][j + 2] - base);
          if constexpr (ValueCodec::kScaled) {
            const float p_low = w[j] * scale_inverse[b][0], p_high = w[j + 2] * scale_inverse[b][1];
            sum_[n][j] += p_low + p_high;
            if (ValueCodec::kHasZero) zero_[n][j] += p_low * zero[b][0] + p_high * zero[b][1];
          } else {
            sum_[n][j] += w[j] + w[j + 2];
          }
        }
        p[n][0] = TransposeMatrix(Pack2<typename Values::Weight>(w[0], w[1]));
        p[n][1] = TransposeMatrix(Pack2<typename Values::Weight>(w[2], w[3]));
      }
      values_.Add(p, [&](int token, int c) { return value(b * 16 + token, c); });
    }
  }

  /// Adds up the lanes' shares of the rows' sums.
  KVIT_DEVICE void Finish() {
    KVIT_UNROLL
    for (int n = 0; n < kRowTiles; ++n) {
      KVIT_UNROLL
      for (int j = 0; j < 2; ++j) {
        KVIT_UNROLL
        for (int mask = 4; mask < 32; mask *= 2) {
          sum_[n][j] += ShuffleXor(sum_[n][j], mask);
          if constexpr (ValueCodec::kHasZero) zero_[n][j] += ShuffleXor(zero_[n][j], mask);
        }
      }
    }
  }

  KVIT_DEVICE float Max(int n, int j) const { return max_[n][j]; }
  KVIT_DEVICE float Sum(int n, int j) const { return sum_[n][j]; }

  /// After Finish: calls store(n, j, channel, value) for each of this lane's outputs, not yet divided by the sum.
  template <class Store>
  KVIT_DEVICE void ForEachOutput(Store&& store) const {
    values_.ForEach([&](int n, int j, int channel, float value) { store(n, j, channel, value + zero_[n][j]); });
  }

 private:
  using Keys = KeyProduct<T, KeyCodec, HeadDim, Rows>;
  using Values = ValueProduct<T, ValueCodec, HeadDim, Rows>;
  static constexpr float kLeastScale = 0x1p-100f;  // keeps log2 of the scale of a constant row finite

  Keys keys_;
  Values values_;
  float max_[kRowTiles][2];   // largest log2(w) of the rows; the same in the eight lanes of a row
  float sum_[kRowTiles][2];   // sum of p over this lane's tokens
  float zero_[kRowTiles][2];  // sum of p z over this lane's tokens
};

}  // namespace kvit

#endif  // KVIT_ATTENTION_WARP_ATTENTION_CUH
