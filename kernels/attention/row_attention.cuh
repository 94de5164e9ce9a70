// One warp's attention where it has query rows to itself: scores, online softmax and weighted values, in registers.
#ifndef KVIT_ATTENTION_ROW_ATTENTION_CUH
#define KVIT_ATTENTION_ROW_ATTENTION_CUH

#include "abi/params.h"
#include "attention/masked_values.cuh"
#include "attention/row_keys.cuh"
#include "attention/row_softmax.cuh"
#include "attention/row_values.cuh"
#include "core/array.cuh"
#include "platform/platform.cuh"

namespace kvit {

/// Attention of RowTiles * 16 query rows to Tokens tokens a step. Computes straight:
///
///   S [16 rows, 16 tokens] = Q K^T      O [16 rows, 16 channels] += P V
///
/// A lane holds rows lane / 4 and lane / 4 + 8 of every row tile, in S, P and O alike, and P goes from one product to
/// the other in the registers in which it came.
template <class T, class KeyCodec, class ValueCodec, class Dims, int RowTiles, int Tokens, class Score,
          class Mma = M16N8K16>
class RowAttention {
  using Keys = RowKeys<T, KeyCodec, Dims::kKey, RowTiles, !Score::kIsIdentity, Mma>;
  using Values = RowValues<T, ValueCodec, Dims::kValue, RowTiles, Mma>;
  using Softmax = RowSoftmax<T, ValueCodec, typename Values::Weight, RowTiles, Tokens>;
  static constexpr int kBlocks = Softmax::kBlocks;

 public:
  using Shared = typename Keys::Shared;

  KVIT_DEVICE RowAttention(Shared& shared, const Score& score) : score_(score), keys_(shared) {}

  /// Begins a row tile of a cache; `address(row)` is null for rows that do not exist. Scores are scaled into log2
  /// units, and times factor(row) where score modifiers have one.
  template <class Address, class Factor>
  KVIT_DEVICE void Begin(Address&& address, const KvitCache& cache, float scale_log2, const Factor& factor) {
    keys_.LoadQueries(address, cache.k_hadamard, scale_log2, factor);
    v_hadamard_ = cache.v_hadamard;
    values_.Clear();
    softmax_.Begin();
  }

  /// Makes every output of this row tile NaN.
  KVIT_DEVICE void Poison() { softmax_.Poison(); }

  /// One step, whose keys and values are there: Key(s, c) and Value(s, c) give shared-memory addresses of token s from
  /// channel c on, KeyParameters(s) and ValueParameters(s) those of its parameters; rows is what the warp's rows see of
  /// it, as CausalRows has it. Where is_masked, a bool or a Known, nothing that a row does not see reaches it,
  /// whatever it is.
  template <class View, class IsMasked>
  KVIT_DEVICE void Step(const View& step, IsMasked is_masked) {
    typename Softmax::Scores score;
    keys_.template Scores<kBlocks>(score, step);
    if constexpr (!Score::kIsIdentity) {
      if (score_.Changes()) Softmax::Modify(score, score_, keys_, step.rows);
    }
    const ScalesOf<Keys, bool> scales = {keys_, Changes(score_)};
    const auto seen = step.rows.OfLane(is_masked);
    if (is_masked) Softmax::Hide(score, scales, seen);
    const auto of_value = [&](int, int token) {
      ScaleZero v = {};
      if constexpr (ValueCodec::kScaled) {
        v = ValueCodec::template Parameters<T>(LoadShared<uint32_t>(step.ValueParameters(token)));
      }
      return v;
    };
    float top[RowTiles][2];
    if (softmax_.Relate(score, scales, of_value, top)) {  // rows settle early in a sequence
      float factor[RowTiles][2];
      softmax_.Rebase(score, top, factor);
      ForEachRow([&](int m, int h) { values_.Rescale(m, h, factor[m][h]); });
    }
    softmax_.Exponentiate(score, of_value, seen);
    typename Softmax::Weights weights;
    Softmax::Pack(score, weights);
    if (is_masked) {
      MaskedValues<Values, RowTiles, kBlocks>::Add(values_, step, weights);
    } else {
      values_.template AddAll<kBlocks>(weights, step);
    }
  }

  /// Adds up the lanes' shares of the rows' sums.
  KVIT_DEVICE void Finish() {
    softmax_.Finish([&](int m, int h, float factor) { values_.Rescale(m, h, factor); });
  }

  /// Calls body(m, h) for each of this lane's rows: row h * 8 + lane / 4 of row tile m.
  template <class Body>
  static KVIT_DEVICE void ForEachRow(Body&& body) {
    Softmax::ForEachRow(body);
  }

  /// After Finish: what such a row is relative to, in log2 units, -inf where it saw no key; its sum; and its outputs,
  /// as use(vector, values) for each four neighbouring channels that this lane has.
  KVIT_DEVICE float Base(int m, int h) const { return softmax_.Base(m, h); }
  KVIT_DEVICE float Sum(int m, int h) const { return softmax_.Sum(m, h); }
  template <class Use>
  KVIT_DEVICE void ForEachVector(int m, int h, Use&& use) const {
    if constexpr (Softmax::kHasZero) {
      values_.ForEachVector(m, h, softmax_.Zero(m, h), v_hadamard_, use);
    } else {
      values_.ForEachVector(m, h, use);
    }
  }

 private:
  Score score_;
  Keys keys_;
  Values values_;
  Softmax softmax_;
  int v_hadamard_ = 0;  // of the values, as KvitCache has it
};

}  // namespace kvit

#endif  // KVIT_ATTENTION_ROW_ATTENTION_CUH
