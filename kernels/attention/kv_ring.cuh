// The ring of K tiles, or of V tiles, in shared memory: how it is filled and where a token lies in it.
#ifndef KVIT_ATTENTION_KV_RING_CUH
#define KVIT_ATTENTION_KV_RING_CUH

#include <stdint.h>

#include "iterator/combined.cuh"
#include "iterator/sm80.cuh"
#include "layout/kv_layout.cuh"
#include "quant/codec.cuh"

namespace kvit {

/// Tiles of [Tokens, HeadDim] as Codec stores them. Pool is 0 for K and 1 for V; parameters, where the codec has any,
/// are pool 2 or 3.
template <class T, class Codec, int HeadDim, int Tokens, int Warps, int Stages, int Pool>
struct KvRing {
  using Element = typename Codec::template Element<T>;
  using Map = KvThreadMap<Element, HeadDim, Tokens, Warps>;
  using Layout = KvLayout<Element, HeadDim, Tokens>;
  using Iterator = Sm80GmemIterator<Element, Map, Layout, Pool>;
  static constexpr unsigned kPools = 1u << Pool;
  static constexpr int kTileBytes = int(BytesOf<Element>(Layout::kSize));

  alignas(128) char data[Stages][kTileBytes];

  KVIT_DEVICE void Bind(Iterator& iterator) { iterator.SetSmem(PointTo<Element>(data)); }
  KVIT_DEVICE const char* Address(int stage, int s, int c) const {
    return data[stage] + BytesOf<Element>(Layout::Index(s, c));
  }
  KVIT_DEVICE const char* Parameters(int, int) const { return nullptr; }
};

template <class T, ScaledCodec Codec, int HeadDim, int Tokens, int Warps, int Stages, int Pool>
struct KvRing<T, Codec, HeadDim, Tokens, Warps, Stages, Pool> {
  using Element = typename Codec::template Element<T>;
  using Map = KvThreadMap<Element, HeadDim, Tokens, Warps>;
  using Layout = KvLayout<Element, HeadDim, Tokens>;
  using Iterator = CombinedIterator<Sm80GmemIterator<Element, Map, Layout, Pool>,
                                    Sm80GmemIterator<T, ParamThreadMap<Map>, ParamLayout<Tokens>, Pool + 2>>;
  static constexpr unsigned kPools = 1u << Pool | 4u << Pool;
  static constexpr int kTileBytes = int(BytesOf<Element>(Layout::kSize)) + Tokens * int(sizeof(uint32_t));

  alignas(128) char data[Stages][BytesOf<Element>(Layout::kSize)];
  alignas(16) uint32_t parameters[Stages][Tokens];

  KVIT_DEVICE void Bind(Iterator& iterator) {
    iterator.SetSmem(PointTo<Element>(data), reinterpret_cast<T*>(parameters));
  }
  KVIT_DEVICE const char* Address(int stage, int s, int c) const {
    return data[stage] + BytesOf<Element>(Layout::Index(s, c));
  }
  KVIT_DEVICE const uint32_t* Parameters(int stage, int s) const { return &parameters[stage][s]; }
};

}  // namespace kvit

#endif  // KVIT_ATTENTION_KV_RING_CUH
