// Family `prefill` on Hopper: warp groups compute while other warps bring queries and tiles.
#ifndef KVIT_ENTRY_PREFILL_TMA_CUH
#define KVIT_ENTRY_PREFILL_TMA_CUH

#include "abi/fact.h"
#include "abi/params.h"
#include "attention/group_attention.cuh"
#include "attention/variant.cuh"
#include "entry/prefill_tma_consumer.cuh"
#include "entry/prefill_tma_feed.cuh"
#include "pipeline/ping_pong.cuh"
#include "pipeline/query_loader.cuh"
#include "pipeline/work_plan.cuh"
#include "schedule/combine.cuh"
#include "schedule/rows_of_warps.cuh"
#include "schedule/tile_scheduler.cuh"
#include "schedule/work_iterator.cuh"

namespace kvit {

/// How the kernel uses an SM, by head dim.
template <class Dims>
struct GroupShape {
  static constexpr int kGroups = 2;
  static constexpr int kTokens = Dims::kValue > 128 ? 64 : 128;  // of a tile: outputs and scores share 232 registers
  static constexpr int kStages = Dims::kValue > 64 ? 2 : 4;
  static constexpr int kQuerySlots = Dims::kKey > 128 ? 1 : 2;  // row tiles whose queries are there
  static constexpr int kOpening = 3;  // tiles that take as long as the beginning and the end of a row tile
};

/// Two warp groups have 64 query rows each, and all tokens of a tile. The warps of a third bring what they need: one
/// asks TMA for tiles of K and one for those of V, as far ahead as the rings are long, one for each group loads the
/// queries of its next row tile, and the last of them works out what there is to do. Whoever needs something waits for
/// it alone: there is no barrier of the CTA. The third group gives most of its registers to the others. The groups take
/// turns at the tensor cores: while one multiplies, the other weighs.
///
///   warps      0 .. 3    rows 0 .. 63        shared memory   ring of K tiles | ring of V tiles | queries | barriers
///              4 .. 7    rows 64 .. 127
///              8, 9      K, V;  10  queries of group 0, or parameters of codes;  11  plan, queries
///
/// Codes of 8 and 4 bits come as they are stored, and a fourth group widens them where they lie, once for all rows of
/// the CTA: see PrefillFeed.
template <class T, class KeyCodec, class ValueCodec, class Dims, class Variant, class Shape = GroupShape<Dims>>
struct PrefillTmaKernel {
  using Params = KvitDecodeParams;
  using Element = T;
  static constexpr int kGroups = Shape::kGroups, kRows = kGroups * 64;
  static constexpr int kTileTokens = Shape::kTokens, kStages = Shape::kStages;
  static constexpr int kQuerySlots = Shape::kQuerySlots, kMinCtas = 1;
  static constexpr int kConsumers = kGroups * 4;  // warps that compute
  using Feed = PrefillFeed<T, KeyCodec, ValueCodec, Dims, Shape>;
  static constexpr int kWarps = kConsumers + Feed::kWarps, kThreads = kWarps * 32;
  static constexpr int kPlanned = 8;      // work tiles that are known, those that are not yet done with among them
  static constexpr int kSplitLevels = 0;  // as PrefillWarpsKernel

  using Scheduler = TileScheduler<typename Variant::Mask, kRows, kTileTokens, kThreads, kSplitLevels, Shape::kOpening>;
  using Score = typename Variant::Score;
  using Rows = typename Variant::template Rows<Scheduler, 16, kTileTokens>;
  using Attention = GroupAttention<T, KeyCodec, ValueCodec, Dims, kTileTokens, Score>;
  using KeyRing = typename Feed::KeyRing;
  using ValueRing = typename Feed::ValueRing;
  using Combiner = Combine<T, Dims, kRows, kConsumers, RowsOfWarps<16, true>, Scheduler, Score>;
  static_assert(Dims::kKey % 64 == 0 && Dims::kValue % 64 == 0, "rows are whole lines of 128 bytes");

  struct Shared {
    KeyRing keys;
    ValueRing values;
    typename Attention::Queries queries[kQuerySlots][kGroups];
    BoxSlots<kStages> of_keys, of_values;
    [[no_unique_address]] typename Feed::Shared feed;
    QueryBarriers<kQuerySlots> of_queries[kGroups];
    PingPong<kGroups> ping_pong;
    WorkPlan<typename Scheduler::Work, kPlanned> plan;
    uint64_t met;  // by all warps that compute
    typename Combiner::Shared combine;
    typename Scheduler::Shared scheduler;
  };
  static constexpr int kSharedBytes = sizeof(Shared);
  // Of a thread that computes: what the others leave of those that all are launched with.
  static constexpr int kLaunched = 65536 / kThreads / 8 * 8;
  static constexpr int kRegisters =
      (kLaunched * (kWarps / 4) - Feed::kRegisters * (Feed::kWarps / 4)) / kGroups / 8 * 8;
  static_assert(kSharedBytes <= 227 * 1024, "a CTA of Hopper has no more");
  static constexpr KvitFact kFacts[] = {{"rows", kRows},
                                        {"k_dim", Dims::kKey},
                                        {"v_dim", Dims::kValue},
                                        {"tile_tokens", kTileTokens},
                                        {"stages", kStages},
                                        {"ctas_per_sm", kMinCtas},
                                        {"overlaps", 1},
                                        {"workspace_head_bytes", kWorkspaceHeadBytes},
                                        {"part_bytes", Combiner::kPartBytes},
                                        {"split_part_bytes", Combiner::kSplitPartBytes},
                                        {"most_splits", 1 << kSplitLevels},
                                        {"page_multiple", KVIT_LEAST_BOX_TOKENS},
                                        {"needs_strides", 1},
                                        {"box_tokens", Feed::kBoxTokens},
                                        {"is_packed", 0},
                                        // Full batches would be served from 17 rows on, but few and short
                                        // sequences pay for its long beginning.
                                        {"pass_cost", Score::kIsIdentity ? 2 : 3}};

  KVIT_DEVICE static void Run(const Params& params, char* shared_memory) {
    Shared& shared = *reinterpret_cast<Shared*>(shared_memory);
    const Ticket ticket(params.workspace);
    if (ThreadIndex() == 0) InitBarriers(params, shared);
    if (params.reads_ahead == 0) GridDependencyWait();
    const Scheduler scheduler(params);
    const CtaRange range = scheduler.Find(shared.scheduler, ticket);
    if (params.reads_ahead == 0) GridDependencyLaunch();
    SyncThreads();  // the barriers are there
    if (range.IsEmpty()) {
      if (params.reads_ahead != 0) GridDependencySync();
      return;
    }
    if (WarpIndex() >= kConsumers) {
      GiveRegisters<Feed::kRegisters>();
      Load(params, scheduler, range, shared, WarpIndex() - kConsumers);
    } else {
      TakeRegisters<kRegisters>();
      if (params.reads_ahead != 0) GridDependencySync();  // queries are the call's own
      PrefillTmaConsumer<PrefillTmaKernel>(params, scheduler, range, shared).Run();
    }
  }

 private:
  KVIT_DEVICE static void InitBarriers(const Params& params, Shared& shared) {
    PrefetchTensorMap(params.k_map);
    PrefetchTensorMap(params.v_map);
    shared.of_keys.barriers.Init(kConsumers, Feed::kKeyFillers);
    shared.of_values.barriers.Init(kConsumers, Feed::kValueFillers);
    for (int group = 0; group < kGroups; ++group) shared.of_queries[group].Init(4);
    shared.ping_pong.Init(4);
    shared.plan.Init(kWarps);
    shared.feed.Init();
    InitBarrier(&shared.met, kConsumers);
    FenceBarrierInit();
  }

  // Warp `loader` of those that bring.
  KVIT_DEVICE static void Load(const Params& params, const Scheduler& scheduler, const CtaRange& range, Shared& shared,
                               int loader) {
    bool is_synced = params.reads_ahead == 0;
    const auto sync = [&] {
      if (!is_synced) GridDependencySync();
      is_synced = true;
    };
    if (loader == 0) {
      Feed::LoadKeys(params, shared, scheduler, sync);
    } else if (loader == 1) {
      Feed::LoadValues(params, shared, scheduler, sync);
    } else if (loader >= 4) {
      if constexpr (Feed::kWarps > 4) Feed::Widen(shared, loader - 4);
    } else if (Feed::kQueryLoaders == 1 && loader == 2) {
      if constexpr (Feed::kQueryLoaders == 1) Feed::LoadParameters(params, shared, sync);
    } else {
      LoadQueries(params, scheduler, range, shared, loader, sync);
    }
    sync();
  }

  // Warp 3 plans all work besides; warp 2, if it brings queries too, has those of group 0.
  template <class Sync>
  KVIT_DEVICE static void LoadQueries(const Params& params, const Scheduler& scheduler, const CtaRange& range,
                                      Shared& shared, int loader, Sync&& sync) {
    constexpr bool kIsAlone = Feed::kQueryLoaders == 1;
    const int first = kIsAlone ? 0 : loader - 2, last = loader - 2;
    WorkIterator<Scheduler> works(scheduler, params.cache.num_kv_heads, range);
    uint32_t planned = 0;
    bool is_planned = loader != 3;
    for (uint32_t count = 0;; ++count) {
      while (!is_planned && planned <= count + 2) is_planned = !shared.plan.Write(scheduler, works, planned++);
      sync();  // queries are the call's own
      const auto& now = shared.plan.Read(count);
      if (!now.exists) return;
      for (int group = first; group <= last; ++group) {
        BringQueries(
            shared.of_queries[group], group * 64, now.work, count, scheduler,
            [&](int slot, const auto& walk, int rows) { Feed::LoadQueries(params, shared, slot, group, walk, rows); });
      }
      shared.plan.Release(count);
    }
  }
};

}  // namespace kvit

#endif  // KVIT_ENTRY_PREFILL_TMA_CUH
