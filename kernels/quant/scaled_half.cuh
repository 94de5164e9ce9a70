// bfloat16 rows as f16 codes with a power of two for each row, for matrix instructions that take no bfloat16.
#ifndef KVIT_QUANT_SCALED_HALF_CUH
#define KVIT_QUANT_SCALED_HALF_CUH

#include <stdint.h>

#include "core/types.h"
#include "platform/platform.cuh"
#include "quant/codec.cuh"

namespace kvit {

/// A codec that no cache is stored in: rows become such codes on their way into shared memory. An f16 has three bits of
/// mantissa more than a bfloat16, so that a channel is exact, and 2^30 times less room for exponents. So the power of
/// two of a row puts its largest finite channel into [2^15, 2^16). What is 2^-30 of that or less is off by up to that
/// much, and so is what is below 2^-118. Infinities and NaN stay what they are, and count for no power of two.
struct ScaledHalf : detail::ScaleParameters {
  template <class>
  using Element = Half;
  static constexpr int kPairs = 1;

  static constexpr KVIT_HD float Unit(int) { return 1.0f; }
  template <int I>
  static KVIT_DEVICE uint32_t Expand(uint32_t word) {
    return word;
  }
  static constexpr KVIT_HD int Channel(int, int unit) { return unit; }

  /// What a lane finds in its pairs of bfloat16: the largest finite magnitude, as a float32 has its bits, and whether
  /// any is infinite or NaN.
  struct Extent {
    uint32_t magnitude;
    bool has_special;
  };
  template <int N>
  static KVIT_DEVICE Extent Measure(const uint32_t (&pairs)[N]) {
    const uint32_t all = Largest(pairs, [](uint32_t magnitude) { return magnitude; });
    if (all < kInfinity) return {all, false};
    return {Largest(pairs, [](uint32_t magnitude) { return magnitude < kInfinity ? magnitude : 0u; }), true};
  }

  /// The exponent that a row is shifted by, from the largest magnitude of its lanes.
  static KVIT_DEVICE uint32_t Shift(uint32_t magnitude) {
    return uint32_t(Max(int(magnitude >> 23) - kMostExponent, kLeastShift));
  }
  /// What codes of a row shifted by so much are multiplied by, as parameters have it: a float32.
  static KVIT_DEVICE uint32_t Scale(uint32_t shift) { return (shift + kHalfBias) << 23; }

  /// Makes codes of pairs of bfloat16.
  template <int N>
  static KVIT_DEVICE void Encode(uint32_t (&pairs)[N], const Extent& extent, uint32_t shift) {
    if (extent.has_special) {
      KVIT_UNROLL
      for (uint32_t& pair : pairs) {
        const uint32_t special = Ones((pair & 0x7fff7fffu) + 0x00800080u);
        const uint32_t code = 0x7c007c00u | (pair & 0x007f007fu) << 3;
        pair = (Shifted(pair & ~special, shift) & ~special) | (code & special) | (pair & 0x80008000u);
      }
    } else {
      KVIT_UNROLL
      for (uint32_t& pair : pairs) pair = Shifted(pair, shift) | (pair & 0x80008000u);
    }
  }

 private:
  static constexpr int kMostExponent = 30;  // of a finite f16
  static constexpr int kLeastShift = 8;     // so that scales are 2^-104 and more, which every weight can bear
  static constexpr uint32_t kHalfBias = 15;
  static constexpr uint32_t kInfinity = 0x7f800000u;

  template <int N, class Counts>
  static KVIT_DEVICE uint32_t Largest(const uint32_t (&pairs)[N], Counts&& counts) {
    uint32_t largest = 0;
    KVIT_UNROLL
    for (const uint32_t pair : pairs) {
      for (const uint32_t upper : {pair << 16, pair}) {
        const uint32_t magnitude = counts(upper & 0x7fff0000u);
        largest = largest < magnitude ? magnitude : largest;
      }
    }
    return largest;
  }

  // Of each half of x: 0x7fff where its highest bit is set, else 0.
  static KVIT_DEVICE uint32_t Ones(uint32_t x) {
    const uint32_t is_set = x & 0x80008000u;
    return is_set - (is_set >> 15);
  }
  // Magnitudes of a pair of finite numbers as f16. A bit above each says afterwards whether there is anything left of
  // it.
  static KVIT_DEVICE uint32_t Shifted(uint32_t pair, uint32_t shift) {
    const uint32_t shifted = (pair | 0x80008000u) - (shift << 7) * 0x00010001u;
    return (shifted & Ones(shifted)) << 3;
  }
};

static_assert(ScaledCodec<ScaledHalf>);

}  // namespace kvit

#endif  // KVIT_QUANT_SCALED_HALF_CUH
