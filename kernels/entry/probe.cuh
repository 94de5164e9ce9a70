// Family probe: loads one tile of K and of V through an iterator and dumps where every byte landed.
#ifndef KVIT_ENTRY_PROBE_CUH
#define KVIT_ENTRY_PROBE_CUH

#include <stdint.h>

#include <type_traits>

#include "abi/fact.h"
#include "abi/probe_params.h"
#include "cache/fault.cuh"
#include "cache/linear_iterator.cuh"
#include "cache/paged_iterator.cuh"
#include "core/types.h"
#include "iterator/combined.cuh"
#include "iterator/sm70.cuh"
#include "iterator/sm80.cuh"
#include "layout/kv_layout.cuh"

namespace kvit {

/// One CTA of four warps. Types below 16 bits come with parameters in f16, data and parameters combined.
///
///   shared_image   K data, stage 0 .. Stages - 1 | V data, ... | K parameters, ... | V parameters, ...
///   fragments      per thread: K data | V data | K parameters | V parameters, access (i, j) in order
///
/// Shared memory is 0xFF before the tile comes. A fragment is what Sm70GmemIterator::Load left in registers; where the
/// copy is asynchronous, what the thread finds in shared memory at its own coordinates.
template <template <class, class, class, int> class Loader, class T, int D, int Tokens, int Stages,
          template <unsigned, class> class TileIter>
struct ProbeKernel {
  using Params = KvitProbeParams;
  static constexpr int kWarps = 4;
  static constexpr bool kHasParams = kBitsOf<T> < 16;
  static constexpr bool kThroughRegisters =
      std::is_same_v<Loader<T, KvThreadMap<T, D, Tokens, kWarps>, KvLayout<T, D, Tokens>, 0>,
                     Sm70GmemIterator<T, KvThreadMap<T, D, Tokens, kWarps>, KvLayout<T, D, Tokens>, 0>>;

  using Map = KvThreadMap<T, D, Tokens, kWarps>;
  using Layout = KvLayout<T, D, Tokens>;
  using ParamMap = ParamThreadMap<Map>;
  using ParamsLayout = ParamLayout<Tokens>;
  template <int Index>
  using Data = Loader<T, Map, Layout, Index>;
  template <int Index>
  using Combined = CombinedIterator<Data<Index>, Loader<Half, ParamMap, ParamsLayout, Index + 2>>;
  using Tiles = TileIter<kHasParams ? 15u : 3u, Map>;

  // Bytes of all stages of one tile, and of one thread's fragment of it.
  static constexpr int kDataBytes = int(BytesOf<T>(Layout::kSize)) * Stages;
  static constexpr int kParamBytes = kHasParams ? int(BytesOf<Half>(ParamsLayout::kSize)) * Stages : 0;
  static constexpr int kDataFragmentBytes = int(BytesOf<T>(Data<0>::kIterCount * Map::kAccessC));
  static constexpr int kParamFragmentBytes = kHasParams ? int(BytesOf<Half>(ParamMap::kIterS * 2)) : 0;
  static constexpr int kFragmentBytes = 2 * (kDataFragmentBytes + kParamFragmentBytes);

  static constexpr int kThreads = kWarps * 32;
  static constexpr int kSharedBytes = 2 * (kDataBytes + kParamBytes);
  static constexpr int kMinCtas = 1;
  static constexpr KvitFact kFacts[] = {
      {"tile_tokens", Tokens}, {"stages", Stages}, {"warps", kWarps}, {"fragment_bytes", kFragmentBytes}};

  KVIT_DEVICE static void Run(const Params& params, char* shared) {
    for (int i = ThreadIndex(); i < kSharedBytes / 4; i += kThreads) StoreShared(shared + i * 4, ~uint32_t(0));
    SyncThreads();

    Tiles tiles(params.cache, params.table);
    tiles.SetSequence(params.sequence, params.head);
    tiles.SetTile(params.tile - params.advances);
    for (int i = 0; i < params.advances; ++i) tiles.Advance();

    ProbeTile<0>(params, tiles, shared);
    ProbeTile<1>(params, tiles, shared);
    if (tiles.faulted()) ReportFault(params.fault, tiles.fault());

    SyncThreads();
    for (int i = ThreadIndex(); i < kSharedBytes / 4; i += kThreads) {
      StoreGlobal(params.shared_image + i * 4, LoadShared<uint32_t>(shared + i * 4));
    }
  }

 private:
  // Index 0: K, 1: V.
  template <int Index>
  KVIT_DEVICE static void ProbeTile(const Params& params, const Tiles& tiles, char* shared) {
    char* data = shared + Index * kDataBytes;
    char* pairs = shared + 2 * kDataBytes + Index * kParamBytes;
    uint8_t* dump = params.fragments + int64_t(ThreadIndex()) * kFragmentBytes;
    uint8_t* data_dump = dump + Index * kDataFragmentBytes;
    uint8_t* pair_dump = dump + 2 * kDataFragmentBytes + Index * kParamFragmentBytes;
    if constexpr (kHasParams) {
      Combined<Index> iterator;
      iterator.SetSmem(PointTo<T>(data), PointTo<Half>(pairs));
      typename Combined<Index>::Fragment fragment;
      Copy(params, tiles, iterator, fragment);
      if constexpr (!kThroughRegisters) {
        ReadBack(iterator.first(), PointTo<T>(data), params.stage, fragment.first);
        ReadBack(iterator.second(), PointTo<Half>(pairs), params.stage, fragment.second);
      }
      Dump<Data<Index>>(fragment.first, data_dump);
      Dump<Loader<Half, ParamMap, ParamsLayout, Index + 2>>(fragment.second, pair_dump);
    } else {
      Data<Index> iterator;
      iterator.SetSmem(PointTo<T>(data));
      typename Data<Index>::Fragment fragment;
      Copy(params, tiles, iterator, fragment);
      if constexpr (!kThroughRegisters) ReadBack(iterator, PointTo<T>(data), params.stage, fragment);
      Dump<Data<Index>>(fragment, data_dump);
    }
  }

  template <class Iterator, class Fragment>
  KVIT_DEVICE static void Copy(const Params& params, const Tiles& tiles, const Iterator& iterator, Fragment& fragment) {
    if constexpr (kThroughRegisters) {
      if (params.max_s < Tokens) {
        iterator.template Load<true>(tiles, fragment, params.max_s);
      } else {
        iterator.template Load<false>(tiles, fragment, params.max_s);
      }
      iterator.Save(fragment, params.stage);
    } else {
      if (params.s_count < 0) {
        iterator.Prefetch(tiles, params.max_s, params.stage);
      } else {
        iterator.Prefetch(tiles, params.s_begin, params.s_count, params.max_s, params.stage);
      }
      CopyAsyncCommit();
      CopyAsyncWait<0>();
    }
  }

  template <class Iterator>
  KVIT_DEVICE static void ReadBack(const Iterator& iterator, typename Iterator::Pointer smem, int stage,
                                   typename Iterator::Fragment& fragment) {
    using IterMap = typename Iterator::ThreadMap;
    const BaseSmemIterator<typename Iterator::ElementType, typename Iterator::Layout> reader(smem);
    KVIT_UNROLL
    for (int i = 0; i < IterMap::kIterS; ++i) {
      KVIT_UNROLL
      for (int j = 0; j < IterMap::kIterC; ++j) {
        const Coord at = iterator.At(i, j);
        fragment[i][j] = typename Iterator::AccessType{};
        if (IterMap::Covers(at)) fragment[i][j] = reader.template Load<IterMap::kAccessC>(at.s, at.c, stage);
      }
    }
  }

  template <class Iterator>
  KVIT_DEVICE static void Dump(const typename Iterator::Fragment& fragment, uint8_t* target) {
    using Access = typename Iterator::AccessType;
    using Words = Array<uint32_t, sizeof(Access) / 4>;
    KVIT_UNROLL
    for (int i = 0; i < Iterator::kIterCount; ++i) {
      const Words words = BitCast<Words>(fragment[i / Iterator::ThreadMap::kIterC][i % Iterator::ThreadMap::kIterC]);
      KVIT_UNROLL
      for (int w = 0; w < Words::kSize; ++w) StoreGlobal(target + i * sizeof(Access) + w * 4, words[w]);
    }
  }
};

}  // namespace kvit

#endif  // KVIT_ENTRY_PROBE_CUH
