// One warp's attention over its tokens of each tile: scores, online softmax and weighted values, in registers.
#ifndef KVIT_ATTENTION_WARP_ATTENTION_CUH
#define KVIT_ATTENTION_WARP_ATTENTION_CUH

#include <math.h>

#include "attention/key_product.cuh"
#include "attention/softmax_base.cuh"
#include "attention/step_scores.cuh"
#include "attention/value_product.cuh"
#include "core/types.h"
#include "platform/platform.cuh"
#include "quant/value_weight.cuh"

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
/// once per row. All three are relative to a base of the row, which follows the largest w: not at every step, since
/// weights may grow for a while before f16 cannot hold them, but before they do, whatever the scales.
template <class T, class KeyCodec, class ValueCodec, class Dims, int Rows, int Tokens, class ScoreType,
          class Mma = M16N8K16>
class WarpAttention {
 public:
  using Score = ScoreType;
  static constexpr int kTokens = Tokens;  // per step
  static constexpr int kBlocks = Tokens / 16;
  static constexpr int kRowTiles = Rows / 8;
  static_assert(Rows % 8 == 0 && Tokens % 16 == 0, "rows come in eights, tokens in sixteens");

  KVIT_DEVICE explicit WarpAttention(const Score& score) : score_(score) {}

  /// Begins a row tile; `address(row)` is null for rows that do not exist, and a RowWidth says which channels they
  /// have. Scores are scaled into log2 units, and times factor(row) where score modifiers have one. hadamard: of the
  /// keys, as KvitCache has it
  template <class Address, class Width, class Factor = NoFactor>
  KVIT_DEVICE void Begin(Address&& address, int hadamard, const Width& width, float scale_log2,
                         const Factor& factor = {}) {
    keys_.LoadQueries(address, hadamard, width, scale_log2, factor);
    values_.Clear();
    ForEachRow([&](int n, int j) {
      base_[n][j] = SoftmaxBase::kNone;
      sum_[n][j] = zero_[n][j] = 0.0f;
    });
  }

  /// Makes every output of this row tile NaN.
  KVIT_DEVICE void Poison() {
    KVIT_UNROLL
    for (int n = 0; n < kRowTiles; ++n) sum_[n][0] = sum_[n][1] = NAN;
  }

  /// One step, the first of a row tile or another. Its keys are there, and its values once WaitForValues has returned;
  /// Key(s, c) and Value(s, c) give shared-memory addresses of token s from channel c on, KeyParameters(s) and
  /// ValueParameters(s) those of its parameters, first_key the place of its first token in the sequence. Where
  /// is_masked, the step is for the rows that Has(r) names, and nothing of it reaches others. If View::kHidesInMemory,
  /// HideParameters() comes first, row r sees End(r) tokens from the first on, and HideValues() zeroes what no row of
  /// the step sees. Else all rows of the step see the same tokens, those of which Sees(s). Where scores change,
  /// RowOf(score, r) is what the modifier must know of a row, and PositionOf(s) where token s stands.
  template <bool kIsMasked, class View>
  KVIT_DEVICE void Step(View& step, bool is_first) {
    Scores score;  // not yet times their row's scale
    KVIT_UNROLL
    for (int b = 0; b < kBlocks; ++b) {
      keys_.Scores(
          score[b], [&](int token, int c) { return step.Key(b * 16 + token, c); },
          [&](int token) { return step.KeyParameters(b * 16 + token); });
    }
    ModifyScores(score, score_, keys_, step);
    if constexpr (kIsMasked) {
      if constexpr (View::kHidesInMemory) step.HideParameters();
      HideScores(score, score_, keys_, step);
    }
    const auto of_value = [&](int b, int t) {  // of this lane's two tokens of a block
      ScaleZero v = {};
      if constexpr (ValueCodec::kScaled) {
        v = ValueCodec::template Parameters<T>(
            LoadShared<uint32_t>(step.ValueParameters(b * 16 + FragmentToken(2 * t))));
        if constexpr (kIsMasked && !View::kHidesInMemory) {
          if (!step.Sees(b * 16 + FragmentToken(2 * t))) v = {};
        }
      }
      return v;
    };

    // Rows settle early in a sequence: most steps weigh once.
    Weights weights;
    for (bool rebases = is_first;; rebases = true) {
      if (rebases) Rebase(score, of_value, is_first);
      const float top = Weigh(score, of_value, weights);
      if (rebases || Ballot(top > SoftmaxBase::kMostWeight) == 0) break;
    }
    if constexpr (kIsMasked) {
      AddMasked(step, weights);
    } else {
      Add(step, weights, [](int) { return KeepsAll{}; });
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
          if constexpr (kHasZero) zero_[n][j] += ShuffleXor(zero_[n][j], mask);
        }
        if constexpr (ValueCodec::kScaled) Normalise(n, j);
      }
    }
  }

  /// What the row's sum and outputs are relative to, in log2 units; -inf where it saw no key.
  KVIT_DEVICE float Base(int n, int j) const { return base_[n][j] == SoftmaxBase::kNone ? -INFINITY : base_[n][j]; }
  KVIT_DEVICE float Sum(int n, int j) const { return sum_[n][j]; }

  /// After Finish: calls store(n, j, channel, value) for each of this lane's outputs, not yet divided by the sum.
  template <class Store>
  KVIT_DEVICE void ForEachOutput(Store&& store) const {
    values_.ForEach(
        [&](int n, int j, int channel, float value) { store(n, j, channel, kHasZero ? value + zero_[n][j] : value); });
  }

 private:
  using Keys = KeyProduct<T, KeyCodec, Dims::kKey, Rows, !Score::kIsIdentity, Mma>;
  using Values = ValueProduct<T, ValueCodec, Dims::kValue, Rows, Mma>;
  static constexpr bool kHasZero = ValueCodec::kScaled && ValueCodec::kHasZero;
  using Scores = float[kBlocks][kRowTiles][4];

  KVIT_DEVICE void Normalise(int n, int j) {
    const int excess = SoftmaxBase::Excess(sum_[n][j]);
    if (excess == 0) return;
    const float down = SoftmaxBase::PowerOfTwo(-excess);
    base_[n][j] += float(excess);
    sum_[n][j] *= down;
    if constexpr (kHasZero) zero_[n][j] *= down;
    values_.Rescale(n, j, down);
  }

  // What a step makes of its scores.
  struct Weights {
    uint32_t of_product[kBlocks][kRowTiles][2];   // w: B fragments of P^T
    float sum[kRowTiles][2], zero[kRowTiles][2];  // of p and of p z, over this lane's tokens
  };

  template <class Body>
  static KVIT_DEVICE void ForEachRow(Body&& body) {
    KVIT_UNROLL
    for (int n = 0; n < kRowTiles; ++n) {
      KVIT_UNROLL
      for (int j = 0; j < 2; ++j) body(n, j);
    }
  }

  // What makes log2 units of a row's scores.
  KVIT_DEVICE float Scale(int n, int j) const { return ScaleOf(score_, keys_, n, j); }

  // keeps(b): what becomes of the values of a block on their way to the products
  template <class View, class Keeps>
  KVIT_DEVICE void Add(const View& step, const Weights& weights, Keeps&& keeps) {
    ForEachRow([&](int n, int j) {
      sum_[n][j] += weights.sum[n][j];
      if constexpr (kHasZero) zero_[n][j] += weights.zero[n][j];
    });
    step.WaitForValues();
    KVIT_UNROLL
    for (int b = 0; b < kBlocks; ++b) {
      values_.Add(weights.of_product[b], [&](int token, int c) { return step.Value(b * 16 + token, c); }, keeps(b));
    }
  }

  // Few steps hide anything: what those do besides stands apart, and costs the others nothing. Rows that a step is not
  // for keep what they have: a weight of zero is not enough, where a value may be infinite.
  template <class View>
  KVIT_DEVICE void AddMasked(const View& step, Weights& weights) {
    typename Values::Stash before;
    bool takes_part[kRowTiles][2];
    if (step.is_partial) {
      before.Store(values_);
      ForEachRow([&](int n, int j) {
        takes_part[n][j] = step.Has(FragmentRow(n, j));
        if (!takes_part[n][j]) weights.sum[n][j] = weights.zero[n][j] = 0.0f;
      });
    }
    if constexpr (View::kHidesInMemory) {
      step.HideValues();
      Add(step, weights, [](int) { return KeepsAll{}; });
    } else {
      Add(step, weights, [&](int b) { return KeepsSeen([&](int token) { return step.Sees(b * 16 + token); }); });
    }
    if (step.is_partial) before.Restore(values_, takes_part);
  }

  // The largest w of this lane; infinite where a base would follow something else than a w.
  template <class OfValue>
  KVIT_DEVICE float Weigh(const Scores& score, OfValue&& of_value, Weights& weights) const {
    float top = 0.0f, slack = INFINITY;
    ForEachRow([&](int n, int j) { weights.sum[n][j] = weights.zero[n][j] = 0.0f; });
    KVIT_UNROLL
    for (int b = 0; b < kBlocks; ++b) {
      const ScaleZero v[2] = {of_value(b, 0), of_value(b, 1)};
      if constexpr (ValueCodec::kScaled) {
        KVIT_UNROLL
        for (int t = 0; t < 2; ++t) slack = fminf(slack, ValueWeight<ValueCodec>::Slack(v[t]));
      }
      KVIT_UNROLL
      for (int n = 0; n < kRowTiles; ++n) {
        float w[4];
        KVIT_UNROLL
        for (int i = 0; i < 4; ++i) {
          const int j = i % 2;
          w[i] = Exp2(fmaf(score[b][n][i], Scale(n, j), -base_[n][j]));
          weights.sum[n][j] += w[i];
          if constexpr (kHasZero) weights.zero[n][j] = fmaf(w[i], v[i / 2].zero, weights.zero[n][j]);
          if constexpr (ValueCodec::kScaled) w[i] *= v[i / 2].scale;
          top = fmaxf(top, fabsf(w[i]));
        }
        weights.of_product[b][n][0] = TransposeMatrix(Pack2<typename Values::Weight>(w[0], w[1]));
        weights.of_product[b][n][1] = TransposeMatrix(Pack2<typename Values::Weight>(w[2], w[3]));
      }
    }
    return ValueCodec::kScaled && slack < ValueWeight<ValueCodec>::kLeastScale ? INFINITY : top;
  }

  // Brings the rows' bases up to the largest w of a step, those that it is far above.
  template <class OfValue>
  KVIT_DEVICE void Rebase(const Scores& score, OfValue&& of_value, bool is_first) {
    float base[kRowTiles][2];
    ForEachRow([&](int n, int j) { base[n][j] = base_[n][j]; });
    KVIT_UNROLL
    for (int b = 0; b < kBlocks; ++b) {
      KVIT_UNROLL
      for (int t = 0; t < 2; ++t) {
        const float of_scale = ValueCodec::kScaled ? Log2(ValueWeight<ValueCodec>::InBase(of_value(b, t))) : 0.0f;
        ForEachRow(
            [&](int n, int j) { base[n][j] = fmaxf(base[n][j], fmaf(score[b][n][j + 2 * t], Scale(n, j), of_scale)); });
      }
    }
    ForEachRow([&](int n, int j) {
      KVIT_UNROLL
      for (int mask = 4; mask < 32; mask *= 2) base[n][j] = fmaxf(base[n][j], ShuffleXor(base[n][j], mask));
      if (!is_first && base[n][j] <= base_[n][j] + SoftmaxBase::kLeastRise) base[n][j] = base_[n][j];
      const float rescale = Exp2(base_[n][j] - base[n][j]);
      if constexpr (ValueCodec::kScaled) {  // by halves: a p of 2^104 may meet a factor that no float holds
        const float half = Exp2((base_[n][j] - base[n][j]) * 0.5f);
        sum_[n][j] = sum_[n][j] * half * half;
        if constexpr (kHasZero) zero_[n][j] = zero_[n][j] * half * half;
      } else {
        sum_[n][j] *= rescale;
      }
      values_.Rescale(n, j, rescale);
      base_[n][j] = base[n][j];
    });
  }

  Score score_;
  Keys keys_;
  Values values_;
  float base_[kRowTiles][2];  // log2 of the w that counts as 1; the same in the eight lanes of a row
  float sum_[kRowTiles][2];   // of p over this lane's tokens
  float zero_[kRowTiles][2];  // of p z over this lane's tokens
};

}  // namespace kvit

#endif  // KVIT_ATTENTION_WARP_ATTENTION_CUH
