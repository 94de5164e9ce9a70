// Eight neighbouring channels of a row at a time: encoded for the cache, and decoded again. kvit.reference.codecs
// defines both.
#ifndef KVIT_QUANT_ROW_CODEC_CUH
#define KVIT_QUANT_ROW_CODEC_CUH

#include <math.h>

#include "core/array.cuh"
#include "core/types.h"
#include "platform/platform.cuh"
#include "quant/codec.cuh"

namespace kvit {

/// The eight channels that one lane holds of a row.
using Octet = Array<float, 8>;

template <class T>
KVIT_DEVICE Octet OctetFrom(const Array<T, 8>& elements) {
  Octet octet;
  KVIT_UNROLL
  for (int i = 0; i < 8; ++i) octet[i] = ToFloat(elements[i]);
  return octet;
}
template <class T>
KVIT_DEVICE Array<T, 8> RoundTo(const Octet& octet) {
  Array<T, 8> elements;
  KVIT_UNROLL
  for (int i = 0; i < 8; ++i) elements[i] = FromFloat<T>(octet[i]);
  return elements;
}

/// What RowCodec<T, Codec> has: Data, the stored form of eight channels; Encode(elements, lanes, parameters), which all
/// `lanes` lanes of a row call together, reading or setting the row's 4 bytes of parameters; and Decode(data,
/// parameters).
template <class T, class Codec>
struct RowCodec;

template <class T>
struct RowCodec<T, Plain> {
  using Data = Array<T, 8>;
  static constexpr bool kWritesParameters = false;
  static KVIT_DEVICE Data Encode(const Array<T, 8>& elements, int, uint32_t&) { return elements; }
  static KVIT_DEVICE Array<T, 8> Decode(const Data& data, uint32_t) { return data; }
};

namespace detail {

/// Asymmetric codes 0..Top between a row's least and greatest channel. All in f32; the parameters in T.
template <class T, int Top>
struct IntegerRow {
  static constexpr bool kWritesParameters = true;

  static KVIT_DEVICE Array<uint32_t, 8> Codes(const Octet& octet, int lanes, uint32_t& parameters) {
    float lo = octet[0], hi = octet[0];
    bool is_nan = octet[0] != octet[0];
    KVIT_UNROLL
    for (int i = 1; i < 8; ++i) {
      lo = fminf(lo, octet[i]);
      hi = fmaxf(hi, octet[i]);
      is_nan = is_nan || octet[i] != octet[i];
    }
    if (is_nan) lo = hi = NAN;
    for (int mask = 1; mask < lanes; mask *= 2) {
      const float other_lo = ShuffleXor(lo, mask), other_hi = ShuffleXor(hi, mask);
      lo = lo != lo || other_lo != other_lo ? NAN : fminf(lo, other_lo);
      hi = hi != hi || other_hi != other_hi ? NAN : fmaxf(hi, other_hi);
    }
    const float zero = lo + 0.0f;  // -0 and 0 compare alike, so lanes may disagree on which of them is the least
    T scale = FromFloat<T>((hi - lo) / float(Top));
    if (ToFloat(scale) < 0x1p-126f) scale = kLeastNormal<T>;
    const float inverse = 1.0f / ToFloat(scale);
    Array<uint32_t, 8> codes;
    KVIT_UNROLL
    for (int i = 0; i < 8; ++i) {
      const float nearest = rintf((octet[i] - zero) * inverse);
      codes[i] = uint32_t(fminf(fmaxf(nearest, 0.0f), float(Top)));  // fmaxf takes the 0 where the code is NaN
    }
    parameters = uint32_t(scale.bits) | uint32_t(FromFloat<T>(zero).bits) << 16;
    return codes;
  }

  static KVIT_DEVICE float Value(uint32_t code, ScaleZero p) { return fmaf(p.scale, float(code), p.zero); }
};

/// Rounds to 8 bits: a sign, an exponent and MantissaBits, to nearest even; beyond `largest` comes `largest`.
template <int ExponentBias, int MantissaBits>
KVIT_DEVICE uint32_t ToFloat8(float x, float largest) {
  const uint32_t sign = BitCast<uint32_t>(x) >> 24 & 0x80u;
  if (x != x) return 0x7fu;
  const float magnitude = fminf(fabsf(x), largest);
  const float least_normal = BitCast<float>(uint32_t(128 - ExponentBias) << 23);
  if (magnitude < least_normal) {  // evenly spaced, 2^MantissaBits of them
    const float spacing_inverse = BitCast<float>(uint32_t(127 + ExponentBias - 1 + MantissaBits) << 23);
    return sign | uint32_t(rintf(magnitude * spacing_inverse));
  }
  constexpr int kDropped = 23 - MantissaBits;
  const uint32_t bits = BitCast<uint32_t>(magnitude);
  const uint32_t rounded = bits + ((1u << (kDropped - 1)) - 1) + (bits >> kDropped & 1u);
  return sign | ((rounded >> kDropped) - (uint32_t(127 - ExponentBias) << MantissaBits));
}

KVIT_DEVICE float FromFloat8(Float8E5M2, uint32_t code) { return ToFloat(Half{uint16_t(code << 8)}); }
KVIT_DEVICE float FromFloat8(Float8E4M3, uint32_t code) {
  if ((code & 0x7fu) == 0x7fu) return NAN;
  return ToFloat(Half{uint16_t((code & 0x80u) << 8 | (code & 0x7fu) << 7)}) * 256.0f;
}
KVIT_DEVICE uint32_t ToFloat8(Float8E5M2, float x) { return ToFloat8<15, 2>(x, 57344.0f); }
KVIT_DEVICE uint32_t ToFloat8(Float8E4M3, float x) { return ToFloat8<7, 3>(x, 448.0f); }

}  // namespace detail

template <class T>
struct RowCodec<T, Int8> : detail::IntegerRow<T, 255> {
  using Data = Words<8>;
  static KVIT_DEVICE Data Encode(const Array<T, 8>& elements, int lanes, uint32_t& parameters) {
    const auto codes = RowCodec::Codes(OctetFrom(elements), lanes, parameters);
    Data data = {};
    KVIT_UNROLL
    for (int i = 0; i < 8; ++i) data.word[i / 4] |= codes[i] << (8 * (i % 4));
    return data;
  }
  static KVIT_DEVICE Array<T, 8> Decode(const Data& data, uint32_t parameters) {
    const ScaleZero p = Int8::Parameters<T>(parameters);
    Octet octet;
    KVIT_UNROLL
    for (int i = 0; i < 8; ++i) octet[i] = RowCodec::Value(data.word[i / 4] >> (8 * (i % 4)) & 0xffu, p);
    return RoundTo<T>(octet);
  }
};

template <class T>
struct RowCodec<T, Int4> : detail::IntegerRow<T, 15> {
  using Data = Words<4>;
  static KVIT_DEVICE Data Encode(const Array<T, 8>& elements, int lanes, uint32_t& parameters) {
    const auto codes = RowCodec::Codes(OctetFrom(elements), lanes, parameters);
    Data data = {};
    KVIT_UNROLL
    for (int i = 0; i < 8; ++i) data.word[0] |= codes[i] << (4 * Nibble(i));
    return data;
  }
  static KVIT_DEVICE Array<T, 8> Decode(const Data& data, uint32_t parameters) {
    const ScaleZero p = Int4::Parameters<T>(parameters);
    Octet octet;
    KVIT_UNROLL
    for (int i = 0; i < 8; ++i) octet[i] = RowCodec::Value(data.word[0] >> (4 * Nibble(i)) & 0xfu, p);
    return RoundTo<T>(octet);
  }

 private:
  // Where channel i of eight is: e0 e2 e4 e6 e1 e3 e5 e7 from the lowest nibble.
  static constexpr KVIT_HD int Nibble(int i) { return i / 2 + i % 2 * 4; }
};

template <class T, class Codec>
  requires(std::same_as<Codec, Float8E4M3> || std::same_as<Codec, Float8E5M2>)
struct RowCodec<T, Codec> {
  using Data = Words<8>;
  static constexpr bool kWritesParameters = false;
  static KVIT_DEVICE Data Encode(const Array<T, 8>& elements, int, uint32_t& parameters) {
    const Octet octet = OctetFrom(elements);
    const float inverse = 1.0f / BitCast<float>(parameters);
    Data data = {};
    KVIT_UNROLL
    for (int i = 0; i < 8; ++i) data.word[i / 4] |= detail::ToFloat8(Codec{}, octet[i] * inverse) << (8 * (i % 4));
    return data;
  }
  static KVIT_DEVICE Array<T, 8> Decode(const Data& data, uint32_t parameters) {
    const auto scale = BitCast<float>(parameters);
    Octet octet;
    KVIT_UNROLL
    for (int i = 0; i < 8; ++i) {
      octet[i] = detail::FromFloat8(Codec{}, data.word[i / 4] >> (8 * (i % 4)) & 0xffu) * scale;
    }
    return RoundTo<T>(octet);
  }
};

}  // namespace kvit

#endif  // KVIT_QUANT_ROW_CODEC_CUH
