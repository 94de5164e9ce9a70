// O^T += V^T P^T for one warp: the query rows of a row tile times 16 tokens, V as its codec stores it.
#ifndef KVIT_ATTENTION_VALUE_PRODUCT_CUH
#define KVIT_ATTENTION_VALUE_PRODUCT_CUH

#include "attention/seen_tokens.cuh"
#include "attention/value_operands.cuh"
#include "core/constants.cuh"
#include "mma/m16n8k16.cuh"
#include "platform/platform.cuh"

namespace kvit {

/// A lane's C fragments of O^T: of each n-tile of rows, Tiles tiles of 16 channels.
template <int RowTiles, int Tiles>
class OutputFragments {
 public:
  KVIT_DEVICE void Clear() {
    ForEachFragment([](int, float& o) { o = 0.0f; });
  }

  KVIT_DEVICE void Rescale(int n, int j, float factor) {
    KVIT_UNROLL
    for (int tile = 0; tile < Tiles; ++tile) {
      o_[n][tile][j] *= factor;
      o_[n][tile][j + 2] *= factor;
    }
  }

  /// A copy of all of them, for steps that not all rows take part in. In memory, so that it takes no registers from the
  /// steps that all rows take part in, nearly all.
  class Stash {
   public:
    KVIT_DEVICE void Store(const OutputFragments& outputs) {
      const_cast<OutputFragments&>(outputs).ForEachFragment([&](int i, float& o) { value_[i] = o; });
    }
    /// Puts back those of the rows that do not take part.
    KVIT_DEVICE void Restore(OutputFragments& outputs, const bool (&takes_part)[RowTiles][2]) const {
      outputs.ForEachFragment([&](int i, float& o) {
        if (!takes_part[i / (4 * Tiles)][i % 2]) o = value_[i];
      });
    }

   private:
    volatile float value_[RowTiles * Tiles * 4];
  };

 protected:
  float o_[RowTiles][Tiles][4];

 private:
  template <class Body>
  KVIT_DEVICE void ForEachFragment(Body&& body) {
    KVIT_UNROLL
    for (int n = 0; n < RowTiles; ++n) {
      KVIT_UNROLL
      for (int tile = 0; tile < Tiles; ++tile) {
        KVIT_UNROLL
        for (int i = 0; i < 4; ++i) body((n * Tiles + tile) * 4 + i, o_[n][tile][i]);
      }
    }
  }
};

/// Mma as KeyProduct has it.
template <class T, class Codec, int HeadDim, int Rows, class Mma = M16N8K16>
class ValueProduct : public OutputFragments<Rows / 8, ValueOperands<T, Codec, HeadDim>::kTiles> {
  using Operands = ValueOperands<T, Codec, HeadDim>;

 public:
  static constexpr int kRowTiles = Rows / 8;
  using Weight = typename Operands::Weight;

  /// p: B fragments of P^T. `value(s, c)` is the shared-memory address of token s of the step from channel c on.
  template <class Value, class Keeps = KeepsAll>
  KVIT_DEVICE void Add(const uint32_t (&p)[kRowTiles][2], Value&& value, const Keeps& keep = {}) {
    KVIT_UNROLL
    for (int load = 0; load < Operands::kLoads; ++load) {
      uint32_t v[4];
      Operands::Load(v, value, load);
      keep(v);
      ForEachConstant<Operands::kOperands>([&](auto operand) {
        uint32_t a[4];
        Operands::template Expand<decltype(operand)::value>(a, v);
        KVIT_UNROLL
        for (int n = 0; n < kRowTiles; ++n) {
          Mma::template Multiply<Weight>(o_[n][Operands::Tile(load, decltype(operand)::value)], a, p[n]);
        }
      });
    }
  }

  /// Calls store(n, j, channel, value) for each of this lane's outputs.
  template <class Store>
  KVIT_DEVICE void ForEach(Store&& store) const {
    KVIT_UNROLL
    for (int n = 0; n < kRowTiles; ++n) {
      KVIT_UNROLL
      for (int tile = 0; tile < Operands::kTiles; ++tile) {
        KVIT_UNROLL
        for (int i = 0; i < 4; ++i) {
          const float o = o_[n][tile][i];
          store(n, i % 2, Operands::Channel(tile, i / 2, LaneIndex() / 4),
                Operands::kHasUnit ? o * Operands::Unit(tile, i / 2) : o);
        }
      }
    }
  }

 private:
  using OutputFragments<kRowTiles, Operands::kTiles>::o_;
};

}  // namespace kvit

#endif  // KVIT_ATTENTION_VALUE_PRODUCT_CUH
