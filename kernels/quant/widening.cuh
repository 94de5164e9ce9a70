// Stored codes as f16, in the order of their channels: operands for matrix units that read shared memory by themselves.
#ifndef KVIT_QUANT_WIDENING_CUH
#define KVIT_QUANT_WIDENING_CUH

#include <stdint.h>

#include "core/types.h"
#include "platform/platform.cuh"
#include "quant/codec.cuh"

namespace kvit {

/// Codes of eight neighbouring channels, `Bytes` of them. Of(bytes) makes them f16 by bits alone, each its code divided
/// by kUnit.
template <class Codec>
struct Widening;

template <>
struct Widening<Int8> {
  using Bytes = Words<8>;
  static constexpr float kUnit = Int8::Unit(0);

  static KVIT_DEVICE Words<16> Of(const Bytes& codes) {
    return {{Pair(codes.word[0], 0x4140u), Pair(codes.word[0], 0x4342u), Pair(codes.word[1], 0x4140u),
             Pair(codes.word[1], 0x4342u)}};
  }

 private:
  static KVIT_DEVICE uint32_t Pair(uint32_t word, uint32_t selector) { return PermuteBytes(word, 0u, selector); }
};

/// All nibbles come to the lowest place, so that one unit holds for all.
template <>
struct Widening<Int4> {
  using Bytes = Words<4>;
  static constexpr float kUnit = Int4::Unit(0);

  static KVIT_DEVICE Words<16> Of(const Bytes& codes) {
    const uint32_t word = codes.word[0];
    return {{Pair(word), Pair(word >> 4), Pair(word >> 8), Pair(word >> 12)}};
  }

 private:
  static KVIT_DEVICE uint32_t Pair(uint32_t word) { return word & 0x000f000fu; }
};

template <>
struct Widening<Float8E4M3> {
  using Bytes = Words<8>;
  static constexpr float kUnit = Float8E4M3::Unit(0);

  static KVIT_DEVICE Words<16> Of(const Bytes& codes) {
    return {{ExpandKey<Float8E4M3, 0>(codes.word[0]), ExpandKey<Float8E4M3, 1>(codes.word[0]),
             ExpandKey<Float8E4M3, 0>(codes.word[1]), ExpandKey<Float8E4M3, 1>(codes.word[1])}};
  }
};

/// A codec as it lies in shared memory once it has been widened: products are those of f16, and what they lack is what
/// the codec itself would leave to do.
template <class Codec>
struct Widened {
  template <class>
  using Element = Half;
  static constexpr bool kScaled = Codec::kScaled, kHasZero = Codec::kHasZero;
  static constexpr float kUnit = Widening<Codec>::kUnit;
};

}  // namespace kvit

#endif  // KVIT_QUANT_WIDENING_CUH
