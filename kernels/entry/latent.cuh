// Family `latent`: attention to keys whose first channels are the values (MLA), on Hopper. A token is read once for 64
// query rows.
#ifndef KVIT_ENTRY_LATENT_CUH
#define KVIT_ENTRY_LATENT_CUH

#include "abi/fact.h"
#include "abi/params.h"
#include "attention/latent_attention.cuh"
#include "attention/variant.cuh"
#include "entry/latent_consumer.cuh"
#include "pipeline/box_loader.cuh"
#include "pipeline/query_loader.cuh"
#include "pipeline/tiles_in_pieces.cuh"
#include "pipeline/tma_ring.cuh"
#include "pipeline/work_plan.cuh"
#include "schedule/combine.cuh"
#include "schedule/rows_of_warps.cuh"
#include "schedule/tile_scheduler.cuh"
#include "schedule/work_iterator.cuh"

namespace kvit {

/// Two warp groups share the rows of a row tile, as LatentAttention says. The warps of a third bring what they need:
/// one asks TMA for tiles, and works out what there is to do; three load queries. There is no barrier of the CTA.
///
///   warps      0 .. 3    scores of tokens 0 .. 31, outputs of channels 0 .. 255      shared memory   ring of two tiles
///              4 .. 7    scores of tokens 32 .. 63, outputs of channels 256 .. 511                   queries
///              8         tiles                                                                       weights exchanged
///              9 .. 11   queries, and 11 the plan                                                    barriers, plan
template <class T, class Dims, class Variant>
struct LatentKernel {
  using Params = KvitDecodeParams;
  using Element = T;
  static_assert(Dims::kSharesKv && Dims::kValue == 512,
                "outputs of 64 rows of 512 channels fill both groups' registers");
  static constexpr int kRows = 64, kTileTokens = 64, kStages = 2, kMinCtas = 1;
  static constexpr int kConsumers = 8, kLoaders = 4, kThreads = (kConsumers + kLoaders) * 32;
  static constexpr int kPlanned = 4;      // work tiles that are known, those that are not yet done with among them
  static constexpr int kSplitLevels = 0;  // a row tile is never cut by splits
  static constexpr int kFewest = 16;      // tiles of a CTA: a part of fewer takes longer to join than they to compute
  static constexpr int kOpening = 2;      // tiles that take as long as the beginning and the end of a row tile
  static constexpr int kQueryLoaders = 3;

  using Scheduler =
      TileScheduler<typename Variant::Mask, kRows, kTileTokens, kThreads, kSplitLevels, kOpening, kFewest>;
  using Ring = TmaRing<T, Plain, Dims::kKey, kTileTokens, 1, kStages, false>;
  using Score = typename Variant::Score;
  using Rows = typename Variant::template Rows<Scheduler, 16, kTileTokens>;
  using OwnRows = typename Variant::template Rows<Scheduler, 16, kTileTokens / 2>;  // of a group's tokens
  using Attention = LatentAttention<T, Dims, kTileTokens, Score>;
  using Pieces = typename Attention::Pieces;
  using Combiner = Combine<T, Dims, kRows, kConsumers, RowsOfWarps<16, true, true>, Scheduler, Score>;

  struct Shared {
    Ring tiles;
    typename Attention::Queries queries;
    PairExchange exchange;
    PieceSlots<Pieces::kCount, kStages> of_tiles;
    uint64_t queries_full, queries_free;
    WorkPlan<typename Scheduler::Work, kPlanned> plan;
    typename Combiner::Shared combine;
    typename Scheduler::Shared scheduler;
  };
  static constexpr int kSharedBytes = sizeof(Shared);
  static_assert(kSharedBytes <= 227 * 1024, "a CTA of Hopper has no more");
  static constexpr KvitFact kFacts[] = {{"rows", kRows},
                                        {"k_dim", Dims::kKey},
                                        {"v_dim", Dims::kValue},
                                        {"shares_kv", 1},
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
                                        {"is_packed", 0}};

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
      GiveRegisters<40>();
      Load(params, scheduler, range, shared, WarpIndex() - kConsumers);
    } else {
      TakeRegisters<232>();
      if (params.reads_ahead != 0) GridDependencySync();  // queries are the call's own
      LatentConsumer<LatentKernel>(params, scheduler, range, shared).Run();
    }
  }

 private:
  KVIT_DEVICE static void InitBarriers(const Params& params, Shared& shared) {
    PrefetchTensorMap(params.k_map);
    for (int piece = 0; piece < Pieces::kCount; ++piece) {
      shared.of_tiles.pieces[piece].Init(piece == 0 ? kConsumers : kConsumers / 2);  // values are one group's
    }
    shared.exchange.Init();
    shared.plan.Init(kConsumers + 1 + kQueryLoaders);
    InitBarrier(&shared.queries_full, kQueryLoaders);
    InitBarrier(&shared.queries_free, kConsumers);
    FenceBarrierInit();
  }

  // Warp `loader` of the last four.
  KVIT_DEVICE static void Load(const Params& params, const Scheduler& scheduler, const CtaRange& range, Shared& shared,
                               int loader) {
    bool is_synced = params.reads_ahead == 0;
    const auto sync = [&] {
      if (!is_synced) GridDependencySync();
      is_synced = true;
    };
    if (loader == 0) {
      using Tiles = TilesInPieces<Ring, Pieces, kStages>;
      const Tiles tiles = {params.k_map, shared.tiles, shared.of_tiles};
      BoxLoader<Tiles, kTileTokens>(params, tiles).Run(shared.plan, scheduler, true, sync);
    } else {
      LoadQueries(params, scheduler, range, shared, loader - 1, sync);
    }
    sync();
  }

  template <class Sync>
  KVIT_DEVICE static void LoadQueries(const Params& params, const Scheduler& scheduler, const CtaRange& range,
                                      Shared& shared, int loader, Sync&& sync) {
    WorkIterator<Scheduler> works(scheduler, params.cache.num_kv_heads, range);
    bool is_planned = loader != kQueryLoaders - 1;
    uint32_t planned = 0;
    for (uint32_t count = 0;; ++count) {
      while (!is_planned && planned <= count + 2) is_planned = !shared.plan.Write(scheduler, works, planned++);
      const auto& now = shared.plan.Read(count);
      if (!now.exists) return;
      sync();  // queries are the call's own
      if (count != 0) WaitBarrier(&shared.queries_free, (count - 1) & 1u);
      const int rows = scheduler.NumRows(now.work), first = Min(loader, rows - 1);
      LoadWideQueries<T, Dims::kKey>(shared.queries, scheduler.QueriesFrom(now.work, first), rows, loader,
                                     kQueryLoaders);
      CopyAsyncWait<0>();
      FenceAsyncCopies();  // the matrix unit reads them as such a copy would
      SyncWarp();
      if (LaneIndex() == 0) Arrive(&shared.queries_full);
      shared.plan.Release(count);
    }
  }
};

}  // namespace kvit

#endif  // KVIT_ENTRY_LATENT_CUH
