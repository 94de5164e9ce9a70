// The ring of K tiles, or of V tiles, that threads of the CTA fill: by asynchronous copies, or through registers.
#ifndef KVIT_PIPELINE_TILE_RING_CUH
#define KVIT_PIPELINE_TILE_RING_CUH

#include <stdint.h>

#include "iterator/combined.cuh"
#include "iterator/sm70_scaled_half.cuh"
#include "layout/kv_layout.cuh"
#include "quant/codec.cuh"
#include "quant/scaled_half.cuh"

namespace kvit {

/// Tiles of [Tokens, Dim] as Codec stores them, filled by GmemIterator (Sm80GmemIterator, Sm70GmemIterator). Pool is 0
/// for K and 1 for V; parameters, where the codec has any, are pool 2 or 3.
template <template <class, class, class, int> class GmemIterator, class T, class Codec, int Dim, int Tokens, int Warps,
          int Stages, int Pool>
struct TileRing {
  using Element = typename Codec::template Element<T>;
  using Map = KvThreadMap<Element, Dim, Tokens, Warps>;
  using Layout = KvLayout<Element, Dim, Tokens>;
  using Iterator = GmemIterator<Element, Map, Layout, Pool>;
  static constexpr unsigned kPools = 1u << Pool;

  alignas(128) char data[Stages][BytesOf<Element>(Layout::kSize)];

  /// For rows of `dim` channels, where the iterator takes any number of them.
  KVIT_DEVICE void Bind(Iterator& iterator, int dim) {
    iterator.SetSmem(PointTo<Element>(data));
    if constexpr (Iterator::kTakesDim) iterator.SetDim(dim);
  }
  KVIT_DEVICE const char* Address(int stage, int s, int c) const {
    return data[stage] + BytesOf<Element>(Layout::Index(s, c));
  }
  KVIT_DEVICE const char* Parameters(int, int) const { return nullptr; }
};

template <template <class, class, class, int> class GmemIterator, class T, ScaledCodec Codec, int Dim, int Tokens,
          int Warps, int Stages, int Pool>
struct TileRing<GmemIterator, T, Codec, Dim, Tokens, Warps, Stages, Pool> {
  using Element = typename Codec::template Element<T>;
  using Map = KvThreadMap<Element, Dim, Tokens, Warps>;
  using Layout = KvLayout<Element, Dim, Tokens>;
  using Iterator = CombinedIterator<GmemIterator<Element, Map, Layout, Pool>,
                                    GmemIterator<T, ParamThreadMap<Map>, ParamLayout<Tokens>, Pool + 2>>;
  static constexpr unsigned kPools = 1u << Pool | 4u << Pool;

  alignas(128) char data[Stages][BytesOf<Element>(Layout::kSize)];
  alignas(16) uint32_t parameters[Stages][Tokens];

  KVIT_DEVICE void Bind(Iterator& iterator, int dim) {
    iterator.SetSmem(PointTo<Element>(data), reinterpret_cast<T*>(parameters));
    if constexpr (Iterator::kTakesDim) iterator.SetDim(dim);
  }
  KVIT_DEVICE const char* Address(int stage, int s, int c) const {
    return data[stage] + BytesOf<Element>(Layout::Index(s, c));
  }
  KVIT_DEVICE const uint32_t* Parameters(int stage, int s) const { return &parameters[stage][s]; }
};

/// bfloat16 that becomes f16 on its way. The parameters are the iterator's own: memory has none.
template <template <class, class, class, int> class GmemIterator, class T, int Dim, int Tokens, int Warps, int Stages,
          int Pool>
struct TileRing<GmemIterator, T, ScaledHalf, Dim, Tokens, Warps, Stages, Pool> {
  using Element = T;
  using Map = KvThreadMap<Element, Dim, Tokens, Warps>;
  using Layout = KvLayout<Element, Dim, Tokens>;
  using Iterator = Sm70ScaledHalfIterator<Map, Layout, Pool>;
  static constexpr unsigned kPools = 1u << Pool;

  alignas(128) char data[Stages][BytesOf<Element>(Layout::kSize)];
  alignas(16) uint32_t parameters[Stages][Tokens];

  KVIT_DEVICE void Bind(Iterator& iterator, int) { iterator.SetSmem(PointTo<Element>(data), parameters[0]); }
  KVIT_DEVICE const char* Address(int stage, int s, int c) const {
    return data[stage] + BytesOf<Element>(Layout::Index(s, c));
  }
  KVIT_DEVICE const uint32_t* Parameters(int stage, int s) const { return &parameters[stage][s]; }
};

/// In place of a ring of V, where a row of V is the first channels of its row of K, which is there already.
template <class KeyRing>
struct RingOfKeys {
  using Element = typename KeyRing::Element;
  using Map = typename KeyRing::Map;
  struct Iterator {
    KVIT_DEVICE Iterator(int, int) {}
    template <class Rows>
    KVIT_DEVICE void Prefetch(const Rows&, int /*count*/, int /*stage*/) const {}
  };
  static constexpr unsigned kPools = 0;

  KVIT_DEVICE void Bind(Iterator&, int) {}
  KVIT_DEVICE const char* Parameters(int, int) const { return nullptr; }
};

}  // namespace kvit

#endif  // KVIT_PIPELINE_TILE_RING_CUH
