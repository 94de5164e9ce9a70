// The ring of K tiles, or of V tiles, that the tensor memory accelerator fills: each band of a tile lies by itself.
#ifndef KVIT_PIPELINE_TMA_RING_CUH
#define KVIT_PIPELINE_TMA_RING_CUH

#include <stdint.h>

#include "iterator/sm90.cuh"
#include "quant/codec.cuh"

namespace kvit {

/// Bands of tiles are [Tokens, Dim] as Codec stores them. Parameters, where the codec has any, are one word a token.
template <class T, class Codec, int Dim, int Tokens, int Bands, int Stages, bool IsPacked>
struct TmaRing {
  using Element = typename Codec::template Element<T>;
  using Iterator = Sm90GmemIterator<Element, Dim, Tokens, IsPacked>;
  using Layout = typename Iterator::Layout;
  static constexpr bool kHasParameters = Codec::kScaled, kHasZero = Codec::kHasZero;

  alignas(1024) char data[Stages][Bands][Layout::kBytes];
  alignas(16) uint32_t parameters[kHasParameters ? Stages : 1][Bands][Tokens];

  KVIT_DEVICE char* Tile(int stage, int band) { return data[stage][band]; }
  KVIT_DEVICE const char* Address(int stage, int band, int s, int c) const {
    return data[stage][band] + Layout::Offset(s, int(BytesOf<Element>(c)));
  }
  KVIT_DEVICE const uint32_t* Parameters(int stage, int band, int s) const { return &parameters[stage][band][s]; }
  KVIT_DEVICE uint32_t* Parameters(int stage, int band, int s) { return &parameters[stage][band][s]; }
};

}  // namespace kvit

#endif  // KVIT_PIPELINE_TMA_RING_CUH
