// Vec8s, eight neighbouring channels of a row: encoded for the cache, and decoded again. kvit.reference.codecs defines
// both.
#ifndef KVIT_QUANT_ROW_CODEC_CUH
#define KVIT_QUANT_ROW_CODEC_CUH

#include <math.h>

#include "core/array.cuh"
#include "core/types.h"
#include "platform/platform.cuh"
#include "quant/codec.cuh"

namespace kvit {

/// A vec8 as numbers.
using Vec8 = Array<float, 8>;

/// A vec8 in 16 bits a channel, as registers hold it: two channels to a word.
using PackedVec8 = Words<16>;

/// The vec8s of a row that one lane holds.
template <int Vec8s>
using RowPart = Array<PackedVec8, Vec8s>;

template <class T>
KVIT_DEVICE Vec8 Unpack(const PackedVec8& packed) {
  Vec8 vec8;
  KVIT_UNROLL
  for (int i = 0; i < 4; ++i) {
    const Float2 pair = Unpack2<T>(packed.word[i]);
    vec8[2 * i] = pair.lo;
    vec8[2 * i + 1] = pair.hi;
  }
  return vec8;
}
template <class T>
KVIT_DEVICE PackedVec8 RoundTo(const Vec8& vec8) {
  PackedVec8 packed;
  KVIT_UNROLL
  for (int i = 0; i < 4; ++i) packed.word[i] = Pack2<T>(vec8[2 * i], vec8[2 * i + 1]);
  return packed;
}

/// What RowCodec<T, Codec> has: Data, the stored form of a vec8; Encode(part, lanes, parameters), which all `lanes`
/// lanes of a row call together, each with its part, reading or setting the row's 4 bytes of parameters; and
/// Decode(data, parameters) of one vec8.
template <class T, class Codec>
struct RowCodec;

namespace detail {

/// encode(vec8) of every vec8 of a part.
template <class Data, class T, int N, class Encode>
KVIT_DEVICE Array<Data, N> EncodeVec8s(const RowPart<N>& part, Encode&& encode) {
  Array<Data, N> data;
  KVIT_UNROLL
  for (int vec8 = 0; vec8 < N; ++vec8) data[vec8] = encode(Unpack<T>(part[vec8]));
  return data;
}

}  // namespace detail

template <class T>
struct RowCodec<T, Plain> {
  using Data = PackedVec8;
  static constexpr bool kWritesParameters = false;
  template <int N>
  static KVIT_DEVICE Array<Data, N> Encode(const RowPart<N>& part, int, uint32_t&) {
    return part;
  }
  static KVIT_DEVICE PackedVec8 Decode(const Data& data, uint32_t) { return data; }
};

namespace detail {

// A float of either is an integer in its lowest bits: kRoundBase rounds what is added to it, to nearest even.
constexpr uint32_t kRoundBase = 0x4b400000u;  // 1.5 * 2^23
constexpr uint32_t kCodeBase = 0x4b000000u;   // 2^23

/// A code a byte.
struct BytesOfVec8 {
  using Data = Words<8>;

  template <class Code>
  static KVIT_DEVICE Data Pack(Code&& code) {
    Data data;
    KVIT_UNROLL
    for (int i = 0; i < 2; ++i) {
      const uint32_t lower = PermuteBytes(code(4 * i), code(4 * i + 1), 0x40u);
      const uint32_t upper = PermuteBytes(code(4 * i + 2), code(4 * i + 3), 0x40u);
      data.word[i] = PermuteBytes(lower, upper, 0x5410u);
    }
    return data;
  }
  static KVIT_DEVICE uint32_t Bits(const Data& data, int i) {
    return PermuteBytes(data.word[i / 4], kCodeBase, 0x7440u | i % 4);
  }
};

/// A code a nibble: e0 e2 e4 e6 e1 e3 e5 e7 from the lowest.
struct NibblesOfVec8 {
  using Data = Words<4>;

  template <class Code>
  static KVIT_DEVICE Data Pack(Code&& code) {
    Data data = {};
    KVIT_UNROLL
    for (int i = 0; i < 8; ++i) data.word[0] += (code(i) - kRoundBase) << Shift(i);
    return data;
  }
  static KVIT_DEVICE uint32_t Bits(const Data& data, int i) {
    return MaskOr(data.word[0] >> Shift(i), 0xfu, kCodeBase);
  }

 private:
  static constexpr KVIT_HD int Shift(int i) { return 4 * (i / 2 + i % 2 * 4); }
};

/// x / Divisor for x >= 0, of 15 and 255 the float that a division gives.
template <int Divisor>
KVIT_DEVICE float Quotient(float x) {
  const float nearly = RoundedProduct(x, 1.0f / Divisor);
  return x < INFINITY ? fmaf(fmaf(-float(Divisor), nearly, x), 1.0f / Divisor, nearly) : nearly;
}

/// Asymmetric codes 0..Top between a row's least and greatest channel. All in f32; the parameters in T. Codes says how
/// eight of them lie in its Data: Pack(code), where code(i) is channel i's code + kRoundBase, and Bits(data, i), which
/// is channel i's code + kCodeBase.
template <class T, int Top, class Codes>
struct IntegerRow {
  using Data = typename Codes::Data;
  static constexpr bool kWritesParameters = true;

  template <int N>
  static KVIT_DEVICE Array<Data, N> Encode(const RowPart<N>& part, int lanes, uint32_t& parameters) {
    const Scaling scaling = Measure(part, lanes, parameters);
    return EncodeVec8s<Data, T>(part, [&](const Vec8& x) {
      Data data = Codes::Pack([&](int i) { return Code(x[i], scaling); });
      KVIT_UNROLL
      for (uint32_t& word : data.word) word &= scaling.mask;
      return data;
    });
  }

  static KVIT_DEVICE PackedVec8 Decode(const Data& data, uint32_t parameters) {
    const ScaleZero p = PairParameters::Parameters<T>(parameters);
    Vec8 vec8;
    KVIT_UNROLL
    for (int i = 0; i < 8; ++i) vec8[i] = fmaf(p.scale, BitCast<float>(Codes::Bits(data, i)) - 0x1p23f, p.zero);
    return RoundTo<T>(vec8);
  }

 private:
  /// What makes codes of a row's numbers.
  struct Scaling {
    float zero, inverse;
    uint32_t mask;  // of codes: they are 0 in a row that is not finite
  };

  /// The scaling of a row, and its parameters, from the parts of all its lanes.
  template <int N>
  static KVIT_DEVICE Scaling Measure(const RowPart<N>& part, int lanes, uint32_t& parameters) {
    uint32_t least = part[0].word[0], greatest = least;
    KVIT_UNROLL
    for (int i = 1; i < 4 * N; ++i) {
      const uint32_t word = part[i / 4].word[i % 4];
      least = Min2<T>(least, word);
      greatest = Max2<T>(greatest, word);
    }
    // One word for both ends of the row, (least, -greatest), so that each exchange is one shuffle and one minimum.
    greatest ^= 0x80008000u;
    uint32_t ends = Min2<T>(PermuteBytes(least, greatest, 0x5410u), PermuteBytes(least, greatest, 0x7632u));
    for (int mask = 1; mask < lanes; mask *= 2) ends = Min2<T>(ends, ShuffleXor(ends, mask));
    const Float2 found = Unpack2<T>(ends);
    const float lo = found.lo, hi = -found.hi;
    const float zero = lo + 0.0f;  // -0 and 0 compare alike, so lanes may disagree on which of them is the least
    T scale = FromFloat<T>(Quotient<Top>(hi - lo));
    if (ToFloat(scale) < 0x1p-126f) scale = kLeastNormal<T>;
    parameters = uint32_t(scale.bits) | uint32_t(FromFloat<T>(zero).bits) << 16;
    // The greatest is finite where the scale is; a NaN is less than nothing.
    return {zero, 1.0f / ToFloat(scale), ToFloat(scale) < INFINITY ? ~0u : 0u};
  }

  // Whether the greatest channel may lie half a step above Top. A scale in bf16 is at most 2^-8 too small; one in f16
  // may be a subnormal, and far off.
  static constexpr bool kMayPass = !std::same_as<T, Bfloat16> || Top / (1 - 0x1p-8) >= Top + 0.5;

  /// The code of a channel, + kRoundBase.
  static KVIT_DEVICE uint32_t Code(float x, const Scaling& scaling) {
    float nearest = RoundedProduct(x - scaling.zero, scaling.inverse);  // not below 0: zero is the least channel
    if constexpr (kMayPass) nearest = fminf(nearest, float(Top));
    return BitCast<uint32_t>(RoundedSum(nearest, 0x1.8p23f));
  }
};

}  // namespace detail

template <class T>
struct RowCodec<T, Int8> : detail::IntegerRow<T, 255, detail::BytesOfVec8> {};

template <class T>
struct RowCodec<T, Int4> : detail::IntegerRow<T, 15, detail::NibblesOfVec8> {};

template <class T, class Codec>
  requires(std::same_as<Codec, Float8E4M3> || std::same_as<Codec, Float8E5M2>)
struct RowCodec<T, Codec> {
  using Data = Words<8>;
  static constexpr bool kWritesParameters = false;
  template <int N>
  static KVIT_DEVICE Array<Data, N> Encode(const RowPart<N>& part, int, uint32_t& parameters) {
    const float inverse = 1.0f / BitCast<float>(parameters);
    return detail::EncodeVec8s<Data, T>(part, [&](const Vec8& x) {
      Data data;
      KVIT_UNROLL
      for (int i = 0; i < 2; ++i) {
        const uint32_t lower = Pack(x[4 * i] * inverse, x[4 * i + 1] * inverse);
        const uint32_t upper = Pack(x[4 * i + 2] * inverse, x[4 * i + 3] * inverse);
        data.word[i] = lower | upper << 16;
      }
      return data;
    });
  }
  static KVIT_DEVICE PackedVec8 Decode(const Data& data, uint32_t parameters) {
    const auto scale = BitCast<float>(parameters);
    Vec8 vec8;
    KVIT_UNROLL
    for (int i = 0; i < 2; ++i) {
      const Float2 pairs[2] = {Unpack2<Half>(Codec::template Expand<0>(data.word[i])),
                               Unpack2<Half>(Codec::template Expand<1>(data.word[i]))};
      KVIT_UNROLL
      for (int j = 0; j < 2; ++j) {
        vec8[4 * i + Codec::Channel(j, 0)] = pairs[j].lo * Codec::Unit(j) * scale;
        vec8[4 * i + Codec::Channel(j, 1)] = pairs[j].hi * Codec::Unit(j) * scale;
      }
    }
    return RoundTo<T>(vec8);
  }

 private:
  static KVIT_DEVICE uint32_t Pack(float lo, float hi) {
    if constexpr (std::same_as<Codec, Float8E4M3>) {
      return PackE4M3(lo, hi);
    } else {
      return PackE5M2(lo, hi);
    }
  }
};

}  // namespace kvit

#endif  // KVIT_QUANT_ROW_CODEC_CUH
