// One warp's attention where it has query rows to itself: scores, online softmax and weighted values, in registers.
#ifndef KVIT_ATTENTION_ROW_ATTENTION_CUH
#define KVIT_ATTENTION_ROW_ATTENTION_CUH

#include <math.h>

#include "attention/row_products.cuh"
#include "attention/seen_tokens.cuh"
#include "attention/softmax_base.cuh"
#include "attention/value_weight.cuh"
#include "core/array.cuh"
#include "core/types.h"
#include "platform/platform.cuh"

namespace kvit {

/// Attention of RowTiles * 16 query rows to Tokens tokens a step. Computes straight:
///
///   S [16 rows, 16 tokens] = Q K^T      O [16 rows, 16 channels] += P V
///
/// A lane holds rows lane / 4 and lane / 4 + 8 of every row tile, in S, P and O alike, and P goes from one product to
/// the other in the registers in which it came. Bases and weights are as WarpAttention has them: the bits of a row
/// depend on the row and on where its steps begin alone.
///
/// Keys and Values are the products: RowKeys and RowValues (attention/row_products.cuh), or those of a warp group.
template <class T, class ValueCodec, class Keys, class Values, int RowTiles, int Tokens, class Score>
class RowAttention {
 public:
  static constexpr int kRows = RowTiles * 16;
  static constexpr int kBlocks = Tokens / 16;
  static_assert(Tokens % 16 == 0, "tokens come in sixteens");
  static_assert(Score::kIsIdentity, "scores are scaled, and nothing else");
  using Shared = typename Keys::Shared;

  KVIT_DEVICE explicit RowAttention(Shared& shared) : keys_(shared) {}

  /// Begins a row tile; `address(row)` is null for rows that do not exist. Scores are scaled into log2 units.
  template <class Address>
  KVIT_DEVICE void Begin(Address&& address, float scale_log2) {
    keys_.LoadQueries(address, scale_log2);
    values_.Clear();
    ForEachRow([&](int m, int h) {
      base_[m][h] = SoftmaxBase::kNone;
      sum_[m][h] = zero_[m][h] = 0.0f;
    });
  }

  /// Makes every output of this row tile NaN.
  KVIT_DEVICE void Poison() {
    ForEachRow([&](int m, int h) { sum_[m][h] = NAN; });
  }

  /// One step, whose keys are there, and its values once WaitForValues has returned: Key(s, c) and Value(s, c) give
  /// shared-memory addresses of token s from channel c on, KeyParameters(s) and ValueParameters(s) those of its
  /// parameters, first_key the place of its first token in the sequence. Where kIsMasked, row r of the warp sees the
  /// tokens Seen(r) of the step, and none outside SeenBySome(); nothing else of the step reaches the row, whatever it
  /// is.
  template <bool kIsMasked, class View>
  KVIT_DEVICE void Step(const View& step) {
    Scores score;
    keys_.template Scores<kBlocks>(score, step);
    SeenKeys<kIsMasked, RowTiles> seen;
    if constexpr (kIsMasked) {
      ForEachRow([&](int m, int h) { seen.range[m][h] = step.Seen(m * 16 + h * 8 + LaneIndex() / 4); });
      Hide(score, seen);
    }
    const auto of_value = [&](int token) {
      ScaleZero v = {};
      if constexpr (ValueCodec::kScaled) {
        v = ValueCodec::template Parameters<T>(LoadShared<uint32_t>(step.ValueParameters(token)));
      }
      return v;
    };
    float top[RowTiles][2];
    if (Ballot(Relate(score, of_value, top)) != 0) Rebase(score, top);  // rows settle early in a sequence
    uint32_t weights[kBlocks][RowTiles][4];                             // A fragments of P
    Weigh(score, of_value, seen, weights);
    step.WaitForValues();
    if constexpr (kIsMasked) {
      AddMasked(step, weights);
    } else {
      values_.template AddAll<kBlocks>(weights, step);
    }
  }

  /// Adds up the lanes' shares of the rows' sums.
  KVIT_DEVICE void Finish() {
    ForEachRow([&](int m, int h) {
      KVIT_UNROLL
      for (int mask = 1; mask < 4; mask *= 2) {
        sum_[m][h] += ShuffleXor(sum_[m][h], mask);
        if constexpr (kHasZero) zero_[m][h] += ShuffleXor(zero_[m][h], mask);
      }
      if constexpr (ValueCodec::kScaled) Normalise(m, h);
    });
  }

  /// Calls body(m, h) for each of this lane's rows: row h * 8 + lane / 4 of row tile m.
  template <class Body>
  static KVIT_DEVICE void ForEachRow(Body&& body) {
    KVIT_UNROLL
    for (int m = 0; m < RowTiles; ++m) {
      KVIT_UNROLL
      for (int h = 0; h < 2; ++h) body(m, h);
    }
  }

  /// After Finish: what such a row is relative to, in log2 units, -inf where it saw no key; its sum; and its outputs,
  /// as use(vector, values) for each four neighbouring channels that this lane has.
  KVIT_DEVICE float Base(int m, int h) const { return HasNone(m, h) ? -INFINITY : base_[m][h]; }
  KVIT_DEVICE float Sum(int m, int h) const { return sum_[m][h]; }
  template <class Use>
  KVIT_DEVICE void ForEachVector(int m, int h, Use&& use) const {
    values_.ForEachVector(m, h, [&](int vector, Array<float, 4> values) {
      if constexpr (kHasZero) {
        KVIT_UNROLL
        for (int i = 0; i < 4; ++i) values[i] += zero_[m][h];
      }
      use(vector, values);
    });
  }

 private:
  static constexpr bool kHasZero = ValueCodec::kScaled && ValueCodec::kHasZero;
  using Scores = BlockFragment[kBlocks][RowTiles];

  // Calls body(block, half, j, token) for this lane's tokens of a step.
  template <class Body>
  static KVIT_DEVICE void ForEachToken(Body&& body) {
    KVIT_UNROLL
    for (int i = 0; i < kBlocks * 4; ++i) {
      const int b = i / 4, half = i / 2 % 2, j = i % 2;
      body(b, half, j, b * 16 + half * 8 + LaneIndex() % 4 * 2 + j);
    }
  }

  KVIT_DEVICE void Normalise(int m, int h) {
    const int excess = SoftmaxBase::Excess(sum_[m][h]);
    if (excess == 0) return;
    const float down = SoftmaxBase::PowerOfTwo(-excess);
    base_[m][h] += float(excess);
    sum_[m][h] *= down;
    if constexpr (kHasZero) zero_[m][h] *= down;
    values_.Rescale(m, h, down);
  }

  // Selects, so that whatever stands in a hidden score is gone.
  template <class Seen>
  KVIT_DEVICE void Hide(Scores& score, const Seen& seen) const {
    ForEachRow([&](int m, int h) {
      const float hidden = keys_.Scale(m, h) < 0.0f ? INFINITY : -INFINITY;
      ForEachToken([&](int b, int half, int j, int token) {
        if (!seen.Has(m, h, token)) score[b][m][half][h * 2 + j] = hidden;
      });
    });
  }

  KVIT_DEVICE bool HasNone(int m, int h) const { return base_[m][h] == SoftmaxBase::kNone; }

  // Scores in log2 units relative to their row's base, 0 where it has none yet, and the largest of each row that this
  // lane has: of scores times V's scales, which a base follows. Whether it must for any.
  template <class OfValue>
  KVIT_DEVICE bool Relate(Scores& score, OfValue&& of_value, float (&top)[RowTiles][2]) const {
    ForEachRow([&](int m, int h) { top[m][h] = -INFINITY; });
    ForEachToken([&](int b, int half, int j, int token) {
      const float of_scale = ValueCodec::kScaled ? Log2(ValueWeight<ValueCodec>::InBase(of_value(token))) : 0.0f;
      ForEachRow([&](int m, int h) {
        float& s = score[b][m][half][h * 2 + j];
        s = fmaf(s, keys_.Scale(m, h), HasNone(m, h) ? 0.0f : -base_[m][h]);
        top[m][h] = fmaxf(top[m][h], ValueCodec::kScaled ? s + of_scale : s);
      });
    });
    bool rises = false;
    ForEachRow([&](int m, int h) { rises |= top[m][h] > (HasNone(m, h) ? -INFINITY : SoftmaxBase::kMostRise); });
    return rises;
  }

  // Brings the rows' bases up to the largest weight of a step, those that it is far above.
  KVIT_DEVICE void Rebase(Scores& score, float (&top)[RowTiles][2]) {
    ForEachRow([&](int m, int h) {
      KVIT_UNROLL
      for (int mask = 1; mask < 4; mask *= 2) top[m][h] = fmaxf(top[m][h], ShuffleXor(top[m][h], mask));
      const bool has_none = HasNone(m, h);
      const bool rises = top[m][h] > (has_none ? -INFINITY : SoftmaxBase::kLeastRise);
      const float rise = rises ? top[m][h] : 0.0f, old = has_none ? 0.0f : base_[m][h];
      ForEachToken([&](int b, int half, int j, int) { score[b][m][half][h * 2 + j] -= rise; });
      if (rises) base_[m][h] = old + rise;
      const float rescale = has_none ? 1.0f : Exp2(-rise);  // a row without a base has nothing to scale
      if constexpr (ValueCodec::kScaled) {  // by halves: a p of 2^104 may meet a factor that no float holds
        const float half = has_none ? 1.0f : Exp2(rise * -0.5f);
        sum_[m][h] = sum_[m][h] * half * half;
        if constexpr (kHasZero) zero_[m][h] = zero_[m][h] * half * half;
      } else {
        sum_[m][h] *= rescale;
      }
      values_.Rescale(m, h, rescale);
    });
  }

  // Weights of the product, and this lane's shares of the rows' sums.
  template <class OfValue, class Seen>
  KVIT_DEVICE void Weigh(const Scores& score, OfValue&& of_value, const Seen& seen,
                         uint32_t (&weights)[kBlocks][RowTiles][4]) {
    KVIT_UNROLL
    for (int i = 0; i < kBlocks * 2; ++i) {
      const int b = i / 2, half = i % 2, token = i * 8 + LaneIndex() % 4 * 2;
      const ScaleZero v[2] = {of_value(token), of_value(token + 1)};
      ForEachRow([&](int m, int h) {
        float w[2];
        KVIT_UNROLL
        for (int j = 0; j < 2; ++j) {
          w[j] = Exp2(score[b][m][half][h * 2 + j]);
          sum_[m][h] += w[j];
          if constexpr (ValueCodec::kScaled) {  // a weight of 0 is not enough where parameters may be infinite
            const bool has = seen.Has(m, h, token + j);
            if constexpr (kHasZero) zero_[m][h] = has ? fmaf(w[j], v[j].zero, zero_[m][h]) : zero_[m][h];
            w[j] = has ? w[j] * v[j].scale : 0.0f;
          }
        }
        weights[b][m][half * 2 + h] = Pack2<typename Values::Weight>(w[0], w[1]);
      });
    }
  }

  template <class View, class SeenOf>
  KVIT_DEVICE void Add(const View& step, const uint32_t (&weights)[kBlocks][RowTiles][4], SeenOf&& seen_of) {
    KVIT_UNROLL
    for (int b = 0; b < kBlocks; ++b) {
      values_.Add(weights[b], [&](int s, int c) { return step.Value(b * 16 + s, c); }, seen_of(b));
    }
  }

  // A weight of zero is not enough where a value may be infinite. Where one that some row sees is, each row is computed
  // with what it sees alone, and the others keep what they have; rows of one token see the same, and are one pass.
  template <class View>
  KVIT_DEVICE void AddMasked(const View& step, const uint32_t (&weights)[kBlocks][RowTiles][4]) {
    const auto seen_by_some = [&](int b) { return Keeps(step.SeenBySome(), b); };
    bool has_special = false;
    if constexpr (!Values::kIsFinite) {
      KVIT_UNROLL
      for (int b = 0; b < kBlocks; ++b) {
        has_special |= Values::HasSpecial([&](int s, int c) { return step.Value(b * 16 + s, c); }, seen_by_some(b));
      }
    }
    if (Ballot(has_special) == 0) {
      Add(step, weights, seen_by_some);
      return;
    }
    KVIT_ROLLED
    for (int row = 0, next = 0; row < kRows; row = next) {
      const KeyRange of_row = step.Seen(row);
      for (next = row + 1; next < kRows && IsSame(step.Seen(next), of_row);) ++next;
      if (of_row.begin >= of_row.end) continue;
      typename Values::Stash before;
      bool takes_part[RowTiles][2];
      ForEachRow([&](int m, int h) {
        const int mine = m * 16 + h * 8 + LaneIndex() / 4;
        takes_part[m][h] = row <= mine && mine < next;
      });
      before.Store(values_);
      Add(step, weights, [&](int b) { return Keeps(of_row, b); });
      before.Restore(values_, takes_part);
    }
  }
  // Of a block of 16 tokens of a step, those of a range.
  static KVIT_DEVICE KeepsSeen Keeps(const KeyRange& seen, int block) {
    return KeepsSeen([&](int s) { return seen.begin <= block * 16 + s && block * 16 + s < seen.end; });
  }
  static KVIT_DEVICE bool IsSame(const KeyRange& a, const KeyRange& b) { return a.begin == b.begin && a.end == b.end; }

  Keys keys_;
  Values values_;
  float base_[RowTiles][2];  // log2 of the w that counts as 1; the same in the four lanes of a row
  float sum_[RowTiles][2];   // of p over this lane's tokens
  float zero_[RowTiles][2];  // of p z over this lane's tokens
};

}  // namespace kvit

#endif  // KVIT_ATTENTION_ROW_ATTENTION_CUH
