// S^T = K Q^T for one warp: 16 tokens times the query rows of a row tile, K as its codec stores it.
#ifndef KVIT_ATTENTION_KEY_PRODUCT_CUH
#define KVIT_ATTENTION_KEY_PRODUCT_CUH

#include <math.h>

#include "core/array.cuh"
#include "core/types.h"
#include "mma/m16n8k16.cuh"
#include "platform/platform.cuh"
#include "quant/codec.cuh"

namespace kvit {

/// A scale as small as can be for one that is 0, so that whatever is hidden, an infinite score, stays hidden.
KVIT_DEVICE float NotZero(float scale) { return scale == 0.0f ? 0x1p-126f : scale; }

/// Queries as operands, and scores. HasFactors: rows' scores are scaled by factors of their own.
template <class T, class Codec, int HeadDim, int Rows, bool HasFactors = false>
class KeyProduct;

/// The factor of every row where rows have none of their own.
struct NoFactor {
  KVIT_DEVICE float operator()(int) const { return 1.0f; }
};

/// 16-bit keys: a matrix load gives the operands of one multiplication, 16 channels.
template <class T, int HeadDim, int Rows, bool HasFactors>
class KeyProduct<T, Plain, HeadDim, Rows, HasFactors> {
 public:
  static constexpr int kRowTiles = Rows / 8;
  static constexpr int kSteps = HeadDim / 16;

  /// Loads the queries; `address(row)` is null for rows that do not exist. A score is `scale` times the product, times
  /// `factor(row)` of a row that exists.
  template <class Address, class Factor = NoFactor>
  KVIT_DEVICE void LoadQueries(Address&& address, float scale, const Factor& factor = {}) {
    if constexpr (HasFactors) {
      KVIT_UNROLL
      for (int n = 0; n < kRowTiles; ++n) {
        KVIT_UNROLL
        for (int j = 0; j < 2; ++j) scale_[n][j] = NotZero(scale * factor(FragmentRow(n, j)));
      }
    } else {
      scale_[0][0] = NotZero(scale);
    }
    KVIT_UNROLL
    for (int n = 0; n < kRowTiles; ++n) {
      const char* row = address(OperandRow(n));
      KVIT_UNROLL
      for (int step = 0; step < kSteps; ++step) {
        KVIT_UNROLL
        for (int half = 0; half < 2; ++half) {
          const int channel = step * 16 + half * 8 + LaneIndex() % 4 * 2;
          q_[n][step][half] = row != nullptr ? LoadGlobal<uint32_t>(row + channel * sizeof(T)) : 0u;
        }
      }
    }
  }

  /// What scores come out divided by, of FragmentRow(n, j). Never 0.
  KVIT_DEVICE float Scale(int n, int j) const { return HasFactors ? scale_[n][j] : scale_[0][0]; }

  /// `key(s, c)` is the shared-memory address of token s of the step from channel c on.
  template <class Key, class Parameters>
  KVIT_DEVICE void Scores(float (&s)[kRowTiles][4], Key&& key, Parameters&&) const {
    KVIT_UNROLL
    for (int n = 0; n < kRowTiles; ++n) s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0.0f;
    KVIT_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      uint32_t k[4];
      LoadKeyOperand(k, key, step * 16, 8);
      KVIT_UNROLL
      for (int n = 0; n < kRowTiles; ++n) MmaM16N8K16<T>(s[n], k, q_[n][step]);
    }
  }

 private:
  uint32_t q_[kRowTiles][kSteps][2];  // B fragments of Q^T
  float scale_[HasFactors ? kRowTiles : 1][HasFactors ? 2 : 1];
};

/// Coded keys, k = s c + z: the codes are multiplied as they are, and the parameters of a token meet its score once.
///
///   q . k = s sum_d (q_d Unit_d) operand_d + z sum_d q_d
///
/// Queries become f16 whatever their type: each row is scaled by a power of two, exactly, so that its largest element
/// lies in [2^10, 2^11); what then is too small for f16 is 2^-24 of that or less. The scale goes back into the score.
/// Where a codec's units differ, the queries make up for it.
template <class T, ScaledCodec Codec, int HeadDim, int Rows, bool HasFactors>
class KeyProduct<T, Codec, HeadDim, Rows, HasFactors> {
 public:
  static constexpr int kRowTiles = Rows / 8;
  static constexpr int kPairs = Codec::kPairs;
  static constexpr int kWord = 2 * kPairs;  // channels of a 32-bit word
  static constexpr int kHalf = 4 * kWord;   // channels of the 16 bytes that an 8x8 matrix has of a token
  static constexpr int kLoads = HeadDim / (2 * kHalf);
  static constexpr float kUnit = Codec::Unit(kPairs - 1);  // the least
  static_assert(HeadDim % (2 * kHalf) == 0, "a token must be a whole number of 32-byte matrix loads");

  template <class Address, class Factor = NoFactor>
  KVIT_DEVICE void LoadQueries(Address&& address, float scale, const Factor& factor = {}) {
    KVIT_UNROLL
    for (int n = 0; n < kRowTiles; ++n) {
      const char* row = address(OperandRow(n));
      Word raw[kLoads][2];
      float top = 0.0f;
      KVIT_UNROLL
      for (int load = 0; load < kLoads; ++load) {
        KVIT_UNROLL
        for (int half = 0; half < 2; ++half) {
          raw[load][half] = row != nullptr ? LoadGlobal<Word>(row + WordChannel(load, half) * int(sizeof(T))) : Word{};
          KVIT_UNROLL
          for (int c = 0; c < kWord; ++c) top = fmaxf(top, fabsf(ToFloat(raw[load][half][c])));
        }
      }
      top = fmaxf(top, ShuffleXor(top, 1));
      top = fmaxf(top, ShuffleXor(top, 2));
      const float up = PowerToReach2To10(top);

      float sum = 0.0f;  // of q as the products see it
      KVIT_UNROLL
      for (int load = 0; load < kLoads; ++load) {
        KVIT_UNROLL
        for (int half = 0; half < 2; ++half) {
          KVIT_UNROLL
          for (int i = 0; i < kPairs; ++i) {
            const float lo = ToFloat(raw[load][half][KeyChannel<Codec>(i, 0)]) * up;
            const float hi = ToFloat(raw[load][half][KeyChannel<Codec>(i, 1)]) * up;
            const float ratio = Codec::Unit(i) / kUnit;
            q_[n][load][half][i] = Pack2<Half>(lo * ratio, hi * ratio);
            const Float2 rounded = Unpack2<Half>(q_[n][load][half][i]);
            sum += (rounded.lo + rounded.hi) / ratio;
          }
        }
      }
      KVIT_UNROLL
      for (int mask = 1; mask < 4; mask *= 2) sum += ShuffleXor(sum, mask);
      KVIT_UNROLL
      for (int j = 0; j < 2; ++j) {  // from the lanes that hold a row of Q to those that hold it in S
        const int from = (LaneIndex() % 4 * 2 + j) * 4;
        float of_row = scale;
        if constexpr (HasFactors) of_row *= factor(FragmentRow(n, j));
        scale_[n][j] = NotZero(of_row / Shuffle(up, from) * kUnit);
        sum_[n][j] = Shuffle(sum, from) / kUnit;
      }
    }
  }

  KVIT_DEVICE float Scale(int n, int j) const { return scale_[n][j]; }

  /// `parameters(s)` is the shared-memory address of the 4 bytes of token s of the step.
  template <class Key, class Parameters>
  KVIT_DEVICE void Scores(float (&s)[kRowTiles][4], Key&& key, Parameters&& parameters) const {
    KVIT_UNROLL
    for (int n = 0; n < kRowTiles; ++n) s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0.0f;
    KVIT_UNROLL
    for (int load = 0; load < kLoads; ++load) {
      uint32_t k[4];  // [half][tokens 0..7, 8..15]
      LoadKeyOperand(k, key, load * 2 * kHalf, kHalf);
      Multiply<0, 0>(s, k, load);
      Multiply<1, 0>(s, k, load);
      if constexpr (kPairs == 4) {
        Multiply<0, 2>(s, k, load);
        Multiply<1, 2>(s, k, load);
      }
    }
    KVIT_UNROLL
    for (int i = 0; i < 4; i += 2) {
      const ScaleZero p = Codec::template Parameters<T>(LoadShared<uint32_t>(parameters(FragmentToken(i))));
      KVIT_UNROLL
      for (int n = 0; n < kRowTiles; ++n) {
        KVIT_UNROLL
        for (int j = 0; j < 2; ++j) {
          s[n][i + j] *= p.scale;
          if constexpr (Codec::kHasZero) s[n][i + j] = fmaf(p.zero, sum_[n][j], s[n][i + j]);
        }
      }
    }
  }

 private:
  using Word = Array<T, kWord>;

  // Channels of the word that this lane gets of half `half` of a load.
  static KVIT_DEVICE int WordChannel(int load, int half) { return (load * 2 + half) * kHalf + LaneIndex() % 4 * kWord; }

  // 2^e with x 2^e in [2^10, 2^11); 1 where x is 0 or so small that nothing matters.
  static KVIT_DEVICE float PowerToReach2To10(float x) {
    const int exponent = int(BitCast<uint32_t>(x) >> 23);
    return exponent < 11 ? 1.0f : BitCast<float>(uint32_t(264 - exponent) << 23);
  }

  template <int Half, int I>
  KVIT_DEVICE void Multiply(float (&s)[kRowTiles][4], const uint32_t (&k)[4], int load) const {
    const uint32_t a[4] = {ExpandKey<Codec, I>(k[2 * Half]), ExpandKey<Codec, I>(k[2 * Half + 1]),
                           ExpandKey<Codec, I + 1>(k[2 * Half]), ExpandKey<Codec, I + 1>(k[2 * Half + 1])};
    KVIT_UNROLL
    for (int n = 0; n < kRowTiles; ++n) {
      const uint32_t b[2] = {q_[n][load][Half][I], q_[n][load][Half][I + 1]};
      MmaM16N8K16<kvit::Half>(s[n], a, b);
    }
  }

  uint32_t q_[kRowTiles][kLoads][2][kPairs];  // B fragments of Q^T, in the order in which ExpandKey deals channels
  float scale_[kRowTiles][2];                 // of the rows' scores
  float sum_[kRowTiles][2];                   // of the rows of Q, in the units of the products
};

}  // namespace kvit

#endif  // KVIT_ATTENTION_KEY_PRODUCT_CUH
