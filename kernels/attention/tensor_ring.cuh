// The ring of K tiles, or of V tiles, that the tensor copy engine fills: each warp has its own tile of every stage.
#ifndef KVIT_ATTENTION_TENSOR_RING_CUH
#define KVIT_ATTENTION_TENSOR_RING_CUH

#include <stdint.h>

#include "iterator/sm90.cuh"
#include "quant/codec.cuh"

namespace kvit {

/// A warp's tiles are [Tokens, HeadDim] as Codec stores them. Parameters, where the codec has any, are one word a
/// token.
template <class T, class Codec, int HeadDim, int Tokens, int Warps, int Stages, bool HasLines>
struct TensorRing {
  using Element = typename Codec::template Element<T>;
  using Iterator = Sm90GmemIterator<Element, HeadDim, Tokens, HasLines>;
  using Layout = typename Iterator::Layout;
  static constexpr bool kHasParameters = Codec::kScaled, kHasZero = Codec::kHasZero;

  alignas(1024) char data[Stages][Warps][Layout::kBytes];
  alignas(16) uint32_t parameters[kHasParameters ? Stages : 1][Warps][Tokens];

  KVIT_DEVICE char* Tile(int stage) { return data[stage][WarpIndex()]; }
  KVIT_DEVICE const char* Address(int stage, int s, int c) const {
    return data[stage][WarpIndex()] + Layout::Offset(s, int(BytesOf<Element>(c)));
  }
  KVIT_DEVICE const uint32_t* Parameters(int stage, int s) const { return &parameters[stage][WarpIndex()][s]; }
  KVIT_DEVICE uint32_t* Parameters(int stage, int s) { return &parameters[stage][WarpIndex()][s]; }
};

}  // namespace kvit

#endif  // KVIT_ATTENTION_TENSOR_RING_CUH
