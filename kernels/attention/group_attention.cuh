// A warp group's attention: the products of one tile run while another tile's scores become weights.
#ifndef KVIT_ATTENTION_GROUP_ATTENTION_CUH
#define KVIT_ATTENTION_GROUP_ATTENTION_CUH

#include <type_traits>

#include "attention/group_products.cuh"
#include "attention/key_operands.cuh"
#include "attention/masked_values.cuh"
#include "attention/row_softmax.cuh"
#include "attention/score.cuh"
#include "core/array.cuh"
#include "layout/tensor_layout.cuh"
#include "platform/platform.cuh"

namespace kvit {

/// Attention of 64 query rows, 16 a warp, to tiles of Tokens tokens. Registers hold the scores of one tile, the weights
/// of the one before and the outputs. Of tile t:
///
///   IssueScores(t)  IssueValues(t - 1)  ScoresLanded  Weigh(t)  AllLanded  Settle
///
///   tensor cores    S(t) = Q K(t)^T | O += P(t - 1) V(t - 1)            | S(t + 1) ...
///   other units                     | weights of S(t)                   | P(t), and O where a base has moved
///
/// All four warps call together.
template <class T, class Dims, int Tokens, class Score>
class GroupAttention {
  using Values = GroupValues<T, Dims::kValue>;
  using Softmax = RowSoftmax<T, Plain, T, 1, Tokens>;
  using Masked = MaskedValues<Values, 1, Softmax::kBlocks>;

 public:
  using Queries = GroupQueries<T, Dims::kKey>;

  /// Scores are scaled into log2 units.
  KVIT_DEVICE GroupAttention(float scale_log2, const Score& score) : score_(score), scale_(scale_log2) {}

  /// Begins a row tile. All values of the one before have been added; scores of the new one may be there already.
  /// Scores are times factor(row), of the warp's rows, where score modifiers have one.
  template <class Factor>
  KVIT_DEVICE void Begin(const Factor& factor) {
    if constexpr (!Score::kIsIdentity) {
      Softmax::ForEachRow([&](int, int h) { scale_.Set(h, factor(h * 8 + LaneIndex() / 4)); });
    }
    values_.Clear();
    softmax_.Begin();
  }

  /// Makes every output of this row tile NaN.
  KVIT_DEVICE void Poison() { softmax_.Poison(); }

  /// Tiles lie in shared memory as [chunk of 64 channels][token][128 bytes].
  KVIT_DEVICE void IssueScores(const Queries& queries, const char* tile) { kvit::IssueScores(scores_, queries, tile); }
  /// Scores are there; NumBehind groups of products, issued after them, need not be.
  template <int NumBehind>
  KVIT_DEVICE void ScoresLanded() const {
    WgmmaWait<NumBehind>();
  }

  /// Scores become weights, all but their type: registers of the weights before are still read. rows is what the warp's
  /// rows see of the tile, as CausalRows has it; is_masked, a Known, whether it hides something.
  template <class Rows, class IsMasked>
  KVIT_DEVICE void Weigh(const Rows& rows, IsMasked is_masked) {
    if constexpr (!Score::kIsIdentity) {
      if (score_.Changes()) Softmax::Modify(scores_, score_, scale_, rows);
    }
    const ScalesOf<Score, Scales> scales = {score_, scale_};
    const auto seen = rows.OfLane(is_masked);
    if (is_masked) Softmax::Hide(scores_, scales, seen);
    constexpr auto of_value = [](int) { return ScaleZero{}; };
    float top[1][2];
    has_moved_ = softmax_.Relate(scores_, scales, of_value, top);
    if (has_moved_) softmax_.Rebase(scores_, top, factor_);  // rows settle early in a sequence
    softmax_.Exponentiate(scores_, of_value, seen);
  }

  /// Begins to add the values of the last tile that was weighed.
  KVIT_DEVICE void IssueValues(const char* tile) { values_.Issue(weights_, tile); }
  /// Before that: adds what is infinite or NaN of them to the rows that see it.
  template <class Rows>
  KVIT_DEVICE void AddSpecial(const Rows& rows, const char* tile) {
    Masked::template AddRowByRow<KeepsSpecial<T>>(values_, SpecialStep<Rows>{rows, tile}, weights_);
  }

  /// All products that were begun have ended.
  KVIT_DEVICE void AllLanded() const { WgmmaWait<0>(); }
  /// After that: the weights are ready to be multiplied.
  KVIT_DEVICE void Settle() {
    if (has_moved_) Softmax::ForEachRow([&](int m, int h) { values_.Rescale(m, h, factor_[m][h]); });
    Softmax::Pack(scores_, weights_);
  }

  /// As RowAttention has them.
  KVIT_DEVICE void Finish() {
    softmax_.Finish([](int, int, float) {});
  }
  template <class Body>
  static KVIT_DEVICE void ForEachRow(Body&& body) {
    Softmax::ForEachRow(body);
  }
  KVIT_DEVICE float Base(int m, int h) const { return softmax_.Base(m, h); }
  KVIT_DEVICE float Sum(int m, int h) const { return softmax_.Sum(m, h); }
  template <class Use>
  KVIT_DEVICE void ForEachVector(int m, int h, Use&& use) const {
    values_.ForEachVector(m, h, use);
  }

 private:
  struct UniformScale {
    float scale;
    KVIT_DEVICE explicit UniformScale(float scale_log2) : scale(NotZero(scale_log2)) {}
    KVIT_DEVICE float Scale(int, int) const { return scale; }
  };
  struct ScaleOfRows {
    float scale, of_row[2];
    KVIT_DEVICE explicit ScaleOfRows(float scale_log2) : scale(scale_log2) {}
    KVIT_DEVICE void Set(int h, float factor) { of_row[h] = NotZero(scale * factor); }
    KVIT_DEVICE float Scale(int, int h) const { return of_row[h]; }
  };
  using Scales = std::conditional_t<Score::kIsIdentity, UniformScale, ScaleOfRows>;

  template <class Rows>
  struct SpecialStep {
    const Rows& rows;
    const char* tile;
    KVIT_DEVICE const char* Value(int s, int c) const {
      return tile + TensorLayout<T, Dims::kValue, Tokens>::Offset(s, c * int(sizeof(T)));
    }
  };

  Score score_;
  Scales scale_;
  Values values_;
  Softmax softmax_;
  typename Softmax::Scores scores_;
  typename Softmax::Weights weights_;
  bool has_moved_ = false;
  float factor_[1][2];
};

}  // namespace kvit

#endif  // KVIT_ATTENTION_GROUP_ATTENTION_CUH
