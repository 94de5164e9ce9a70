// One warp's attention over its tokens of each tile: scores, online softmax and weighted values, in registers.
#ifndef KVIT_ATTENTION_WARP_ATTENTION_CUH
#define KVIT_ATTENTION_WARP_ATTENTION_CUH

#include <math.h>

#include "abi/params.h"
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
template <class T, int HeadDim, int Rows>
class WarpAttention {
 public:
  static constexpr int kTokens = 16;  // per step
  static constexpr int kRowTiles = Rows / 8;
  static constexpr int kSteps = HeadDim / 16;  // along the channels
  static_assert(Rows % 8 == 0 && HeadDim % 16 == 0, "rows come in eights and channels in sixteens");

  /// Row (of the row tile) of value j (0 or 1) of n-tile n.
  static KVIT_DEVICE int Row(int n, int j) { return n * 8 + LaneIndex() % 4 * 2 + j; }

  /// Loads the queries of a row tile; `address(row)` is null for rows that do not exist.
  template <class Address>
  KVIT_DEVICE void LoadQueries(Address&& address) {
    KVIT_UNROLL
    for (int n = 0; n < kRowTiles; ++n) {
      const char* row = address(n * 8 + LaneIndex() / 4);
      KVIT_UNROLL
      for (int step = 0; step < kSteps; ++step) {
        KVIT_UNROLL
        for (int half = 0; half < 2; ++half) {
          const int channel = step * 16 + half * 8 + LaneIndex() % 4 * 2;
          q_[n][step][half] = row != nullptr ? LoadGlobalReadOnly<uint32_t>(row + channel * sizeof(T)) : 0u;
        }
      }
      KVIT_UNROLL
      for (int j = 0; j < 2; ++j) {
        max_[n][j] = -INFINITY;
        sum_[n][j] = 0.0f;
      }
      KVIT_UNROLL
      for (int step = 0; step < kSteps; ++step) {
        KVIT_UNROLL
        for (int i = 0; i < 4; ++i) o_[n][step][i] = 0.0f;
      }
    }
  }

  /// Makes every output of this row tile NaN.
  KVIT_DEVICE void Poison() {
    KVIT_UNROLL
    for (int n = 0; n < kRowTiles; ++n) sum_[n][0] = sum_[n][1] = NAN;
  }

  /// One step over 16 tokens: `key(s, c)` and `value(s, c)` give shared-memory addresses of 8 channels of token s of
  /// the step. Where `masked`, row r sees only the first visible(r) tokens of the step.
  template <class Key, class Value, class Visible>
  KVIT_DEVICE void Step(Key&& key, Value&& value, float scale_log2, bool masked, Visible&& visible) {
    const int lane = LaneIndex();
    float s[kRowTiles][4] = {};
    KVIT_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      uint32_t k[4];
      LoadMatrixX4(k, key(lane % 16, step * 16 + lane / 16 * 8));
      KVIT_UNROLL
      for (int n = 0; n < kRowTiles; ++n) MmaM16N8K16<T>(s[n], k, q_[n][step]);
    }

    uint32_t p[kRowTiles][2];
    KVIT_UNROLL
    for (int n = 0; n < kRowTiles; ++n) {
      KVIT_UNROLL
      for (int i = 0; i < 4; ++i) s[n][i] *= scale_log2;
      if (masked) {  // selects, so that whatever stands in a hidden score is gone
        KVIT_UNROLL
        for (int i = 0; i < 4; ++i) {
          if (lane / 4 + i / 2 * 8 >= visible(Row(n, i % 2))) s[n][i] = -INFINITY;
        }
      }
      KVIT_UNROLL
      for (int j = 0; j < 2; ++j) {
        float top = fmaxf(max_[n][j], fmaxf(s[n][j], s[n][j + 2]));
        KVIT_UNROLL
        for (int mask = 4; mask < 32; mask *= 2) top = fmaxf(top, ShuffleXor(top, mask));
        const float base = top == -INFINITY ? 0.0f : top;  // a row that has seen nothing yet: exp2(-inf), not NaN
        const float rescale = Exp2(max_[n][j] - base);
        max_[n][j] = top;
        s[n][j] = Exp2(s[n][j] - base);
        s[n][j + 2] = Exp2(s[n][j + 2] - base);
        sum_[n][j] =
            sum_[n][j] * rescale + (s[n][j] + s[n][j + 2]);  // of this lane's tokens; lanes are added at the end
        KVIT_UNROLL
        for (int step = 0; step < kSteps; ++step) {
          o_[n][step][j] *= rescale;
          o_[n][step][j + 2] *= rescale;
        }
      }
      p[n][0] = TransposeMatrix(Pack2<T>(s[n][0], s[n][1]));
      p[n][1] = TransposeMatrix(Pack2<T>(s[n][2], s[n][3]));
    }

    KVIT_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      uint32_t v[4];
      LoadMatrixX4Transposed(v, value(lane / 16 * 8 + lane % 8, step * 16 + lane / 8 % 2 * 8));
      KVIT_UNROLL
      for (int n = 0; n < kRowTiles; ++n) MmaM16N8K16<T>(o_[n][step], v, p[n]);
    }
  }

  /// Adds up the lanes' shares of the rows' sums.
  KVIT_DEVICE void Finish() {
    KVIT_UNROLL
    for (int n = 0; n < kRowTiles; ++n) {
      KVIT_UNROLL
      for (int j = 0; j < 2; ++j) {
        KVIT_UNROLL
        for (int mask = 4; mask < 32; mask *= 2) sum_[n][j] += ShuffleXor(sum_[n][j], mask);
      }
    }
  }

  KVIT_DEVICE float Max(int n, int j) const { return max_[n][j]; }
  KVIT_DEVICE float Sum(int n, int j) const { return sum_[n][j]; }

  /// Calls store(row, channel, value) for each of this lane's outputs, not yet divided by the sum.
  template <class Store>
  KVIT_DEVICE void ForEachOutput(Store&& store) const {
    KVIT_UNROLL
    for (int n = 0; n < kRowTiles; ++n) {
      KVIT_UNROLL
      for (int step = 0; step < kSteps; ++step) {
        KVIT_UNROLL
        for (int i = 0; i < 4; ++i) store(n, i % 2, step * 16 + i / 2 * 8 + LaneIndex() / 4, o_[n][step][i]);
      }
    }
  }

 private:
  uint32_t q_[kRowTiles][kSteps][2];  // B fragments of Q^T
  float o_[kRowTiles][kSteps][4];     // C fragments of O^T
  float max_[kRowTiles][2];           // of the rows' scores, in log2 units; the same in the eight lanes of a row
  float sum_[kRowTiles][2];           // of this lane's weights
};

}  // namespace kvit

#endif  // KVIT_ATTENTION_WARP_ATTENTION_CUH
