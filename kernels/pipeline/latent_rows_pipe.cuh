// How 8-bit latent rows come into the rings that attention over 16-bit rows reads.
#ifndef KVIT_PIPELINE_LATENT_ROWS_PIPE_CUH
#define KVIT_PIPELINE_LATENT_ROWS_PIPE_CUH

#include "iterator/latent_rows.cuh"
#include "layout/kv_layout.cuh"
#include "pipeline/kv_pipe.cuh"
#include "pipeline/tile_ring.cuh"
#include "quant/codec.cuh"
#include "quant/latent_codec.cuh"

namespace kvit {

/// Eight lanes a row, so that what a lane takes at a time lies in one block of a scale.
template <template <class, class, class, int> class GmemIterator, class T, LatentCodec Codec, int Dim, int Tokens,
          int Warps, int Stages, int Pool>
struct TileRing<GmemIterator, T, Codec, Dim, Tokens, Warps, Stages, Pool> {
  using Element = T;
  using Map = RakedThreadMap<Dim, Tokens, 8, Warps, 8>;
  using Layout = KvLayout<T, Dim, Tokens>;
  using Iterator = LatentRowsIterator<T, Codec, Map, Layout>;
  static constexpr unsigned kPools = 1u << Pool | 4u << Pool;
  static_assert(Pool == 0, "values are the first channels of keys");

  alignas(128) char data[Stages][BytesOf<Element>(Layout::kSize)];

  KVIT_DEVICE void Bind(Iterator& iterator, int) { iterator.SetSmem(PointTo<Element>(data)); }
  KVIT_DEVICE const char* Address(int stage, int s, int c) const {
    return data[stage] + BytesOf<Element>(Layout::Index(s, c));
  }
  KVIT_DEVICE const char* Parameters(int, int) const { return nullptr; }
};

/// Rows of Codec, through registers: any page size. What is consumed are 16-bit rows.
template <LatentCodec Codec>
struct LatentCopies {
  static constexpr bool kMultipliesBfloat16 = true;
  template <class T, class>
  using Form = Plain;
  static constexpr int kPageMultiple = 1;
  static constexpr bool kTakesFewer = false;
  static constexpr bool kIsPacked = false;
};

template <class Codec, class T, class Dims, class Scheduler, class Shape>
class KvPipe<LatentCopies<Codec>, T, Plain, Plain, Dims, Scheduler, Shape>
    : public CpAsyncKvPipe<Sm80GmemIterator, T, Codec, Codec, Dims, Scheduler, Shape> {
 public:
  using Base = CpAsyncKvPipe<Sm80GmemIterator, T, Codec, Codec, Dims, Scheduler, Shape>;
  using Base::Base;
};

}  // namespace kvit

#endif  // KVIT_PIPELINE_LATENT_ROWS_PIPE_CUH
