// Online softmax where a warp has query rows to itself: from scores in registers to the weights of their values.
#ifndef KVIT_ATTENTION_ROW_SOFTMAX_CUH
#define KVIT_ATTENTION_ROW_SOFTMAX_CUH

#include <math.h>

#include "attention/block_fragment.cuh"
#include "attention/score.cuh"
#include "attention/seen_tokens.cuh"
#include "attention/softmax_base.cuh"
#include "core/types.h"
#include "platform/platform.cuh"
#include "quant/value_weight.cuh"

namespace kvit {

/// Of RowTiles * 16 rows, over Tokens tokens a step. A lane holds rows lane / 4 and lane / 4 + 8 of every row tile, and
/// tokens lane % 4 * 2 and the next of every eight. Bases and weights are as WarpAttention has them: the bits of a row
/// depend on the row and on where its steps begin alone.
///
/// A step calls in this order, and whoever holds the outputs brings them along where a base moves:
///
///   Modify, where scores change    Hide, where the step hides something    Relate
///   Rebase, where that says so, and outputs times its factors    Exponentiate    Pack
///
/// `keys.Scale(m, h)` is what scores of a row come divided by; `of_value(i, token)` gives the parameters of the value
/// of a token, the i-th that a lane has of a step.
template <class T, class ValueCodec, class Weight, int RowTiles, int Tokens>
class RowSoftmax {
 public:
  static constexpr int kBlocks = Tokens / 16;
  static_assert(Tokens % 16 == 0, "tokens come in sixteens");
  using Scores = BlockFragment[kBlocks][RowTiles];
  using Weights = uint32_t[kBlocks][RowTiles][4];  // A fragments of P
  using PerRow = float[RowTiles][2];

  KVIT_DEVICE void Begin() {
    ForEachRow([&](int m, int h) {
      base_[m][h] = SoftmaxBase::kNone;
      sum_[m][h] = zero_[m][h] = 0.0f;
    });
  }

  /// Makes every output of this row tile NaN.
  KVIT_DEVICE void Poison() {
    ForEachRow([&](int m, int h) { sum_[m][h] = NAN; });
  }

  /// Selects, so that whatever stands in a hidden score is gone.
  template <class Keys, class Seen>
  static KVIT_DEVICE void Hide(Scores& score, const Keys& keys, const Seen& seen) {
    ForEachRow([&](int m, int h) {
      const float hidden = Hidden(keys.Scale(m, h));
      ForEachToken([&](int i, int) {
        if (!seen.Has(m, h, i)) At(score, m, h, i) = hidden;
      });
    });
  }

  /// Scores as a modifier changes them, in log2 units. rows.RowOf(modifier) is of this lane's row of the warp, and
  /// rows.ForEachPosition calls its body with (row) -> (token) -> where a key stands, as the row sees it.
  template <class Modifier, class Keys, class Rows>
  static KVIT_DEVICE void Modify(Scores& score, const Modifier& modifier, const Keys& keys, const Rows& rows) {
    const auto scale = [&](auto&& change) {
      ForEachRow([&](int m, int h) {
        ForEachToken([&](int i, int) { At(score, m, h, i) = change(At(score, m, h, i), keys.Scale(m, h)); });
      });
    };
    if (!modifier.Caps()) {
      scale([](float x, float unit) { return x * unit; });
    } else if (modifier.IsLow()) {
      scale([&](float x, float unit) { return modifier.CapLow(x, unit); });
    } else {
      scale([&](float x, float unit) { return modifier.Cap(x * unit); });
    }
    if (!modifier.HasDistances()) return;
    const auto mine = rows.RowOf(modifier);
    rows.WithPositions([&](auto&& positions) {
      ForEachRow([&](int m, int h) {
        const int row = m * 16 + h * 8 + LaneIndex() / 4;
        const typename Modifier::Row of_row = {Shuffle(mine.slope, row), Shuffle(mine.position, row)};
        const auto position = positions(row);
        ForEachToken([&](int i, int token) { At(score, m, h, i) -= modifier.Distance(of_row, position(token)); });
      });
    });
  }

  /// Scores in log2 units relative to their row's base, 0 where it has none yet, and the largest of each row that this
  /// lane has: of scores times V's scales, which a base follows. Whether it must for any row of the warp.
  template <class Keys, class OfValue>
  KVIT_DEVICE bool Relate(Scores& score, const Keys& keys, OfValue&& of_value, PerRow& top) const {
    ForEachRow([&](int m, int h) { top[m][h] = -INFINITY; });
    ForEachToken([&](int i, int token) {
      const float of_scale = ValueCodec::kScaled ? Log2(ValueWeight<ValueCodec>::InBase(of_value(i, token))) : 0.0f;
      ForEachRow([&](int m, int h) {
        float& s = At(score, m, h, i);
        s = fmaf(s, keys.Scale(m, h), HasNone(m, h) ? 0.0f : -base_[m][h]);
        top[m][h] = fmaxf(top[m][h], ValueCodec::kScaled ? s + of_scale : s);
      });
    });
    bool rises = false;
    ForEachRow([&](int m, int h) { rises |= top[m][h] > (HasNone(m, h) ? -INFINITY : SoftmaxBase::kMostRise); });
    return Ballot(rises) != 0;
  }

  /// All of it at once, where nothing is hidden, in the hope that no base has to move: scores become weights, some
  /// blocks after the others, and the rows' sums grow by them when all have. The bits are those of the other way.
  class Bold {
   public:
    KVIT_DEVICE explicit Bold(const RowSoftmax& rows) {
      ForEachRow([&](int m, int h) {
        sum_[m][h] = rows.sum_[m][h];
        zero_[m][h] = rows.zero_[m][h];
        top_[m][h] = 0u;
      });
    }

    /// The weights of blocks Begin to End - 1.
    template <int Begin, int End, class Keys, class OfValue>
    KVIT_DEVICE void Weigh(const RowSoftmax& rows, const Scores& score, const Keys& keys, OfValue&& of_value,
                           Weights& weights) {
      KVIT_UNROLL
      for (int i = Begin * 2; i < End * 2; ++i) {  // two neighbouring tokens
        ScaleZero v[2] = {};
        KVIT_UNROLL
        for (int j = 0; j < 2; ++j) {
          if constexpr (ValueCodec::kScaled) v[j] = of_value(2 * i + j, LaneToken(2 * i + j));
        }
        ForEachRow([&](int m, int h) {
          float w[2];
          KVIT_UNROLL
          for (int j = 0; j < 2; ++j) {
            const float s = score[i / 2][m][i % 2][h * 2 + j];
            w[j] = Exp2(fmaf(s, keys.Scale(m, h), -rows.base_[m][h]));  // infinite where the row has no base yet
            sum_[m][h] += w[j];
            if constexpr (kHasZero) zero_[m][h] = fmaf(w[j], v[j].zero, zero_[m][h]);
            if constexpr (ValueCodec::kScaled) w[j] *= v[j].scale;
          }
          const uint32_t packed = Pack2<Weight>(w[0], w[1]);
          top_[m][h] = MaxUnsigned2(top_[m][h], packed);
          weights[i / 2][m][i % 2 * 2 + h] = packed;
        });
      }
    }

    /// Whether no base has to move for any row of the warp; if not, or where weights are negative or NaN, all is as it
    /// was but the weights. counts_by_more: whether a token of V counts in a base by more than its scale.
    KVIT_DEVICE bool End(RowSoftmax& rows, bool counts_by_more) {
      const uint32_t most = Pack2<Weight>(SoftmaxBase::kMostWeight, SoftmaxBase::kMostWeight);
      bool is_more = counts_by_more;
      ForEachRow([&](int m, int h) { is_more |= MaxUnsigned2(top_[m][h], most) != most; });
      if (Ballot(is_more) != 0u) return false;
      ForEachRow([&](int m, int h) {
        rows.sum_[m][h] = sum_[m][h];
        rows.zero_[m][h] = zero_[m][h];
      });
      return true;
    }

   private:
    PerRow sum_, zero_;
    // Pairs of the largest weights as they are multiplied: what the rounding may hide is less than kLeastRise adds.
    // What is not negative has the order of its bits; NaN and negative weights count as more than any.
    uint32_t top_[RowTiles][2];
  };

  /// Brings the rows' bases up to the largest weight of a step, those that it is far above. Outputs are to be
  /// multiplied by `factor`.
  KVIT_DEVICE void Rebase(Scores& score, PerRow& top, PerRow& factor) {
    ForEachRow([&](int m, int h) {
      KVIT_UNROLL
      for (int mask = 1; mask < 4; mask *= 2) top[m][h] = fmaxf(top[m][h], ShuffleXor(top[m][h], mask));
      const bool has_none = HasNone(m, h);
      const bool rises = top[m][h] > (has_none ? -INFINITY : SoftmaxBase::kLeastRise);
      const float rise = rises ? top[m][h] : 0.0f, old = has_none ? 0.0f : base_[m][h];
      ForEachToken([&](int i, int) { At(score, m, h, i) -= rise; });
      if (rises) base_[m][h] = old + rise;
      factor[m][h] = has_none ? 1.0f : Exp2(-rise);  // a row without a base has nothing to scale
      if constexpr (ValueCodec::kScaled) {           // by halves: a p of 2^104 may meet a factor that no float holds
        const float half = has_none ? 1.0f : Exp2(rise * -0.5f);
        sum_[m][h] = sum_[m][h] * half * half;
        if constexpr (kHasZero) zero_[m][h] = zero_[m][h] * half * half;
      } else {
        sum_[m][h] *= factor[m][h];
      }
    });
  }

  /// Scores become weights, and this lane's shares of the rows' sums grow by them.
  template <class OfValue, class Seen>
  KVIT_DEVICE void Exponentiate(Scores& score, OfValue&& of_value, const Seen& seen) {
    ForEachToken([&](int i, int token) {
      ScaleZero v = {};
      if constexpr (ValueCodec::kScaled) v = of_value(i, token);
      ForEachRow([&](int m, int h) {
        float& w = At(score, m, h, i);
        w = Exp2(w);
        sum_[m][h] += w;
        if constexpr (ValueCodec::kScaled) {  // a weight of 0 is not enough where parameters may be infinite
          const bool has = seen.Has(m, h, i);
          if constexpr (kHasZero) zero_[m][h] = has ? fmaf(w, v.zero, zero_[m][h]) : zero_[m][h];
          w = has ? w * v.scale : 0.0f;
        }
      });
    });
  }

  /// Weights as the product of values takes them.
  static KVIT_DEVICE void Pack(const Scores& score, Weights& weights) {
    KVIT_UNROLL
    for (int i = 0; i < kBlocks * 2; ++i) {
      ForEachRow([&](int m, int h) {
        const float* const w = &score[i / 2][m][i % 2][h * 2];
        weights[i / 2][m][i % 2 * 2 + h] = Pack2<Weight>(w[0], w[1]);
      });
    }
  }

  /// Adds up the lanes' shares of the rows' sums. rescale(m, h, factor): of outputs.
  template <class Rescale>
  KVIT_DEVICE void Finish(Rescale&& rescale) {
    ForEachRow([&](int m, int h) {
      KVIT_UNROLL
      for (int mask = 1; mask < 4; mask *= 2) {
        sum_[m][h] += ShuffleXor(sum_[m][h], mask);
        if constexpr (kHasZero) zero_[m][h] += ShuffleXor(zero_[m][h], mask);
      }
      if constexpr (ValueCodec::kScaled) {
        const int excess = SoftmaxBase::Excess(sum_[m][h]);
        if (excess == 0) return;
        const float down = SoftmaxBase::PowerOfTwo(-excess);
        base_[m][h] += float(excess);
        sum_[m][h] *= down;
        if constexpr (kHasZero) zero_[m][h] *= down;
        rescale(m, h, down);
      }
    });
  }

  /// After Finish: what a row is relative to, in log2 units, -inf where it saw no key; its sum; and what all of its
  /// outputs lack.
  KVIT_DEVICE float Base(int m, int h) const { return HasNone(m, h) ? -INFINITY : base_[m][h]; }
  KVIT_DEVICE float Sum(int m, int h) const { return sum_[m][h]; }
  KVIT_DEVICE float Zero(int m, int h) const { return kHasZero ? zero_[m][h] : 0.0f; }
  static constexpr bool kHasZero = ValueCodec::kScaled && ValueCodec::kHasZero;

  /// Calls body(m, h) for each of this lane's rows: row h * 8 + lane / 4 of row tile m.
  template <class Body>
  static KVIT_DEVICE void ForEachRow(Body&& body) {
    KVIT_UNROLL
    for (int m = 0; m < RowTiles; ++m) {
      KVIT_UNROLL
      for (int h = 0; h < 2; ++h) body(m, h);
    }
  }

 private:
  // Calls body(i, token) for this lane's tokens of a step.
  template <class Body>
  static KVIT_DEVICE void ForEachToken(Body&& body) {
    KVIT_UNROLL
    for (int i = 0; i < kBlocks * 4; ++i) body(i, LaneToken(i));
  }
  // The score of the i-th of them.
  static KVIT_DEVICE float& At(Scores& score, int m, int h, int i) { return score[i / 4][m][i / 2 % 2][h * 2 + i % 2]; }

  KVIT_DEVICE bool HasNone(int m, int h) const { return base_[m][h] == SoftmaxBase::kNone; }

  PerRow base_;  // log2 of the w that counts as 1; the same in the four lanes of a row
  PerRow sum_;   // of p over this lane's tokens
  PerRow zero_;  // of p z over this lane's tokens
};

}  // namespace kvit

#endif  // KVIT_ATTENTION_ROW_SOFTMAX_CUH
