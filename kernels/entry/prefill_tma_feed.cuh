// How K, V and queries reach the warp groups of PrefillTmaKernel: as they are stored, or widened on their way.
#ifndef KVIT_ENTRY_PREFILL_TMA_FEED_CUH
#define KVIT_ENTRY_PREFILL_TMA_FEED_CUH

#include <stdint.h>

#include "abi/params.h"
#include "pipeline/box_loader.cuh"
#include "pipeline/coded_queries.cuh"
#include "pipeline/query_loader.cuh"
#include "pipeline/tma_ring.cuh"
#include "pipeline/token_parameters.cuh"
#include "pipeline/widening_loader.cuh"
#include "platform/platform.cuh"
#include "quant/codec.cuh"

namespace kvit {

/// In place of what is known of codes.
struct NotCoded {};

/// 16 bits: TMA brings tiles as the matrix unit reads them. Shape is as GroupShape has it. What such a class has:
///
///   KeyRing, ValueRing          of tiles as the matrix unit reads them
///   Shared                      besides, in `feed` of the kernel's shared memory
///   kBoxTokens                  tokens of the largest box of a tensor map
///   kRegisters                  of a thread of the warps that bring
///   LoadKeys, LoadValues        all tiles of a plan, by one warp each
///   kKeyFillers, LoadParameters    whether a second warp brings what belongs to the keys; then it calls this
///   kQueryLoaders               warps that bring queries, of all groups together
///   LoadQueries                 a warp group's queries of a row tile, by one warp
///   TokensOf, QueriesOf         what GroupAttention asks of the tile that is the count-th of all, and of a row tile
template <class T, class KeyCodec, class ValueCodec, class Dims, class Shape>
struct PrefillFeed {
  using KeyRing = TmaRing<T, Plain, Dims::kKey, Shape::kTokens, 1, Shape::kStages, false>;
  using ValueRing = TmaRing<T, Plain, Dims::kValue, Shape::kTokens, 1, Shape::kStages, false>;
  struct Shared {
    KVIT_DEVICE void Init() {}
  };
  static constexpr int kBoxTokens = Shape::kTokens, kRegisters = 40;
  static constexpr int kKeyFillers = 1, kQueryLoaders = 2;

  template <class All, class Scheduler, class Sync>
  static KVIT_DEVICE void LoadKeys(const KvitDecodeParams& params, All& all, const Scheduler& scheduler, Sync&& sync) {
    BoxLoader<KeyRing, Shape::kTokens, Shape::kStages>(params, params.k_map, all.keys, all.of_keys)
        .Run(all.plan, scheduler, true, sync);
  }
  template <class All, class Scheduler, class Sync>
  static KVIT_DEVICE void LoadValues(const KvitDecodeParams& params, All& all, const Scheduler& scheduler,
                                     Sync&& sync) {
    BoxLoader<ValueRing, Shape::kTokens, Shape::kStages>(params, params.v_map, all.values, all.of_values)
        .Run(all.plan, scheduler, false, sync);
  }
  template <class All, class QueryWalk>
  static KVIT_DEVICE void LoadQueries(const KvitDecodeParams&, All& all, int slot, int group, const QueryWalk& walk,
                                      int rows) {
    kvit::LoadQueries<T, Dims::kKey>(all.queries[slot][group], walk, rows);
    CopyAsyncWait<0>();
  }

  template <class All>
  static KVIT_DEVICE NotCoded TokensOf(const All&, uint32_t) {
    return {};
  }
  template <class All>
  static KVIT_DEVICE NotCoded QueriesOf(const All&, int, int) {
    return {};
  }
};

/// Codes: TMA brings them as they are stored, granule by granule, and the warps that ask for them widen them.
template <class T, ScaledCodec KeyCodec, ScaledCodec ValueCodec, class Dims, class Shape>
struct PrefillFeed<T, KeyCodec, ValueCodec, Dims, Shape> {
  using KeyRing = TmaRing<Half, Plain, Dims::kKey, Shape::kTokens, 1, Shape::kStages, false>;
  using ValueRing = TmaRing<Half, Plain, Dims::kValue, Shape::kTokens, 1, Shape::kStages, false>;

 private:
  static constexpr int kTokens = Shape::kTokens, kStages = Shape::kStages;
  // Granules that are asked for. There is room for no more of 128 bytes a token.
  static constexpr int kAhead = 3, kValuesAhead = Dims::kValue * Shape::kQuerySlots > 128 ? 2 : 3;
  using KeyCodes = CodeSlots<T, KeyCodec, Dims::kKey, kAhead>;
  using ValueCodes = CodeSlots<T, ValueCodec, Dims::kValue, kValuesAhead>;
  using Parameters = ParameterLoader<T, KeyCodec, ValueCodec, kTokens, kStages>;

 public:
  struct Shared {
    KeyCodes key_codes;
    ValueCodes value_codes;
    typename KeyCodes::Barriers of_key_codes;
    typename ValueCodes::Barriers of_value_codes;
    typename Parameters::Ring parameters;
    QueryScales of_queries[Shape::kQuerySlots][Shape::kGroups];

    KVIT_DEVICE void Init() {
      of_key_codes.Init();
      of_value_codes.Init();
    }
  };
  static constexpr int kBoxTokens = KeyCodes::kTokens, kRegisters = 56;
  static constexpr int kKeyFillers = 2, kQueryLoaders = 1;

  template <class All, class Scheduler, class Sync>
  static KVIT_DEVICE void LoadKeys(const KvitDecodeParams& params, All& all, const Scheduler& scheduler, Sync&& sync) {
    using Loader = WideningLoader<KeyCodec, Dims::kKey, KeyRing, kTokens, kStages, KeyCodes>;
    Loader(params, params.k_map, all.feed.key_codes, all.feed.of_key_codes, all.keys, all.of_keys)
        .Run(all.plan, scheduler, true, sync);
  }
  template <class All, class Scheduler, class Sync>
  static KVIT_DEVICE void LoadValues(const KvitDecodeParams& params, All& all, const Scheduler& scheduler,
                                     Sync&& sync) {
    using Loader = WideningLoader<ValueCodec, Dims::kValue, ValueRing, kTokens, kStages, ValueCodes>;
    Loader(params, params.v_map, all.feed.value_codes, all.feed.of_value_codes, all.values, all.of_values)
        .Run(all.plan, scheduler, false, sync);
  }
  template <class All, class Scheduler, class Sync>
  static KVIT_DEVICE void LoadParameters(const KvitDecodeParams& params, All& all, const Scheduler& scheduler,
                                         Sync&& sync) {
    Parameters(params, all.feed.parameters, all.of_keys.barriers).Run(all.plan, scheduler, sync);
  }
  template <class All, class QueryWalk>
  static KVIT_DEVICE void LoadQueries(const KvitDecodeParams& params, All& all, int slot, int group,
                                      const QueryWalk& walk, int rows) {
    LoadCodedQueries<T>(all.queries[slot][group], all.feed.of_queries[slot][group], walk, rows,
                        KeyCodec::kHasZero ? params.cache.k_hadamard : 0);
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
