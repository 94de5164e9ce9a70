// How K and V are stored, and how stored codes become operands of a 16-bit matrix instruction without any arithmetic on
// values.
#ifndef KVIT_QUANT_CODEC_CUH
#define KVIT_QUANT_CODEC_CUH

#include <stdint.h>

#include <concepts>

#include "core/sub_byte.cuh"
#include "core/types.h"
#include "platform/platform.cuh"

namespace kvit {

/// What a token's 4 bytes of parameters say: value = scale * code + zero.
struct ScaleZero {
  float scale, zero;
};

/// A 16-bit cache: elements of the compute type T are operands as they are.
struct Plain {
  template <class T>
  using Element = T;
  static constexpr bool kScaled = false, kHasZero = false;
};

/// A codec with parameters. Matrix tiles come from shared memory as 32-bit words of two 16-bit units, a low and a high
/// one, with kPairs codes in each. Expand turns code i of both units into a pair of f16, by bits alone:
///
///   operand = code / Unit(i)                    code: the number that a scale multiplies
///
/// kHasZero: the parameters have a zero besides the scale. Channel(i, unit) is the channel of code i of a unit, among
/// the word's 2 * kPairs channels.
template <class C>
concept ScaledCodec = C::kScaled && requires(uint32_t word) {
  { C::Unit(0) } -> std::same_as<float>;
  typename C::template Element<Half>;
  { C::template Expand<0>(word) } -> std::same_as<uint32_t>;
  { C::Channel(0, 1) } -> std::same_as<int>;
  { C::template Parameters<Half>(word) } -> std::same_as<ScaleZero>;
};

namespace detail {

/// A code a byte, so that a unit's are neighbours.
struct ByteCodes {
  template <class>
  using Element = uint8_t;
  static constexpr int kPairs = 2;
  static constexpr KVIT_HD int Channel(int i, int unit) { return i + 2 * unit; }
};

/// Parameters of asymmetric integer codes: (scale, zero) in the compute type.
struct PairParameters {
  static constexpr bool kScaled = true, kHasZero = true;
  template <class T>
  static KVIT_DEVICE ScaleZero Parameters(uint32_t word) {
    const Float2 pair = Unpack2<T>(word);
    return {pair.lo, pair.hi};
  }
};

/// Parameters of fp8: a scale in float32.
struct ScaleParameters {
  static constexpr bool kScaled = true, kHasZero = false;
  template <class>
  static KVIT_DEVICE ScaleZero Parameters(uint32_t word) {
    return {BitCast<float>(word), 0.0f};
  }
};

/// Byte I of both units in the upper bytes of a pair of f16, over zeros.
template <int I>
KVIT_DEVICE uint32_t UpperBytes(uint32_t word) {
  return PermuteBytes(word, 0u, I == 0 ? 0x2404u : 0x3414u);
}

}  // namespace detail

/// 8-bit codes 0..255. An f16 below 2^-14 counts in steps of 2^-24: with a zero byte above it, a byte is a number.
struct Int8 : detail::ByteCodes, detail::PairParameters {
  static constexpr KVIT_HD float Unit(int) { return 0x1p24f; }
  template <int I>
  static KVIT_DEVICE uint32_t Expand(uint32_t word) {
    return I == 0 ? word & 0x00ff00ffu : PermuteBytes(word, 0u, 0x4341u);
  }
};

/// 4-bit codes 0..15, eight to a word in the order e0 e2 e4 e6 e1 e3 e5 e7 from the lowest nibble (TurboMind's), so
/// that each mask finds neighbours. A nibble is a small f16 where it stands, as a byte is: the lowest in steps of
/// 2^-24, the next of 2^-20; one shift serves two.
struct Int4 : detail::PairParameters {
  template <class>
  using Element = Uint4;
  static constexpr int kPairs = 4;

  static constexpr KVIT_HD float Unit(int i) { return i % 2 == 0 ? 0x1p24f : 0x1p20f; }
  template <int I>
  static KVIT_DEVICE uint32_t Expand(uint32_t word) {
    return (I < 2 ? word : word >> 8) & (I % 2 == 0 ? 0x000f000fu : 0x00f000f0u);
  }
  static constexpr KVIT_HD int Channel(int i, int unit) { return 2 * i + unit; }
};

/// fp8 with 5 exponent bits is the upper byte of an f16, infinities and NaN included.
struct Float8E5M2 : detail::ByteCodes, detail::ScaleParameters {
  static constexpr KVIT_HD float Unit(int) { return 1.0f; }
  template <int I>
  static KVIT_DEVICE uint32_t Expand(uint32_t word) {
    return detail::UpperBytes<I>(word);
  }
};

/// fp8 with 4 exponent bits (e4m3fn). Where the GPU has no conversion, moved to an f16's place: its exponent bias is 8
/// less, so the operand is then 2^-8 times the number. The only codes that are no numbers, 0x7f and 0xff, become NaN.
struct Float8E4M3 : detail::ByteCodes, detail::ScaleParameters {
  static constexpr KVIT_HD float Unit(int) { return kConvertsFloat8 ? 1.0f : 256.0f; }
  template <int I>
  static KVIT_DEVICE uint32_t Expand(uint32_t word) {
    if constexpr (kConvertsFloat8) return HalvesFromE4M3<0>(PermuteBytes(word, 0u, I == 0 ? 0x4420u : 0x4431u));
    const uint32_t high = detail::UpperBytes<I>(word);
    const uint32_t magnitude = (high & 0x7f007f00u) >> 1;
    // 0x7f << 7 is 0x3f80; adding 0x80 carries into bit 14 for it alone. Bits 14..10 all set, mantissa not zero: NaN.
    const uint32_t nan = (magnitude + 0x00800080u) & 0x40004000u;
    return (high & 0x80008000u) | magnitude | nan;
  }
  // A conversion takes neighbours: for keys, whose channels may be dealt in any order, they are a pair as they are.
  template <int I>
  static KVIT_DEVICE uint32_t ExpandKey(uint32_t word) {
    if constexpr (kConvertsFloat8) return HalvesFromE4M3<I>(word);
    return Expand<I>(PermuteBytes(word, 0u, 0x3120u));
  }
  static constexpr KVIT_HD int KeyChannel(int i, int k) { return 2 * i + k; }
};

/// Operand i of a word of keys, and the channels of its two codes: as Expand and Channel say, unless the codec says
/// otherwise.
template <class Codec, int I>
KVIT_DEVICE uint32_t ExpandKey(uint32_t word) {
  if constexpr (requires { Codec::template ExpandKey<I>(word); })
    return Codec::template ExpandKey<I>(word);
  else
    return Codec::template Expand<I>(word);
}
template <class Codec>
constexpr KVIT_HD int KeyChannel(int i, int k) {
  if constexpr (requires { Codec::KeyChannel(i, k); })
    return Codec::KeyChannel(i, k);
  else
    return Codec::Channel(i, k);
}

static_assert(ScaledCodec<Int8> && ScaledCodec<Int4> && ScaledCodec<Float8E4M3> && ScaledCodec<Float8E5M2>);

}  // namespace kvit

#endif  // KVIT_QUANT_CODEC_CUH
