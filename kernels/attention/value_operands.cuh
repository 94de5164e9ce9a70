// V of 16 tokens as operands of the matrix instruction, and which channels their products are.
#ifndef KVIT_ATTENTION_VALUE_OPERANDS_CUH
#define KVIT_ATTENTION_VALUE_OPERANDS_CUH

#include "core/array.cuh"
#include "mma/m16n8k16.cuh"
#include "platform/platform.cuh"
#include "quant/codec.cuh"
#include "quant/scaled_half.cuh"
#include "quant/widening.cuh"

namespace kvit {

/// As KeyOperands, for V:
///
///   kLoads               matrix loads of the 16 tokens, kOperands operands each
///   Load(v, value, i)    the i-th; `value(s, c)` is the shared-memory address of token s from channel c on
///   Expand<j>(a, v)      operand j of a load: 16 channels of 16 tokens, as an A operand of V^T
///   Tile(load, j)        which of the kTiles tiles of outputs, 16 channels each, it makes
///   Channel(tile, half, unit)   of row half * 8 + unit of an operand
///   Unit(tile, half)     what its outputs are multiplied by at the end
///   Weight               what P is rounded to
///   kIsFinite            no code stands for infinity or NaN
///   Vector(tile, mine)   four neighbouring channels of a row out of a lane's four outputs mine[half][j] of a tile,
///   unit
///                        lane % 4 * 2 + j; all lanes of the warp call together
template <class T, class Codec, int HeadDim>
struct ValueOperands;

/// Channels index * 4 and the next three of a row.
struct OutputVector {
  int index;
  Array<float, 4> values;
};

/// 16-bit values: a transposed matrix load gives the operand of one multiplication.
template <class T, int HeadDim>
struct ValueOperands<T, Plain, HeadDim> {
  using Weight = T;
  static constexpr int kLoads = HeadDim / 16, kOperands = 1, kTiles = kLoads;
  static constexpr bool kHasUnit = false, kIsFinite = false;

  template <class Value>
  static KVIT_DEVICE void Load(uint32_t (&v)[4], Value&& value, int load) {
    LoadValueOperand(v, value, load * 16, 8);
  }
  template <int>
  static KVIT_DEVICE void Expand(uint32_t (&a)[4], const uint32_t (&v)[4]) {
    KVIT_UNROLL
    for (int i = 0; i < 4; ++i) a[i] = v[i];
  }
  static constexpr KVIT_HD int Tile(int load, int) { return load; }
  static KVIT_DEVICE int Channel(int tile, int half, int unit) { return tile * 16 + half * 8 + unit; }
  static constexpr KVIT_HD float Unit(int, int) { return 1.0f; }

  // A lane has two neighbours of each half: two lanes exchange theirs, so that one has four of a half each.
  static KVIT_DEVICE OutputVector Vector(int tile, const float (&mine)[2][2]) {
    const int column = LaneIndex() % 4;
    const bool is_odd = column % 2 != 0;
    float got[2];
    KVIT_UNROLL
    for (int j = 0; j < 2; ++j) got[j] = ShuffleXor(is_odd ? mine[0][j] : mine[1][j], 1);
    const int index = tile * 4 + (column / 2 + column % 2 * 2);
    return {index,
            {is_odd ? got[0] : mine[0][0], is_odd ? got[1] : mine[0][1], is_odd ? mine[1][0] : got[0],
             is_odd ? mine[1][1] : got[1]}};
  }
};

/// Coded values: P already carries the tokens' scales, the codes are multiplied as they are, and an output meets the
/// unit of its codes once, at the end.
///
/// A transposed load puts 16-bit units on the rows of a matrix, so rows 0..7 of an operand are code i of eight units,
/// and rows 8..15 code i + 1 of the same.
template <class T, ScaledCodec Codec, int HeadDim>
struct ValueOperands<T, Codec, HeadDim> {
  using Weight = Half;
  static constexpr int kPairs = Codec::kPairs;
  static constexpr int kUnits = HeadDim / kPairs;  // 16-bit units of a token
  static constexpr int kLoads = kUnits / 16, kOperands = kPairs, kTiles = kLoads * kPairs;
  static constexpr int kTilesOfWord = kPairs / 2;                      // whose vectors lie side by side in a lane
  static constexpr bool kHasUnit = true, kIsFinite = Codec::kHasZero;  // integers have zeros, and no infinities
  static_assert(HeadDim % (16 * kPairs) == 0, "a token must be a whole number of 32-byte matrix loads");

  template <class Value>
  static KVIT_DEVICE void Load(uint32_t (&v)[4], Value&& value, int load) {
    LoadValueOperand(v, value, load * 16 * kPairs, 8 * kPairs);  // [tokens 0..7, 8..15][units 0..7, 8..15]
  }
  // Operands in the order: the first pair of codes of the lower eight units and of the upper ones, then the next pair.
  template <int J>
  static KVIT_DEVICE void Expand(uint32_t (&a)[4], const uint32_t (&v)[4]) {
    constexpr int kSide = J % 2, kCode = J / 2 * 2;
    a[0] = Codec::template Expand<kCode>(v[kSide]);
    a[1] = Codec::template Expand<kCode + 1>(v[kSide]);
    a[2] = Codec::template Expand<kCode>(v[kSide + 2]);
    a[3] = Codec::template Expand<kCode + 1>(v[kSide + 2]);
  }
  static constexpr KVIT_HD int Tile(int load, int j) { return (load * 2 + j % 2) * (kPairs / 2) + j / 2; }
  static KVIT_DEVICE int Channel(int tile, int half, int unit) {
    return (tile / (kPairs / 2) * 4 + unit / 2) * 2 * kPairs + Codec::Channel(Code(tile, half), unit % 2);
  }
  static constexpr KVIT_HD float Unit(int tile, int half) { return Codec::Unit(Code(tile, half)); }

  // A lane's four are neighbours already.
  static KVIT_DEVICE OutputVector Vector(int tile, const float (&mine)[2][2]) {
    OutputVector vector = {Channel(tile, 0, LaneIndex() % 4 * 2) / 4, {}};
    KVIT_UNROLL
    for (int i = 0; i < 4; ++i) vector.values[Channel(tile, i / 2, i % 2) % 4] = mine[i / 2][i % 2];
    return vector;
  }

 private:
  static constexpr KVIT_HD int Code(int tile, int half) { return tile % (kPairs / 2) * 2 + half; }
};

/// Codes as f16: operands as of f16, and an output meets their unit at the end.
template <class T, class Codec, int HeadDim>
struct ValueOperands<T, Widened<Codec>, HeadDim> : ValueOperands<Half, Plain, HeadDim> {
  static constexpr bool kHasUnit = true, kIsFinite = Codec::kHasZero;
  static constexpr int kTilesOfWord = 1;
  static constexpr KVIT_HD float Unit(int, int) { return Widened<Codec>::kUnit; }
};

/// bfloat16 as f16: operands as of f16, and P carries the tokens' powers of two.
template <class T, int HeadDim>
struct ValueOperands<T, ScaledHalf, HeadDim> : ValueOperands<Half, Plain, HeadDim> {};

}  // namespace kvit

#endif  // KVIT_ATTENTION_VALUE_OPERANDS_CUH
