// K of 16 tokens, and a row of queries, as operands of the matrix instruction: the same channels in the same order.
#ifndef KVIT_ATTENTION_KEY_OPERANDS_CUH
#define KVIT_ATTENTION_KEY_OPERANDS_CUH

#include <math.h>

#include "core/array.cuh"
#include "core/types.h"
#include "mma/m16n8k16.cuh"
#include "platform/platform.cuh"
#include "quant/codec.cuh"
#include "quant/hadamard.cuh"
#include "quant/query_code.cuh"

namespace kvit {

/// A scale as small as can be for one that is 0, so that whatever is hidden, an infinite score, stays hidden.
KVIT_DEVICE float NotZero(float scale) { return scale == 0.0f ? 0x1p-126f : scale; }

/// What both sides of K Q^T have, as Codec stores K:
///
///   kLoads             matrix loads of the 16 tokens, kOperands operands each
///   Load(k, key, i)    the i-th; `key(s, c)` is the shared-memory address of token s from channel c on
///   Expand<j>(a, k)    operand j of a load: 16 channels of 16 tokens, as an A operand of K
///   Query              a lane's words of a row of queries: word[load][operand][half] goes with registers half * 2 and
///                      the next of the operand
///   Weight             the type of the products
template <class T, class Codec, int HeadDim>
struct KeyOperands;

/// 16-bit keys: a matrix load gives the operand of one multiplication.
template <class T, int HeadDim>
struct KeyOperands<T, Plain, HeadDim> {
  using Weight = T;
  static constexpr int kLoads = HeadDim / 16, kOperands = 1;

  template <class Key>
  static KVIT_DEVICE void Load(uint32_t (&k)[4], Key&& key, int load) {
    LoadKeyOperand(k, key, load * 16, 8);
  }
  template <int>
  static KVIT_DEVICE void Expand(uint32_t (&a)[4], const uint32_t (&k)[4]) {
    KVIT_UNROLL
    for (int i = 0; i < 4; ++i) a[i] = k[i];
  }

  struct Query {
    uint32_t word[kLoads][kOperands][2];

    /// Null: a row that does not exist. Any lane of the four that share the row calls for itself.
    template <class Width = RowWidth<HeadDim, false>>
    KVIT_DEVICE void Read(const char* row, int /*hadamard*/, const Width& width = {}) {
      KVIT_UNROLL
      for (int load = 0; load < kLoads; ++load) {
        KVIT_UNROLL
        for (int half = 0; half < 2; ++half) {
          const int channel = load * 16 + half * 8 + LaneIndex() % 4 * 2;
          const bool has = row != nullptr && width.Has(channel);
          word[load][0][half] = has ? LoadGlobal<uint32_t>(row + channel * sizeof(T)) : 0u;
        }
      }
    }
  };
};

/// Coded keys, k = s c + z: the codes are multiplied as they are, and the parameters of a token meet its score once.
///
///   q . k = s sum_d (q_d Unit_d) operand_d + z sum_d q_d
///
/// Queries become f16 whatever their type: each row is scaled by a power of two, exactly, so that its largest element
/// lies in [2^10, 2^11); what then is too small for f16 is 2^-24 of that or less. The scale goes back into the score.
/// Where a codec's units differ, the queries make up for it.
template <class T, ScaledCodec Codec, int HeadDim>
struct KeyOperands<T, Codec, HeadDim> {
  using Weight = Half;
  static constexpr int kPairs = Codec::kPairs;
  static constexpr int kWord = 2 * kPairs;  // channels of a 32-bit word
  static constexpr int kHalf = 4 * kWord;   // channels of the 16 bytes that an 8x8 matrix has of a token
  static constexpr int kLoads = HeadDim / (2 * kHalf), kOperands = kPairs;
  static constexpr float kUnit = Codec::Unit(kPairs - 1);  // the least
  static_assert(HeadDim % (2 * kHalf) == 0, "a token must be a whole number of 32-byte matrix loads");

  template <class Key>
  static KVIT_DEVICE void Load(uint32_t (&k)[4], Key&& key, int load) {
    LoadKeyOperand(k, key, load * 2 * kHalf, kHalf);  // [half][tokens 0..7, 8..15]
  }
  // Operands in the order: pairs of codes of the first half and of the second, then the next pairs. Where a unit is one
  // code, an operand has both halves.
  template <int J>
  static KVIT_DEVICE void Expand(uint32_t (&a)[4], const uint32_t (&k)[4]) {
    if constexpr (kPairs == 1) {
      KVIT_UNROLL
      for (int i = 0; i < 4; ++i) a[i] = ExpandKey<Codec, 0>(k[i]);
    } else {
      constexpr int kSide = J % 2, kCode = J / 2 * 2;
      a[0] = ExpandKey<Codec, kCode>(k[2 * kSide]);
      a[1] = ExpandKey<Codec, kCode>(k[2 * kSide + 1]);
      a[2] = ExpandKey<Codec, kCode + 1>(k[2 * kSide]);
      a[3] = ExpandKey<Codec, kCode + 1>(k[2 * kSide + 1]);
    }
  }

  struct Query {
    uint32_t word[kLoads][kOperands][2];
    float up;   // the power of two that the row was scaled by
    float sum;  // of the row as the products see it, over all channels

    /// Null: a row that does not exist. All four lanes that share the row call together. Where keys are stored as
    /// their Hadamard transform, by blocks of `hadamard` channels, the row is transformed too: products stay the same.
    template <class Width = RowWidth<HeadDim, false>>
    KVIT_DEVICE void Read(const char* row, int hadamard, const Width& width = {}) {
      Numbers raw[kLoads][2];
      KVIT_UNROLL
      for (int load = 0; load < kLoads; ++load) {
        KVIT_UNROLL
        for (int half = 0; half < 2; ++half) {
          const int channel = WordChannel(load, half);
          const bool has = row != nullptr && width.Has(channel);
          const Word word = has ? LoadGlobal<Word>(row + channel * int(sizeof(T))) : Word{};
          KVIT_UNROLL
          for (int c = 0; c < kWord; ++c) raw[load][half][c] = ToFloat(word[c]);
        }
      }
      if constexpr (Codec::kHasZero) {
        if (hadamard != 0) Transform(raw, hadamard);
      }
      float top = 0.0f;
      KVIT_UNROLL
      for (int i = 0; i < kLoads * 2 * kWord; ++i) {
        top = fmaxf(top, fabsf(raw[i / (2 * kWord)][i / kWord % 2][i % kWord]));
      }
      top = fmaxf(top, ShuffleXor(top, 1));
      top = fmaxf(top, ShuffleXor(top, 2));
      up = PowerToReach2To10(top);

      sum = 0.0f;
      KVIT_UNROLL
      for (int load = 0; load < kLoads; ++load) {
        KVIT_UNROLL
        for (int half = 0; half < 2; ++half) {
          KVIT_UNROLL
          for (int i = 0; i < kPairs; ++i) {
            const float lo = raw[load][half][KeyChannel<Codec>(i, 0)] * up;
            const float hi = raw[load][half][KeyChannel<Codec>(i, 1)] * up;
            const float ratio = Codec::Unit(i) / kUnit;
            const uint32_t pair = Pack2<Half>(lo * ratio, hi * ratio);
            if constexpr (kPairs == 1) {
              word[load][0][half] = pair;
            } else {
              word[load][i / 2 * 2 + half][i % 2] = pair;
            }
            const Float2 rounded = Unpack2<Half>(pair);
            sum += (rounded.lo + rounded.hi) / ratio;
          }
        }
      }
      KVIT_UNROLL
      for (int mask = 1; mask < 4; mask *= 2) sum += ShuffleXor(sum, mask);
    }
  };

 private:
  using Word = Array<T, kWord>;
  using Numbers = Array<float, kWord>;

  // A row's numbers lie in words of kWord channels, word by word in the four lanes, then half by half of the loads.
  static KVIT_DEVICE void Transform(Numbers (&x)[kLoads][2], int block) {
    constexpr int kWords = kLoads * 2;  // of a lane
    KVIT_UNROLL
    for (int i = 0; i < kWords; ++i) ButterfliesWithin(x[i / 2][i % 2]);
    KVIT_UNROLL
    for (int mask = 1; mask < 4; mask *= 2) {
      if (block <= mask * kWord) continue;
      KVIT_UNROLL
      for (int i = 0; i < kWords * kWord; ++i) {
        float& channel = x[i / kWord / 2][i / kWord % 2][i % kWord];
        channel = ButterflyOfLanes(channel, mask);
      }
    }
    KVIT_UNROLL
    for (int step = 1; step < kWords; step *= 2) {
      if (block <= step * kHalf) continue;
      KVIT_UNROLL
      for (int i = 0; i < kWords; ++i) {
        if ((i & step) != 0) continue;
        KVIT_UNROLL
        for (int c = 0; c < kWord; ++c) {
          Butterfly(x[i / 2][i % 2][c], x[(i | step) / 2][(i | step) % 2][c]);
        }
      }
    }
    const float unit = HadamardUnit(block);
    KVIT_UNROLL
    for (int i = 0; i < kWords * kWord; ++i) x[i / kWord / 2][i / kWord % 2][i % kWord] *= unit;
  }

  // Channels of the word that this lane gets of half `half` of a load.
  static KVIT_DEVICE int WordChannel(int load, int half) { return (load * 2 + half) * kHalf + LaneIndex() % 4 * kWord; }
};

}  // namespace kvit

#endif  // KVIT_ATTENTION_KEY_OPERANDS_CUH
