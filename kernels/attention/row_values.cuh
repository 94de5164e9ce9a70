// O += P V for one warp that has query rows to itself: 16 of them a row tile, times tokens that all warps share, V as
// its codec stores it.
#ifndef KVIT_ATTENTION_ROW_VALUES_CUH
#define KVIT_ATTENTION_ROW_VALUES_CUH

#include "attention/block_fragment.cuh"
#include "attention/seen_tokens.cuh"
#include "attention/value_operands.cuh"
#include "core/array.cuh"
#include "core/constants.cuh"
#include "mma/m16n8k16.cuh"
#include "platform/platform.cuh"
#include "quant/hadamard.cuh"

namespace kvit {

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

#endif  // KVIT_ATTENTION_ROW_VALUES_CUH
