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

/// Attention of 64 query rows, 16 a warp, to tiles of Tokens tokens. Registers hold the scores of one tile, its weights
/// and those of the tile before, and the outputs. Of tile t:
///
///   IssueScores(t)  IssueValues(t - 1)  ScoresLanded  WeighBoldly(t)
///
///   tensor cores    S(t) = Q K(t)^T | O += P(t - 1) V(t - 1)            | S(t + 1) ...
///   other units                     | P(t)
///
/// Bases move seldom after the first tiles of a row tile, so weights are made at once, and looked at afterwards. A warp
/// that finds one too large weighs the same scores again, by Weigh and Settle, which bring bases and outputs along. So
/// does every warp where a tile hides something.
///
/// All four warps call together. K and V have 16 bits, or both are codes that have been widened: then a token's
/// parameters meet its scores and its weights, as in RowAttention.
template <class T, class KeyCodec, class ValueCodec, class Dims, int Tokens, class Score>
class GroupAttention {
  static constexpr bool kIsCoded = KeyCodec::kScaled;
  static_assert(kIsCoded == ValueCodec::kScaled, "both or none");
  using Values = GroupValues<T, std::conditional_t<kIsCoded, Widened<ValueCodec>, Plain>, Dims::kValue>;
  using Softmax = RowSoftmax<T, ValueCodec, typename Values::Weight, 1, Tokens>;
  using Masked = MaskedValues<Values, 1, Softmax::kBlocks>;

 public:
  using Operand = typename Values::Weight;  // of all products
  using Queries = GroupQueries<Operand, Dims::kKey>;
  static constexpr bool kIsFinite = Values::kIsFinite;
  // Registers for weights beside the scores that they come from: not beside outputs of 256 channels.
  static constexpr bool kIsBold = Dims::kValue <= 128;

  /// Scores are scaled into log2 units. v_hadamard: of the values, as KvitCache has it
  KVIT_DEVICE GroupAttention(float scale_log2, const Score& score, int v_hadamard)
      : score_(score), scale_(scale_log2), v_hadamard_(v_hadamard) {}

  /// Begins a row tile. All values of the one before have been added; scores of the new one may be there already.
  /// Scores are times factor(row), of the warp's rows, where score modifiers have one. queries(row) is what such a row
  /// was multiplied by, and its sum, where K is coded.
  template <class Factor, class OfQuery>
  KVIT_DEVICE void Begin(const Factor& factor, const OfQuery& queries) {
    if constexpr (kHasScales) {
      Softmax::ForEachRow([&](int, int h) {
        const int row = h * 8 + LaneIndex() / 4;
        float of_row = factor(row);
        if constexpr (kIsCoded) {
          const auto query = queries(row);
          of_row *= Widened<KeyCodec>::kUnit / query[0];
          sum_[h] = query[1] / Widened<KeyCodec>::kUnit;
        }
        scale_.Set(h, of_row);
      });
    }
    values_.Clear();
    softmax_.Begin();
  }

  /// Whether score modifiers have anything to do; the same in all threads.
  KVIT_DEVICE bool ChangesScores() const { return Changes(score_); }

  /// Makes every output of this row tile NaN.
  KVIT_DEVICE void Poison() { softmax_.Poison(); }

  /// Tiles lie in shared memory as [chunk of 64 channels][token][128 bytes].
  KVIT_DEVICE void IssueScores(const Queries& queries, const char* tile) { kvit::IssueScores(scores_, queries, tile); }
  /// Scores are there; NumBehind groups of products, issued after them, need not be.
  template <int NumBehind>
  KVIT_DEVICE void ScoresLanded() const {
    WgmmaWait<NumBehind>();
  }

  /// Scores become weights, all but their type. is_again: WeighBoldly has had them. rows is what the warp's
  /// rows see of the tile, as CausalRows has it; is_masked, a Known, whether it hides something; tokens the
  /// TokenParameters of the tile where it is coded; changes, a bool or a Known, is ChangesScores().
  template <class Rows, class IsMasked, class OfTokens, class Changes>
  KVIT_DEVICE void Weigh(const Rows& rows, IsMasked is_masked, const OfTokens& tokens, bool is_again, Changes changes) {
    if (!is_again) Prepare(rows, tokens, changes);
    const ScalesOf<Scales, Changes> scales = {scale_, changes};
    const auto seen = rows.OfLane(is_masked);
    if (is_masked) Softmax::Hide(scores_, scales, seen);
    const auto of_value = OfValue(tokens);
    float top[1][2];
    has_moved_ = softmax_.Relate(scores_, scales, of_value, top);
    if (has_moved_) softmax_.Rebase(scores_, top, factor_);  // rows settle early in a sequence
    softmax_.Exponentiate(scores_, of_value, seen);
  }

  /// The same of a tile that hides nothing, in the hope that no base of the warp's rows has to move, type and all.
  /// False where one must, and Weigh has still to be called. Between the first weights and the others the products of
  /// the values before must end: then it calls landed().
  template <class Rows, class OfTokens, class Changes, class Landed>
  KVIT_DEVICE bool WeighBoldly(const Rows& rows, const OfTokens& tokens, Changes changes, Landed&& landed) {
    constexpr int kBlocks = Softmax::kBlocks, kFirst = kBlocks / 2;
    Prepare(rows, tokens, changes);
    const ScalesOf<Scales, Changes> scales = {scale_, changes};
    bool counts_by_more = false;
    if constexpr (kIsCoded) counts_by_more = tokens.CountsByMore();
    typename Softmax::Bold bold(softmax_);
    typename Softmax::Weights first;  // weights_ are being multiplied
    bold.template Weigh<0, kFirst>(softmax_, scores_, scales, OfValue(tokens), first);
    AllLanded();
    landed();
    KVIT_UNROLL
    for (int i = kFirst * 8; i < kBlocks * 8; ++i) StayBelow(scores_[i / 8][0][i / 4 % 2][i % 4]);
    bold.template Weigh<kFirst, kBlocks>(softmax_, scores_, scales, OfValue(tokens), weights_);
    if (!bold.End(softmax_, counts_by_more)) return false;
    KVIT_UNROLL
    for (int i = 0; i < kFirst * 4; ++i) weights_[i / 4][0][i % 4] = first[i / 4][0][i % 4];
    return true;
  }

  /// Begins to add the values of the last tile that was weighed.
  KVIT_DEVICE void IssueValues(const char* tile) { values_.Issue(weights_, tile); }
  /// Before that: adds what is infinite or NaN of them to the rows that see it.
  template <class Rows>
  KVIT_DEVICE void AddSpecial(const Rows& rows, const char* tile) {
    Masked::template AddRowByRow<KeepsSpecial<Operand>>(values_, SpecialStep<Rows>{rows, tile}, weights_);
  }

  /// All products that were begun have ended.
  KVIT_DEVICE void AllLanded() const { WgmmaWait<0>(); }
  /// After that, the weights of Weigh are the next to be multiplied.
  KVIT_DEVICE void Settle() {
    if (has_moved_) Softmax::ForEachRow([&](int m, int h) { values_.Rescale(m, h, factor_[m][h]); });
    Softmax::Pack(scores_, weights_);
  }

  /// As RowAttention has them.
  KVIT_DEVICE void Finish() {
    softmax_.Finish([&](int m, int h, float factor) { values_.Rescale(m, h, factor); });
  }
  template <class Body>
  static KVIT_DEVICE void ForEachRow(Body&& body) {
    Softmax::ForEachRow(body);
  }
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
  static constexpr bool kHasScales = kIsCoded || !Score::kIsIdentity;  // a row has its own

  // Products become scores: tokens' parameters meet them, and modifiers.
  template <class Rows, class OfTokens, class Changes>
  KVIT_DEVICE void Prepare(const Rows& rows, const OfTokens& tokens, Changes changes) {
    if constexpr (kIsCoded) ScaleScores(tokens);
    if constexpr (!Score::kIsIdentity) {
      if (changes) Softmax::Modify(scores_, score_, scale_, rows);
    }
  }

  // (i, token) -> the parameters of its value; token is the i-th that a lane has of a tile.
  template <class OfTokens>
  static KVIT_DEVICE auto OfValue(const OfTokens& tokens) {
    return [&tokens](int i, int token) {
      if constexpr (kIsCoded) {
        const auto pair = tokens.OfValues(token - i % 2);  // one access for two neighbours
        return ScaleZero{pair[i % 2 * 2], pair[i % 2 * 2 + 1]};
      } else {
        return ScaleZero{};
      }
    };
  }

  // Each token's parameters meet its scores.
  template <class OfTokens>
  KVIT_DEVICE void ScaleScores(const OfTokens& tokens) {
    KVIT_UNROLL
    for (int i = 0; i < Tokens / 8; ++i) {  // this lane's pairs of tokens
      const auto pair = tokens.OfKeys(LaneToken(2 * i));
      KVIT_UNROLL
      for (int j = 0; j < 4; ++j) {  // [row][token]
        float& score = scores_[i / 2][0][i % 2][j];
        score *= pair[j % 2 * 2];
        if constexpr (KeyCodec::kHasZero) score = fmaf(pair[j % 2 * 2 + 1], sum_[j / 2], score);
      }
    }
  }

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
  using Scales = std::conditional_t<kHasScales, ScaleOfRows, UniformScale>;

  template <class Rows>
  struct SpecialStep {
    const Rows& rows;
    const char* tile;
    KVIT_DEVICE const char* Value(int s, int c) const {
      return tile + TensorLayout<Operand, Dims::kValue, Tokens>::Offset(s, c * int(sizeof(Operand)));
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
  float sum_[2];    // of the rows of Q, in the units of the products, where K has zeros
  int v_hadamard_;  // where V has zeros
};

}  // namespace kvit

#endif  // KVIT_ATTENTION_GROUP_ATTENTION_CUH
