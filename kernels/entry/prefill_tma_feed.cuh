// How K, V and queries reach the warp groups of PrefillTmaKernel: as they are stored, or widened on their way.
#ifndef KVIT_ENTRY_PREFILL_TMA_FEED_CUH
#define KVIT_ENTRY_PREFILL_TMA_FEED_CUH

#include <stdint.h>

#include "abi/params.h"
#include "pipeline/box_loader.cuh"
#include "pipeline/coded_queries.cuh"
#include "pipeline/query_loader.cuh"
#include "pipeline/tile_widener.cuh"
#include "pipeline/tma_ring.cuh"
#include "pipeline/token_parameters.cuh"
#include "platform/platform.cuh"
#include "quant/codec.cuh"

namespace kvit {

/// In place of what is known of codes.
struct NotCoded {};

/// 16 bits: TMA brings tiles as the matrix unit reads them. Shape is as GroupShape has it. What such a class has:
///
///   KeyRing, ValueRing        of tiles as the matrix unit reads them
///   Shared                    besides, in `feed` of the kernel's shared memory
///   kBoxTokens                tokens of the largest box of a tensor map
///   kWarps, kRegisters        warps that bring, and registers of their threads
///   kKeyFillers, kValueFillers    warps that say of a tile that it is there
///   LoadKeys, LoadValues      all tiles of a plan, by one warp each
///   LoadParameters, Widen     where K and V are codes: by one warp, and by each of the warps from the fifth on
///   kQueryLoaders             warps that bring queries, of all groups together
///   LoadQueries               a warp group's queries of a row tile, by one warp
///   PrepareQueries            the same once they are there, by the warp group itself: makes them what is multiplied
///   TokensOf, QueriesOf       what GroupAttention asks of the tile that is the count-th of all, and of a row tile
template <class T, class KeyCodec, class ValueCodec, class Dims, class Shape>
struct PrefillFeed {
  using KeyRing = TmaRing<T, Plain, Dims::kKey, Shape::kTokens, 1, Shape::kStages, false>;
  using ValueRing = TmaRing<T, Plain, Dims::kValue, Shape::kTokens, 1, Shape::kStages, false>;
  struct Shared {
    KVIT_DEVICE void Init() {}
  };
  static constexpr int kBoxTokens = Shape::kTokens, kWarps = 4, kRegisters = 40;
  static constexpr int kKeyFillers = 1, kValueFillers = 1, kQueryLoaders = 2;

  template <class All, class Scheduler, class Sync>
  static KVIT_DEVICE void LoadKeys(const KvitDecodeParams& params, All& all, const Scheduler& scheduler, Sync&& sync) {
    using Tiles = WholeTiles<KeyRing, typename KeyRing::Iterator, Shape::kStages>;
    const Tiles tiles = {params.k_map, all.keys, all.of_keys, all.of_keys.barriers};
    BoxLoader<Tiles, Shape::kTokens>(params, tiles).Run(all.plan, scheduler, true, sync);
  }
  template <class All, class Scheduler, class Sync>
  static KVIT_DEVICE void LoadValues(const KvitDecodeParams& params, All& all, const Scheduler& scheduler,
                                     Sync&& sync) {
    using Tiles = WholeTiles<ValueRing, typename ValueRing::Iterator, Shape::kStages>;
    const Tiles tiles = {params.v_map, all.values, all.of_values, all.of_values.barriers};
    BoxLoader<Tiles, Shape::kTokens>(params, tiles).Run(all.plan, scheduler, false, sync);
  }
  template <class All, class QueryWalk>
  static KVIT_DEVICE void LoadQueries(const KvitDecodeParams&, All& all, int slot, int group, const QueryWalk& walk,
                                      int rows) {
    kvit::LoadQueries<T, Dims::kKey>(all.queries[slot][group], walk, rows);
    CopyAsyncWait<0>();
  }
  template <class All>
  static KVIT_DEVICE void PrepareQueries(const KvitDecodeParams&, All&, int, int) {}

  template <class All>
  static KVIT_DEVICE NotCoded TokensOf(const All&, uint32_t) {
    return {};
  }
  template <class All>
  static KVIT_DEVICE NotCoded QueriesOf(const All&, int, int) {
    return {};
  }
};

/// Codes: TMA brings them as they are stored into the tile's own place, and warps of a fourth group widen them there.
///
///   warp of those that bring    0, 1  ask for K, V    2  parameters    3  plan, queries    4, 5  widen K    6, 7  V
template <class T, ScaledCodec KeyCodec, ScaledCodec ValueCodec, class Dims, class Shape>
struct PrefillFeed<T, KeyCodec, ValueCodec, Dims, Shape> {
  using KeyRing = TmaRing<Half, Plain, Dims::kKey, Shape::kTokens, 1, Shape::kStages, false>;
  using ValueRing = TmaRing<Half, Plain, Dims::kValue, Shape::kTokens, 1, Shape::kStages, false>;

 private:
  static constexpr int kTokens = Shape::kTokens, kStages = Shape::kStages, kWideners = 2;  // of a ring
  using KeyCodes = CodesInPlace<T, KeyCodec, Dims::kKey, kTokens>;
  using ValueCodes = CodesInPlace<T, ValueCodec, Dims::kValue, kTokens>;
  using Parameters = ParameterLoader<T, KeyCodec, ValueCodec, kTokens, kStages>;

 public:
  struct Shared {
    StageBarriers<kStages> of_key_codes, of_value_codes;  // that they have landed
    typename Parameters::Ring parameters;
    QueryScales of_queries[Shape::kQuerySlots][Shape::kGroups];

    KVIT_DEVICE void Init() {
      of_key_codes.Init(1);
      of_value_codes.Init(1);
    }
  };
  static constexpr int kBoxTokens = KeyCodes::kGranule, kWarps = 8, kRegisters = 32;
  static constexpr int kKeyFillers = kWideners + 1, kValueFillers = kWideners, kQueryLoaders = 1;

  template <class All, class Scheduler, class Sync>
  static KVIT_DEVICE void LoadKeys(const KvitDecodeParams& params, All& all, const Scheduler& scheduler, Sync&& sync) {
    const WholeTiles<KeyRing, KeyCodes, kStages> tiles = {params.k_map, all.keys, all.of_keys, all.feed.of_key_codes};
    BoxLoader<decltype(tiles), kTokens>(params, tiles).Run(all.plan, scheduler, true, sync);
  }
  template <class All, class Scheduler, class Sync>
  static KVIT_DEVICE void LoadValues(const KvitDecodeParams& params, All& all, const Scheduler& scheduler,
                                     Sync&& sync) {
    using Tiles = WholeTiles<ValueRing, ValueCodes, kStages>;
    const Tiles tiles = {params.v_map, all.values, all.of_values, all.feed.of_value_codes};
    BoxLoader<Tiles, kTokens>(params, tiles).Run(all.plan, scheduler, false, sync);
  }
  template <class All>
  static KVIT_DEVICE void Widen(All& all, int warp) {
    if (warp < kWideners) {
      using Widener = TileWidener<KeyCodec, Dims::kKey, KeyRing, KeyCodes, kStages, kWideners>;
      Widener(all.keys, all.feed.of_key_codes, all.of_keys.barriers, warp).Run(all.plan);
    } else {
      using Widener = TileWidener<ValueCodec, Dims::kValue, ValueRing, ValueCodes, kStages, kWideners>;
      Widener(all.values, all.feed.of_value_codes, all.of_values.barriers, warp - kWideners).Run(all.plan);
    }
  }
  template <class All, class Sync>
  static KVIT_DEVICE void LoadParameters(const KvitDecodeParams& params, All& all, Sync&& sync) {
    Parameters(params, all.feed.parameters, all.of_keys.barriers).Run(all.plan, sync);
  }
  template <class All, class QueryWalk>
  static KVIT_DEVICE void LoadQueries(const KvitDecodeParams&, All& all, int slot, int group, const QueryWalk& walk,
                                      int rows) {
    kvit::LoadQueries<Half, Dims::kKey>(all.queries[slot][group], walk, rows);  // of T, as they are
    CopyAsyncWait<0>();
  }
  template <class All>
  static KVIT_DEVICE void PrepareQueries(const KvitDecodeParams& params, All& all, int slot, int group) {
    CodeQueries<T>(all.queries[slot][group], all.feed.of_queries[slot][group], WarpIndex() % 4 * 16,
                   KeyCodec::kHasZero ? params.cache.k_hadamard : 0);
    FenceAsyncCopies();  // the matrix unit reads them as such a copy would
    SyncGroupOr(false);
  }

  template <class All>
  static KVIT_DEVICE const TokenParameters<kTokens>& TokensOf(const All& all, uint32_t count) {
    return all.feed.parameters.Of(count);
  }
  template <class All>
  static KVIT_DEVICE auto QueriesOf(const All& all, int slot, int group) {
    const QueryScales& scales = all.feed.of_queries[slot][group];
    return [&scales](int row) { return scales.Of(WarpIndex() % 4 * 16 + row); };
  }
};

}  // namespace kvit

#endif  // KVIT_ENTRY_PREFILL_TMA_FEED_CUH
