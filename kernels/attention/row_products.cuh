// S = Q K^T and O += P V for one warp that has query rows to itself: 16 of them a row tile, times tokens that all warps
// share, K and V as their codecs store them.
#ifndef KVIT_ATTENTION_ROW_PRODUCTS_CUH
#define KVIT_ATTENTION_ROW_PRODUCTS_CUH

#include "attention/key_operands.cuh"
#include "attention/seen_tokens.cuh"
#include "attention/value_operands.cuh"
#include "core/array.cuh"
#include "core/constants.cuh"
#include "core/types.h"
#include "mma/m16n8k16.cuh"
#include "platform/platform.cuh"
#include "quant/hadamard.cuh"

namespace kvit {

/// A lane's part of a [16 rows, 16 columns] block of S, or of a tile of O: [half][row h * 2 + j].
using BlockFragment = float[2][4];

/// The queries are in shared memory, as A operands, since registers are for outputs: 16 bytes a lane and operand.
/// HasFactors: rows' scores are scaled by factors of their own. Mma makes the products: M16N8K16, or M16N8K8.
template <class T, class Codec, int HeadDim, int RowTiles, bool HasFactors = false, class Mma = M16N8K16>
class RowKeys {
  using Operands = KeyOperands<T, Codec, HeadDim>;
  static constexpr int kOperands = Operands::kOperands;
  static constexpr bool kHasScales = Codec::kScaled || HasFactors;  // a row has its own

 public:
  struct Shared {
    Words<16> queries[Operands::kLoads][kOperands][RowTiles][32];
  };

  KVIT_DEVICE explicit RowKeys(Shared& shared) : shared_(shared) {}

  /// `address(row)` of the warp's rows, null for rows that do not exist. A score is `scale` times the product, times
  /// `factor(row)`. hadamard: of the keys, as KvitCache has it
  template <class Address, class Factor>
  KVIT_DEVICE void LoadQueries(Address&& address, int hadamard, float scale, const Factor& factor) {
    if constexpr (!kHasScales) scale_[0][0] = NotZero(scale);
    SyncWarp();  // all lanes have read the queries before
    KVIT_UNROLL
    for (int m = 0; m < RowTiles; ++m) {
      typename Operands::Query query[2];
      KVIT_UNROLL
      for (int h = 0; h < 2; ++h) {
        const int row = m * 16 + h * 8 + LaneIndex() / 4;
        query[h].Read(address(row), hadamard);
        float of_row = scale;
        if constexpr (HasFactors) of_row *= factor(row);
        if constexpr (Codec::kScaled) {
          scale_[m][h] = NotZero(of_row / query[h].up * Operands::kUnit);
          sum_[m][h] = query[h].sum / Operands::kUnit;
        } else if constexpr (HasFactors) {
          scale_[m][h] = NotZero(of_row);
        }
      }
      KVIT_UNROLL
      for (int load = 0; load < Operands::kLoads; ++load) {
        KVIT_UNROLL
        for (int i = 0; i < kOperands; ++i) {
          const auto &low = query[0].word[load][i], &high = query[1].word[load][i];
          StoreShared(&shared_.queries[load][i][m][LaneIndex()], Words<16>{{low[0], high[0], low[1], high[1]}});
        }
      }
    }
    SyncWarp();
  }

  /// What scores of row h * 8 + lane / 4 of row tile m come out divided by. Never 0.
  KVIT_DEVICE float Scale(int m, int h) const { return kHasScales ? scale_[m][h] : scale_[0][0]; }

  /// Of all blocks of 16 tokens of a step; step.Key and step.KeyParameters as RowAttention::Step has them.
  template <int Blocks, class Step>
  KVIT_DEVICE void Scores(BlockFragment (&s)[Blocks][RowTiles], const Step& step) const {
    KVIT_UNROLL
    for (int b = 0; b < Blocks; ++b) {
      KVIT_UNROLL
      for (int m = 0; m < RowTiles; ++m) {
        KVIT_UNROLL
        for (int i = 0; i < 8; ++i) s[b][m][i / 4][i % 4] = 0.0f;
      }
    }
    KVIT_UNROLL
    for (int load = 0; load < Operands::kLoads; ++load) {
      uint32_t q[kOperands][RowTiles][4];
      KVIT_UNROLL
      for (int i = 0; i < kOperands * RowTiles; ++i) {
        const auto words = LoadShared<Words<16>>(&shared_.queries[load][i / RowTiles][i % RowTiles][LaneIndex()]);
        KVIT_UNROLL
        for (int w = 0; w < 4; ++w) q[i / RowTiles][i % RowTiles][w] = words.word[w];
      }
      KVIT_UNROLL
      for (int b = 0; b < Blocks; ++b) {
        uint32_t k[4];
        Operands::Load(k, [&](int token, int c) { return step.Key(b * 16 + token, c); }, load);
        ForEachConstant<kOperands>([&](auto operand) {
          uint32_t a[4];
          Operands::template Expand<decltype(operand)::value>(a, k);
          KVIT_UNROLL
          for (int m = 0; m < RowTiles; ++m) {
            MmaStraight<Mma, typename Operands::Weight>(s[b][m], q[decltype(operand)::value][m], a);
          }
        });
      }
    }
    if constexpr (Codec::kScaled) Scale(s, [&](int token) { return step.KeyParameters(token); });
  }

 private:
  // Each token's parameters meet its scores.
  template <int Blocks, class Parameters>
  KVIT_DEVICE void Scale(BlockFragment (&s)[Blocks][RowTiles], Parameters&& parameters) const {
    KVIT_UNROLL
    for (int i = 0; i < Blocks * 4; ++i) {  // this lane's tokens: [block][half][j]
      const int b = i / 4, half = i / 2 % 2, j = i % 2;
      const int token = b * 16 + half * 8 + LaneIndex() % 4 * 2 + j;
      const ScaleZero p = Codec::template Parameters<T>(LoadShared<uint32_t>(parameters(token)));
      KVIT_UNROLL
      for (int m = 0; m < RowTiles; ++m) {
        KVIT_UNROLL
        for (int h = 0; h < 2; ++h) {
          float& score = s[b][m][half][h * 2 + j];
          score *= p.scale;
          if constexpr (Codec::kHasZero) score = fmaf(p.zero, sum_[m][h], score);
        }
      }
    }
  }

  Shared& shared_;
  float scale_[RowTiles][2];  // of the rows' scores; [0][0] of all where rows have none of their own
  float sum_[RowTiles][2];    // of the rows of Q, in the units of the products, where the codec has zeros
};

/// The outputs of a warp's rows. Mma as RowKeys has it.
template <class T, class Codec, int HeadDim, int RowTiles, class Mma = M16N8K16>
class RowValues {
  using Operands = ValueOperands<T, Codec, HeadDim>;

 public:
  static constexpr int kTiles = Operands::kTiles;
  static constexpr bool kIsFinite = Operands::kIsFinite;
  using Weight = typename Operands::Weight;

  KVIT_DEVICE void Clear() {
    ForEachOutput([](int, int, int, float& o) { o = 0.0f; });
  }
  KVIT_DEVICE void Rescale(int m, int h, float factor) {
    KVIT_UNROLL
    for (int i = 0; i < kTiles * 4; ++i) o_[m][i / 4][i / 2 % 2][h * 2 + i % 2] *= factor;
  }

  /// p: A fragments of P of a block of 16 tokens. `value` as ValueProduct has it. Tokens that `keep` zeroes count as
  /// zeros.
  template <class Value, class Keeps>
  KVIT_DEVICE void Add(const uint32_t (&p)[RowTiles][4], Value&& value, const Keeps& keep) {
    ForEachOperand(value, keep, [&](int tile, const uint32_t (&v)[4]) {
      KVIT_UNROLL
      for (int m = 0; m < RowTiles; ++m) MmaStraight<Mma, Weight>(o_[m][tile], p[m], v);
    });
  }

  /// The same of all blocks of a step, all of whose tokens count.
  template <int Blocks, class Step>
  KVIT_DEVICE void AddAll(const uint32_t (&p)[Blocks][RowTiles][4], const Step& step) {
    KVIT_UNROLL
    for (int b = 0; b < Blocks; ++b) {
      Add(p[b], [&](int s, int c) { return step.Value(b * 16 + s, c); }, KeepsAll{});
    }
  }

  /// Whether any value of the block, of the tokens that `keep` keeps, is infinite or NaN: in this lane's share of them.
  template <class Value, class Keeps>
  static KVIT_DEVICE bool HasSpecial(Value&& value, const Keeps& keep) {
    uint32_t special = 0u;
    ForEachOperand(value, keep, [&](int, const uint32_t (&v)[4]) {
      KVIT_UNROLL
      for (int i = 0; i < 4; ++i) special |= SpecialValues<Weight>::Flags(v[i]);
    });
    return SpecialValues<Weight>::Any(special);
  }

  /// Calls use(vector, values) for each four neighbouring channels that this lane has of row h * 8 + lane / 4 of row
  /// tile m, not yet divided by the row's sum. What lanes exchange comes before the first call.
  template <class Use>
  KVIT_DEVICE void ForEachVector(int m, int h, Use&& use) const {
    OutputVector vectors[kTiles];
    FindVectors(m, h, vectors);
    KVIT_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) use(vectors[tile].index, vectors[tile].values);
  }

  /// The same of values with zeros, whose weighted sum is added to every output, and that are stored as their Hadamard
  /// transform, by blocks of `hadamard` channels; 0: they are not.
  template <class Use>
  KVIT_DEVICE void ForEachVector(int m, int h, float zero, int hadamard, Use&& use) const {
    OutputVector vectors[kTiles];
    FindVectors(m, h, vectors);
    KVIT_UNROLL
    for (int i = 0; i < kTiles * 4; ++i) vectors[i / 4].values[i % 4] += zero;
    if (hadamard != 0) Transform(vectors, hadamard);
    KVIT_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) use(vectors[tile].index, vectors[tile].values);
  }

  /// A copy of all outputs, for steps that not all rows take part in. In memory, since few steps are so.
  class Stash {
   public:
    KVIT_DEVICE void Store(RowValues& outputs) {
      outputs.ForEachOutput([&](int, int, int i, float& o) { value_[i] = o; });
    }
    /// Puts back those of the rows that do not take part.
    KVIT_DEVICE void Restore(RowValues& outputs, const bool (&takes_part)[RowTiles][2]) const {
      outputs.ForEachOutput([&](int m, int h, int i, float& o) {
        if (!takes_part[m][h]) o = value_[i];
      });
    }

   private:
    volatile float value_[RowTiles * kTiles * 8];
  };

 private:
  KVIT_DEVICE void FindVectors(int m, int h, OutputVector (&vectors)[kTiles]) const {
    KVIT_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      float mine[2][2];
      KVIT_UNROLL
      for (int i = 0; i < 4; ++i) {
        const float o = o_[m][tile][i / 2][h * 2 + i % 2];
        mine[i / 2][i % 2] = Operands::kHasUnit ? o * Operands::Unit(tile, i / 2) : o;
      }
      vectors[tile] = Operands::Vector(tile, mine);
    }
  }

  // Vectors of a row lie kOfWord tiles side by side in a lane, then in the lanes of the row, then in later tiles.
  static KVIT_DEVICE void Transform(OutputVector (&vectors)[kTiles], int block) {
    constexpr int kOfWord = Operands::kTilesOfWord;
    const int in_block = block / 4;  // vectors
    KVIT_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) ButterfliesWithin(vectors[tile].values);
    TransformTiles(vectors, 1, kOfWord, [&](int step) { return step < in_block; });
    KVIT_UNROLL
    for (int mask = 1; mask < 4; mask *= 2) {
      if (in_block <= mask * kOfWord) continue;
      KVIT_UNROLL
      for (int i = 0; i < kTiles * 4; ++i) {
        float& output = vectors[i / 4].values[i % 4];
        output = ButterflyOfLanes(output, mask);
      }
    }
    TransformTiles(vectors, kOfWord, kTiles, [&](int step) { return step * 4 < in_block; });
    const float unit = HadamardUnit(block);
    KVIT_UNROLL
    for (int i = 0; i < kTiles * 4; ++i) vectors[i / 4].values[i % 4] *= unit;
  }

  // Stages of tiles that are `first` apart, twice that, and so on below `end`.
  template <class IsWithin>
  static KVIT_DEVICE void TransformTiles(OutputVector (&vectors)[kTiles], int first, int end, IsWithin&& is_within) {
    KVIT_UNROLL
    for (int step = first; step < end; step *= 2) {
      if (!is_within(step)) continue;
      KVIT_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        if ((tile & step) != 0) continue;
        KVIT_UNROLL
        for (int i = 0; i < 4; ++i) Butterfly(vectors[tile].values[i], vectors[tile | step].values[i]);
      }
    }
  }

  template <class Body>
  KVIT_DEVICE void ForEachOutput(Body&& body) {
    KVIT_UNROLL
    for (int i = 0; i < RowTiles * kTiles * 8; ++i) {
      const int m = i / (kTiles * 8);
      body(m, i / 2 % 2, i, o_[m][i / 8 % kTiles][i / 4 % 2][i % 4]);
    }
  }

  template <class Value, class Keeps, class Use>
  static KVIT_DEVICE void ForEachOperand(Value&& value, const Keeps& keep, Use&& use) {
    KVIT_UNROLL
    for (int load = 0; load < Operands::kLoads; ++load) {
      uint32_t v[4];
      Operands::Load(v, value, load);
      keep(v);
      ForEachConstant<Operands::kOperands>([&](auto operand) {
        uint32_t a[4];
        Operands::template Expand<decltype(operand)::value>(a, v);
        use(Operands::Tile(load, decltype(operand)::value), a);
      });
    }
  }

 protected:
  BlockFragment o_[RowTiles][kTiles];
};

}  // namespace kvit

#endif  // KVIT_ATTENTION_ROW_PRODUCTS_CUH
