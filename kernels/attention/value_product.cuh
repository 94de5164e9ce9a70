// O^T += V^T P^T for one warp: the query rows of a row tile times 16 tokens, V as its codec stores it.
#ifndef KVIT_ATTENTION_VALUE_PRODUCT_CUH
#define KVIT_ATTENTION_VALUE_PRODUCT_CUH

#include <math.h>

#include "core/types.h"
#include "mma/m16n8k16.cuh"
#include "platform/platform.cuh"
#include "quant/codec.cuh"

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

template <class T, class Codec, int HeadDim, int Rows>
class ValueProduct;

/// What becomes of V's operands before they are multiplied, where every token of a step is seen.
struct KeepsAll {
  KVIT_DEVICE void operator()(uint32_t (&)[4]) const {}
};

/// Zeroes in registers what a step does not see: 16 tokens, of which a lane holds two neighbours in each register.
class KeepsSeen {
 public:
  /// sees(s): whether token s of the 16 is seen
  template <class Sees>
  KVIT_DEVICE explicit KeepsSeen(Sees&& sees) {
    KVIT_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int token = half * 8 + LaneIndex() % 4 * 2;
      kept_[half] = (sees(token) ? 0x0000ffffu : 0u) | (sees(token + 1) ? 0xffff0000u : 0u);
    }
  }
  /// v: [tokens 0..7, 8..15][2], as LoadValueOperand gives them
  KVIT_DEVICE void operator()(uint32_t (&v)[4]) const {
    KVIT_UNROLL
    for (int i = 0; i < 4; ++i) v[i] &= kept_[i / 2];
  }

 private:
  uint32_t kept_[2];
};

/// 16-bit values: a transposed matrix load gives the operands of one multiplication, 16 channels.
template <class T, int HeadDim, int Rows>
class ValueProduct<T, Plain, HeadDim, Rows> : public OutputFragments<Rows / 8, HeadDim / 16> {
 public:
  static constexpr int kRowTiles = Rows / 8;
  static constexpr int kSteps = HeadDim / 16;
  using Weight = T;  // what P is rounded to

  /// p: B fragments of P^T. `value(s, c)` is the shared-memory address of token s of the step from channel c on.
  template <class Value, class Keeps = KeepsAll>
  KVIT_DEVICE void Add(const uint32_t (&p)[kRowTiles][2], Value&& value, const Keeps& keep = {}) {
    KVIT_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      uint32_t v[4];
      LoadValueOperand(v, value, step * 16, 8);
      keep(v);
      KVIT_UNROLL
      for (int n = 0; n < kRowTiles; ++n) MmaM16N8K16<T>(o_[n][step], v, p[n]);
    }
  }

  /// Calls store(n, j, channel, value) for each of this lane's outputs.
  template <class Store>
  KVIT_DEVICE void ForEach(Store&& store) const {
    KVIT_UNROLL
    for (int n = 0; n < kRowTiles; ++n) {
      KVIT_UNROLL
      for (int step = 0; step < kSteps; ++step) {
        KVIT_UNROLL
        for (int i = 0; i < 4; ++i) store(n, i % 2, step * 16 + i / 2 * 8 + LaneIndex() / 4, o_[n][step][i]);
      }
    }
  }

 private:
  using OutputFragments<kRowTiles, kSteps>::o_;
};

/// Coded values: P already carries the tokens' scales, the codes are multiplied as they are, and an output meets the
/// unit of its codes once, at the end.
///
/// A transposed load puts 16-bit units on the rows of a matrix, so rows 0..7 of an operand are code i of eight units,
/// and rows 8..15 code i + 1 of the same.
template <class T, ScaledCodec Codec, int HeadDim, int Rows>
class ValueProduct<T, Codec, HeadDim, Rows> : public OutputFragments<Rows / 8, HeadDim / 16> {
 public:
  static constexpr int kRowTiles = Rows / 8;
  static constexpr int kPairs = Codec::kPairs;
  static constexpr int kUnits = HeadDim / kPairs;  // 16-bit units of a token
  static constexpr int kBlocks = kUnits / 8;       // of the 8 units that an 8x8 matrix has of a token
  static_assert(HeadDim % (16 * kPairs) == 0, "a token must be a whole number of 32-byte matrix loads");
  using Weight = Half;

  template <class Value, class Keeps = KeepsAll>
  KVIT_DEVICE void Add(const uint32_t (&p)[kRowTiles][2], Value&& value, const Keeps& keep = {}) {
    KVIT_UNROLL
    for (int block = 0; block < kBlocks; block += 2) {
      uint32_t v[4];  // [tokens 0..7, 8..15][block, block + 1]
      LoadValueOperand(v, value, block * 8 * kPairs, 8 * kPairs);
      keep(v);
      Multiply<0, 0>(p, v, block);
      Multiply<1, 0>(p, v, block);
      if constexpr (kPairs == 4) {
        Multiply<0, 2>(p, v, block);
        Multiply<1, 2>(p, v, block);
      }
    }
  }

  template <class Store>
  KVIT_DEVICE void ForEach(Store&& store) const {
    const int unit = LaneIndex() / 4;
    KVIT_UNROLL
    for (int n = 0; n < kRowTiles; ++n) {
      KVIT_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        KVIT_UNROLL
        for (int i = 0; i < 4; ++i) {
          const int code = tile % (kPairs / 2) * 2 + i / 2;
          const int channel = (tile / (kPairs / 2) * 4 + unit / 2) * 2 * kPairs + Codec::Channel(code, unit % 2);
          store(n, i % 2, channel, o_[n][tile][i] * Codec::Unit(code));
        }
      }
    }
  }

 private:
  static constexpr int kTiles = kBlocks * kPairs / 2;  // of 16 channels: [block][pair of codes]

  template <int Block, int I>
  KVIT_DEVICE void Multiply(const uint32_t (&p)[kRowTiles][2], const uint32_t (&v)[4], int block) {
    const uint32_t a[4] = {Codec::template Expand<I>(v[Block]), Codec::template Expand<I + 1>(v[Block]),
                           Codec::template Expand<I>(v[Block + 2]), Codec::template Expand<I + 1>(v[Block + 2])};
    const int tile = (block + Block) * (kPairs / 2) + I / 2;
    KVIT_UNROLL
    for (int n = 0; n < kRowTiles; ++n) MmaM16N8K16<Half>(o_[n][tile], a, p[n]);
  }

  using OutputFragments<kRowTiles, kTiles>::o_;
};

}  // namespace kvit

#endif  // KVIT_ATTENTION_VALUE_PRODUCT_CUH
