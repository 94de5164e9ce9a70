// Rows of latent attention (MLA) in 8 bits, as engines store them: codes with a scale for each block of channels, and
// rotary channels in bfloat16 behind them.
#ifndef KVIT_QUANT_LATENT_CODEC_CUH
#define KVIT_QUANT_LATENT_CODEC_CUH

#include <stdint.h>

#include <concepts>

#include "core/types.h"
#include "platform/platform.cuh"
#include "quant/codec.cuh"
#include "quant/row_codec.cuh"

namespace kvit {

/// What reads such a row: Scales, all scales of a row as they lie in memory, and Scale(scales, c), that of channel c,
/// as a float32 has its bits. Channels [0, kCodes) are float8 (e4m3), one byte each; the others are bfloat16 from byte
/// kRotaryByte on.
template <class C>
concept LatentCodec = requires(typename C::Scales scales) {
  { C::kCodes } -> std::convertible_to<int>;
  { C::kRotaryByte } -> std::convertible_to<int>;
  { C::Scale(scales, 0) } -> std::same_as<uint32_t>;
};

namespace detail {

/// Such rows reach shared memory as numbers of the compute type.
struct WidenedRow {
  template <class T>
  using Element = T;
  static constexpr bool kScaled = false, kHasZero = false;
};

}  // namespace detail

/// 656 bytes a token (DeepSeek V3.2): 512 codes, a float32 scale for each 128 of them, 64 rotary channels.
///
///   byte   0 ........ 511   512 ... 527   528 ..... 655
///          codes            4 scales      64 bfloat16
struct Latent656 : detail::WidenedRow {
  using Dims = kvit::Dims<576, 512, true>;
  using Scales = Words<16>;
  static constexpr int kCodes = 512, kRotaryByte = 528;

  static KVIT_DEVICE uint32_t Scale(const Scales& scales, int c) {
    const int block = c / 128;
    const uint32_t low = block % 2 == 0 ? scales.word[0] : scales.word[1];
    const uint32_t high = block % 2 == 0 ? scales.word[2] : scales.word[3];
    return block < 2 ? low : high;
  }
};

/// 584 bytes a token (DeepSeek V4): 448 codes and 64 rotary channels; behind the rows of a page 8 bytes for each of its
/// tokens, 7 powers of two (e8m0), one for each 64 codes, and one that nobody reads. V has all channels of K.
struct Latent584 : detail::WidenedRow {
  using Dims = kvit::Dims<512, 512, true>;
  using Scales = Words<8>;
  static constexpr int kCodes = 448, kRotaryByte = 448;

  static KVIT_DEVICE uint32_t Scale(const Scales& scales, int c) {
    const int block = c / 64;
    return PowerOfTwo((block < 4 ? scales.word[0] : scales.word[1]) >> block % 4 * 8 & 0xffu);
  }

 private:
  // 2^(exponent - 127): the exponent of a float32. The least is a subnormal number, the last one NaN.
  static KVIT_DEVICE uint32_t PowerOfTwo(uint32_t exponent) {
    if (exponent == 0) return 0x00400000u;
    return exponent == 255 ? 0x7fffffffu : exponent << 23;
  }
};

static_assert(LatentCodec<Latent656> && LatentCodec<Latent584>);

}  // namespace kvit

#endif  // KVIT_QUANT_LATENT_CODEC_CUH
