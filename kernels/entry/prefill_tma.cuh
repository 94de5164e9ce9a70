// Family `prefill` on Hopper: warp groups compute while another warp brings the tiles.
#ifndef KVIT_ENTRY_PREFILL_TMA_CUH
#define KVIT_ENTRY_PREFILL_TMA_CUH

#include "abi/fact.h"
#include "abi/params.h"
#include "attention/group_products.cuh"
#include "attention/row_attention.cuh"
#include "attention/variant.cuh"
#include "pipeline/stage_barriers.cuh"
#include "pipeline/tma_loader.cuh"
#include "pipeline/tma_ring.cuh"
#include "schedule/combine.cuh"
#include "schedule/rows_of_warps.cuh"
#include "schedule/tile_scheduler.cuh"
#include "schedule/work_iterator.cuh"

namespace kvit {

/// Two warp groups have 64 query rows each, and all tokens of a tile. One warp of a third group asks TMA for tiles, as
/// far ahead as the ring is long: it waits for free slots, and the others for full ones, so there is no barrier of the
/// CTA. The third group gives most of its registers to the others.
///
///   warps      0 .. 3    rows 0 .. 63        shared memory   ring of K tiles | ring of V tiles | barriers
///              4 .. 7    rows 64 .. 127
///              8         tiles;  9 .. 11 end at once
template <class T, class Dims, class Variant>
struct PrefillTmaKernel {
  using Params = KvitDecodeParams;
  static constexpr int kRows = 128, kTileTokens = 128, kStages = 2, kMinCtas = 1;
  static constexpr int kConsumers = 8, kThreads = (kConsumers + 4) * 32;  // warps that compute
  static constexpr int kSplitLevels = 0;                                  // as PrefillKernel

  using Scheduler = TileScheduler<typename Variant::Mask, kRows, kTileTokens, kThreads, kSplitLevels>;
  using KeyRing = TmaRing<T, Plain, Dims::kKey, kTileTokens, 1, kStages, false>;
  using ValueRing = TmaRing<T, Plain, Dims::kValue, kTileTokens, 1, kStages, false>;
  using Loader = TmaLoader<Scheduler, KeyRing, ValueRing, kTileTokens, kStages, 1>;
  using Score = typename Variant::Score;
  using Keys = GroupKeys<T, Dims::kKey>;
  using Attention = RowAttention<T, Plain, Keys, GroupValues<T, Dims::kValue>, 1, kTileTokens, Score>;
  using Combiner = Combine<T, Dims::kValue, kRows, kConsumers, RowsOfWarps<16>, Scheduler, Score>;
  static_assert(Dims::kKey % 64 == 0 && Dims::kValue % 64 == 0, "rows are whole lines of 128 bytes");

  struct Shared {
    KeyRing keys;
    ValueRing values;
    typename Loader::Landed landed[kStages];
    uint64_t free[kStages];
    int has_faulted[kStages];
    typename Keys::Shared attention;
    typename Combiner::Shared combine;
    typename Scheduler::Shared scheduler;
  };
  static constexpr int kSharedBytes = sizeof(Shared);
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
                                        {"box_tokens", kTileTokens},
                                        {"is_packed", 0},
                                        {"pass_cost", 2}};

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
      GiveRegisters<24>();
      Produce(params, scheduler, range, shared);
    } else {
      TakeRegisters<240>();
      Consume(params, scheduler, range, shared);
    }
  }

 private:
  KVIT_DEVICE static void InitBarriers(const Params& params, Shared& shared) {
    PrefetchTensorMap(params.k_map);
    PrefetchTensorMap(params.v_map);
    for (int stage = 0; stage < kStages; ++stage) {
      InitBarrier(&shared.landed[stage].keys, 2);  // the bytes, and has_faulted
      InitBarrier(&shared.landed[stage].values, 1);
      InitBarrier(&shared.free[stage], kConsumers);
    }
    FenceBarrierInit();
  }

  KVIT_DEVICE static void Produce(const Params& params, const Scheduler& scheduler, const CtaRange& range,
                                  Shared& shared) {
    bool is_synced = params.reads_ahead == 0;
    if (WarpIndex() == kConsumers) {
      const WorkIterator<Scheduler> works(scheduler, params.cache.num_kv_heads, range);
      Loader loader(params, scheduler, works, shared.keys, shared.values, shared.landed, 0);
      for (uint32_t tile = 0; !loader.Done(); ++tile) {
        const int stage = int(tile % kStages);
        if (tile >= kStages) WaitBarrier(&shared.free[stage], (tile / kStages - 1) & 1u);
        if (!is_synced && loader.NextIsNew()) {
          GridDependencySync();
          is_synced = true;
        }
        loader.Prefetch(stage);
        if (LaneIndex() == 0) {
          StoreShared(&shared.has_faulted[stage], int(loader.Faulted(stage)));
          Arrive(&shared.landed[stage].keys);
        }
      }
    }
    if (!is_synced) GridDependencySync();
  }

  KVIT_DEVICE static void Consume(const Params& params, const Scheduler& scheduler, const CtaRange& range,
                                  Shared& shared) {
    if (params.reads_ahead != 0) GridDependencySync();  // queries are the call's own
    WorkIterator<Scheduler> works(scheduler, params.cache.num_kv_heads, range);
    Combiner combine(params, scheduler, range, shared.combine);
    uint32_t count = 0;  // of tiles before this one
    for (; !works.Done(); works.Next()) {
      const typename Scheduler::Work& work = works.work();
      const TileRange visible = scheduler.VisibleTiles(work);
      const int least = scheduler.Visible(work, 0).end;  // nobody sees less
      Attention attention(shared.attention);
      Begin(params, scheduler, work, attention);
      for (int tile = visible.first; tile < visible.last; ++tile, ++count) {
        const int stage = int(count % kStages);
        const Step step = {scheduler, work, shared, stage, count / kStages & 1u, tile * kTileTokens};
        WaitBarrier(&shared.landed[stage].keys, step.parity);
        const bool has_faulted = LoadShared<int>(&shared.has_faulted[stage]) != 0;
        if ((tile + 1) * kTileTokens <= least) {
          attention.template Step<false>(step);
        } else {
          attention.template Step<true>(step);
        }
        if (has_faulted) attention.Poison();
        SyncWarp();
        if (LaneIndex() == 0) Arrive(&shared.free[stage]);
      }
      combine.Finish(attention, work);
    }
    combine.Join();
  }

  /// A tile in ring slot `stage`, and what the rows of a row tile see of it.
  struct Step {
    static constexpr int kChunkBytes = KeyRing::Layout::kChunkBytes;
    const Scheduler& scheduler;
    const typename Scheduler::Work& work;
    Shared& shared;
    int stage;
    uint32_t parity;  // of the slot's barriers
    int first_key;    // the first of its tokens

    KVIT_DEVICE const char* KeyTile() const { return shared.keys.Tile(stage, 0); }
    KVIT_DEVICE const char* ValueTile() const { return shared.values.Tile(stage, 0); }
    KVIT_DEVICE const char* Value(int s, int c) const { return shared.values.Address(stage, 0, s, c); }
    KVIT_DEVICE const char* ValueParameters(int) const { return nullptr; }
    KVIT_DEVICE void WaitForValues() const { WaitBarrier(&shared.landed[stage].values, parity); }
    /// Of the calling warp's row `row`: what it sees of the tile.
    KVIT_DEVICE KeyRange Seen(int row) const {
      const KeyRange keys = scheduler.Visible(work, WarpIndex() * 16 + row);
      return {Max(keys.begin - first_key, 0), Min(keys.end - first_key, kTileTokens)};
    }
    /// Outside of it no row sees any.
    KVIT_DEVICE KeyRange SeenBySome() const { return {0, Min(scheduler.MostEnd(work) - first_key, kTileTokens)}; }
  };

  KVIT_DEVICE static void Begin(const Params& params, const Scheduler& scheduler, const typename Scheduler::Work& work,
                                Attention& attention) {
    const int rows = scheduler.NumRows(work);
    const auto address = [&](int row) -> const char* {
      const int row_of_tile = WarpIndex() * 16 + row;
      return row_of_tile < rows ? scheduler.QueryAddress(work, row_of_tile) : nullptr;
    };
    attention.Begin(address, params.scale * 1.44269504088896341f);
    if (work.of.is_bad) attention.Poison();
  }
};

}  // namespace kvit

#endif  // KVIT_ENTRY_PREFILL_TMA_CUH
