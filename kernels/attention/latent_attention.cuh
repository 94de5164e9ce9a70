// Two warp groups' attention of the same rows to latent keys: each scores half of a tile's tokens, and multiplies half
// of the channels of all of them.
#ifndef KVIT_ATTENTION_LATENT_ATTENTION_CUH
#define KVIT_ATTENTION_LATENT_ATTENTION_CUH

#include "attention/group_products.cuh"
#include "attention/key_operands.cuh"  // NotZero
#include "attention/masked_values.cuh"
#include "attention/pair_exchange.cuh"
#include "attention/row_softmax.cuh"
#include "core/array.cuh"
#include "layout/latent_pieces.cuh"
#include "layout/tensor_layout.cuh"
#include "platform/platform.cuh"

namespace kvit {

/// Rows of V are the first channels of the rows of K. Outputs of 64 rows fill the registers of two groups, so that each
/// has half of the channels; scores are shared alike, by tokens, and weights are exchanged:
///
///                   group 0                                  group 1
///   scores          tokens 0 .. 31 of 64, all channels       tokens 32 .. 63
///   weights         own 32 given, other 32 taken             the same
///   values          all 64 tokens, channels 0 .. 255         channels 256 .. 511
///
/// Warps w and w + 4 have the same rows and keep the same base of each. Weights are made for the base that there is,
/// and given with a flag; where one of both warps would have it moved, both move it and weigh again: rows settle early
/// in a sequence.
template <class T, class Dims, int Tokens, class Score>
class LatentAttention {
 public:
  static_assert(Score::kIsIdentity, "scores are scaled, and nothing else");
  static constexpr int kOwnTokens = Tokens / 2, kOwnBlocks = kOwnTokens / 16, kBlocks = Tokens / 16;
  static constexpr int kOwnChannels = Dims::kValue / 2;
  using Queries = GroupQueries<T, Dims::kKey>;
  using Pieces = LatentPieces<Dims>;
  using OwnLayout = TensorLayout<T, kOwnChannels, Tokens>;  // of its channels of a tile

  KVIT_DEVICE LatentAttention(float scale_log2, int group, PairExchange& exchange)
      : scale_{NotZero(scale_log2)}, group_(group), pair_(exchange) {}

  /// Begins a row tile. All values of the one before have been added; scores of the new one may be there already.
  KVIT_DEVICE void Begin() {
    values_.Clear();
    softmax_.Begin();
  }

  /// Makes every output of this row tile NaN.
  KVIT_DEVICE void Poison() { softmax_.Poison(); }

  /// Begins to add what pieces [First, Last) of a tile give to its scores, which begin with piece 0. A tile lies in
  /// shared memory as [chunk of 64 channels][token][128 bytes]. wait(piece) returns when a piece is there. The products
  /// of a piece are a group.
  template <int First, int Last, class Wait>
  KVIT_DEVICE void IssueScores(const Queries& queries, const char* tile, Wait&& wait) {
    constexpr int kChunkBytes = Tokens * 128;
    float (&outputs)[kOwnBlocks * 8] = reinterpret_cast<float (&)[kOwnBlocks * 8]>(scores_);
    KVIT_UNROLL
    for (int piece = First; piece < Last; ++piece) {
      const ChunkRange chunks = Pieces::Chunks(piece);
      wait(piece);
      WgmmaFence();
      // A loop that ends with the piece would not be unrolled, and products would wait for each other.
      KVIT_UNROLL
      for (int i = 0; i < Pieces::kMostChunks * 4; ++i) {
        const int k = chunks.first * 4 + i;
        if (k >= chunks.last * 4) break;
        const SharedMatrix keys = {tile + group_ * (kOwnTokens * 128), k / 4 * kChunkBytes + k % 4 * 32, 16, 1024};
        IssueWgmma<T, false>(outputs, queries.Matrix(k), keys, piece > 0 || i > 0);
      }
      WgmmaCommit();  // the compiler ends a group where a barrier is waited for, but counts those that end here
    }
  }
  /// Values are added; NumBehind groups of products, issued after them, need not have ended.
  template <int NumBehind>
  KVIT_DEVICE void ValuesLanded() const {
    WgmmaWait<NumBehind>();
  }

  /// Scores become weights; those before are still being multiplied. rows is what the warp's rows see of the group's
  /// own tokens, as CausalRows has it; is_masked, a Known, whether that hides something.
  template <class Rows, class IsMasked>
  KVIT_DEVICE void Weigh(const Rows& rows, IsMasked is_masked) {
    const auto seen = rows.OfLane(is_masked);
    if (is_masked) Softmax::Hide(scores_, scale_, seen);
    WeighSeen(seen);
  }

  /// Begins to add the values of the last tile that was weighed.
  KVIT_DEVICE void IssueValues(const char* tile) { values_.Issue(weights_, OwnChannels(tile)); }
  /// Before that: adds what is infinite or NaN of them to the rows that see it; rows is of all tokens of the tile.
  template <class Rows>
  KVIT_DEVICE void AddSpecial(const Rows& rows, const char* tile) {
    const SpecialStep<Rows> step = {rows, OwnChannels(tile)};
    MaskedValues<Values, 1, kBlocks>::template AddRowByRow<KeepsSpecial<T>>(values_, step, weights_);
  }
  /// Its channels of a tile.
  KVIT_DEVICE const char* OwnChannels(const char* tile) const { return tile + group_ * OwnLayout::kBytes; }

  /// All products that were begun have ended.
  KVIT_DEVICE void AllLanded() const { WgmmaWait<0>(); }
  /// After that: the weights are ready to be multiplied.
  KVIT_DEVICE void Settle() {
    if (has_moved_) Softmax::ForEachRow([&](int m, int h) { values_.Rescale(m, h, factor_[m][h]); });
    uint32_t others[8];
    pair_.Take(others);
    KVIT_UNROLL
    for (int i = 0; i < 8; ++i) {  // tokens of group 0 come first
      weights_[i / 4][0][i % 4] = group_ == 0 ? own_[i] : others[i];
      weights_[kOwnBlocks + i / 4][0][i % 4] = group_ == 0 ? others[i] : own_[i];
    }
  }

  /// The row tile ends: sums of rows are those of both warps from here on.
  KVIT_DEVICE void Finish() {
    softmax_.Finish([](int, int, float) {});
    uint32_t mine[8] = {BitCast<uint32_t>(softmax_.Sum(0, 0)), BitCast<uint32_t>(softmax_.Sum(0, 1))}, others[8];
    pair_.Give(mine, false);
    pair_.Meet(false);
    pair_.Take(others);
    KVIT_UNROLL
    for (int h = 0; h < 2; ++h) sum_[h] = softmax_.Sum(0, h) + BitCast<float>(others[h]);
  }
  template <class Body>
  static KVIT_DEVICE void ForEachRow(Body&& body) {
    Softmax::ForEachRow(body);
  }
  KVIT_DEVICE float Base(int m, int h) const { return softmax_.Base(m, h); }
  KVIT_DEVICE float Sum(int, int h) const { return sum_[h]; }
  template <class Use>
  KVIT_DEVICE void ForEachVector(int m, int h, Use&& use) const {
    values_.ForEachVector(
        m, h, [&](int vector, const Array<float, 4>& values) { use(group_ * (kOwnChannels / 4) + vector, values); });
  }

 private:
  using Values = GroupValues<T, Plain, kOwnChannels>;
  using Softmax = RowSoftmax<T, Plain, T, 1, kOwnTokens>;
  static_assert(kOwnBlocks * 4 == 8, "a lane has eight words of weights");

  struct UniformScale {
    float scale;
    KVIT_DEVICE float Scale(int, int) const { return scale; }
  };
  template <class Rows>
  struct SpecialStep {
    const Rows& rows;
    const char* tile;
    KVIT_DEVICE const char* Value(int s, int c) const { return tile + OwnLayout::Offset(s, c * int(sizeof(T))); }
  };
  template <class Seen>
  KVIT_DEVICE void WeighSeen(const Seen& seen) {
    constexpr auto of_value = [](int, int) { return ScaleZero{}; };
    float top[1][2];
    const bool rises = softmax_.Relate(scores_, scale_, of_value, top);
    {
      typename Softmax::Scores scores;
      KVIT_UNROLL
      for (int i = 0; i < kOwnBlocks * 8; ++i) scores[i / 8][0][i / 4 % 2][i % 4] = scores_[i / 8][0][i / 4 % 2][i % 4];
      Softmax weighed = softmax_;
      weighed.Exponentiate(scores, of_value, seen);
      Pack(scores);
      pair_.Give(own_, rises);
      has_moved_ = pair_.Meet(rises);
      if (!has_moved_) softmax_ = weighed;
    }
    if (has_moved_) WeighAgain(top, seen);
  }

  // Both warps bring the rows' bases up to the largest weight of either.
  template <class Seen>
  KVIT_DEVICE void WeighAgain(float (&top)[1][2], const Seen& seen) {
    constexpr auto of_value = [](int, int) { return ScaleZero{}; };
    pair_.Leave();
    uint32_t mine[8] = {BitCast<uint32_t>(top[0][0]), BitCast<uint32_t>(top[0][1])}, others[8];
    pair_.Give(mine, false);
    pair_.Meet(false);
    pair_.Take(others);
    KVIT_UNROLL
    for (int h = 0; h < 2; ++h) top[0][h] = fmaxf(top[0][h], BitCast<float>(others[h]));
    softmax_.Rebase(scores_, top, factor_);
    softmax_.Exponentiate(scores_, of_value, seen);
    Pack(scores_);
    pair_.Give(own_, false);
    pair_.Meet(false);
  }

  KVIT_DEVICE void Pack(const typename Softmax::Scores& scores) {
    typename Softmax::Weights weights;
    Softmax::Pack(scores, weights);
    KVIT_UNROLL
    for (int i = 0; i < 8; ++i) own_[i] = weights[i / 4][0][i % 4];
  }

  UniformScale scale_;
  int group_;
  PairSide pair_;
  Values values_;
  Softmax softmax_;
  typename Softmax::Scores scores_;  // of the group's own tokens
  uint32_t own_[8];                  // weights of them
  uint32_t weights_[kBlocks][1][4];  // of all tokens
  bool has_moved_ = false;
  float factor_[1][2];
  float sum_[2];
};

}  // namespace kvit

#endif  // KVIT_ATTENTION_LATENT_ATTENTION_CUH
