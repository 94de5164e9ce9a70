// Family `prefill` on every GPU: matrix instructions of one warp, and copies by the threads of the CTA.
#ifndef KVIT_ENTRY_PREFILL_WARPS_CUH
#define KVIT_ENTRY_PREFILL_WARPS_CUH

#include <type_traits>

#include "abi/fact.h"
#include "abi/params.h"
#include "attention/called_mask.cuh"
#include "attention/mma_for.cuh"
#include "attention/row_attention.cuh"
#include "attention/variant.cuh"
#include "iterator/sm70.cuh"
#include "iterator/sm80.cuh"
#include "pipeline/kv_pipe.cuh"
#include "pipeline/row_table_loader.cuh"
#include "pipeline/tile_movers.cuh"
#include "pipeline/tile_ring.cuh"
#include "quant/codec.cuh"
#include "schedule/combine.cuh"
#include "schedule/rows_of_warps.cuh"
#include "schedule/tile_scheduler.cuh"
#include "schedule/work_iterator.cuh"

namespace kvit {

/// How a prefill kernel of so many query rows uses an SM: four warps with a quarter of them each, and all tokens of a
/// tile. An operand of K or V that a warp reads from shared memory serves all its rows: with 32 of them, reading takes
/// no longer than multiplying, and with 16 on compute capability 7.5, which multiplies at half that rate. Outputs of 32
/// rows of 256 channels would not fit in registers.
template <class Dims, int RowsPerTile>
struct RowShape {
  static constexpr int kWarps = 4;
  static constexpr int kWarpRows = RowsPerTile / kWarps;
  static constexpr int kTokens = Dims::kValue > 128 ? 32 : 64;  // of a tile: two of K and V, and queries, in 99 KB
  static constexpr int kCtasPerSm = 2;
};

/// What brings tiles: their rings, and which way.
template <class Copies, class T, class KeyCodec, class ValueCodec, class Dims, int Tokens, int Warps>
struct KvTiles {
  using Keys = TileRing<Sm80GmemIterator, T, KeyCodec, Dims::kKey, Tokens, Warps, 2, 0>;
  using Values = TileRing<Sm80GmemIterator, T, ValueCodec, Dims::kValue, Tokens, Warps, 2, 1>;
  using Mover = CpAsyncMover<Keys, Values>;
};
template <class T, class KeyCodec, class ValueCodec, class Dims, int Tokens, int Warps>
struct KvTiles<RegisterCopies, T, KeyCodec, ValueCodec, Dims, Tokens, Warps> {
  using Keys = TileRing<Sm70GmemIterator, T, KeyCodec, Dims::kKey, Tokens, Warps, 1, 0>;
  using Values = TileRing<Sm70GmemIterator, T, ValueCodec, Dims::kValue, Tokens, Warps, 1, 1>;
  using Mover = RegisterMover<Keys, Values>;
};

/// The threads of the CTA copy tiles of K and V by cp.async, and meet once a tile: then all of it is there, and all
/// have left the other ring slot. Registers are for scores and outputs; what changes with work tiles is in shared
/// memory. Through registers they meet twice: when all have left the one slot, and when the next tile is in it.
///
///   shared memory   ring of K tiles | ring of V tiles | loader | queries of each warp | work | scheduler
template <class T, class KeyCodec, class ValueCodec, class Dims, int RowsPerTile, class Copies, class Variant,
          class Shape = RowShape<Dims, RowsPerTile>>
struct PrefillWarpsKernel {
  using Params = KvitDecodeParams;
  static constexpr int kWarps = Shape::kWarps, kThreads = kWarps * 32;
  static constexpr int kRows = RowsPerTile;
  static constexpr int kTileTokens = Shape::kTokens;
  static constexpr int kStages = 2;
  // A row tile is never cut where heads are split: parts of so many rows would take more memory than the cache.
  static constexpr int kSplitLevels = 0;

  using Scheduler = TileScheduler<CalledMask<typename Variant::Mask>, kRows, kTileTokens, kThreads, kSplitLevels>;
  using KeyForm = typename Copies::template Form<T, KeyCodec>;
  using ValueForm = typename Copies::template Form<T, ValueCodec>;
  using Tiles = KvTiles<Copies, T, KeyForm, ValueForm, Dims, kTileTokens, kWarps>;
  using KeyRing = typename Tiles::Keys;
  using ValueRing = typename Tiles::Values;
  using Loader = RowTableLoader<Scheduler, KeyRing, ValueRing, kTileTokens, kThreads, typename Tiles::Mover>;
  using Score = typename Variant::Score;
  static constexpr int kRowTiles = Shape::kWarpRows / 16;
  using Rows = typename Variant::template Rows<Scheduler, Shape::kWarpRows, kTileTokens>;
  using Attention =
      RowAttention<T, KeyForm, ValueForm, Dims, kRowTiles, kTileTokens, Score, MmaFor<Copies::kMultipliesBfloat16>>;
  using Combiner = Combine<T, Dims, kRows, kWarps, RowsOfWarps<Shape::kWarpRows>, Scheduler, Score>;

  struct Shared {
    KeyRing keys;
    ValueRing values;
    typename Loader::Shared loader;
    typename Attention::Shared attention[kWarps];
    CtaRange range;
    typename WorkIterator<Scheduler>::Place place;  // of the work tile that is computed
    typename Combiner::Shared combine;
    typename Scheduler::Shared scheduler;
  };
  static constexpr int kSharedBytes = sizeof(Shared);
  static constexpr bool kIsThroughRegisters = std::is_same_v<Copies, RegisterCopies>;
  static constexpr int kMinCtas = kIsThroughRegisters && kSharedBytes > 32 * 1024 ? 1 : Shape::kCtasPerSm;
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
                                        {"page_multiple", 1},
                                        {"needs_strides", 0},
                                        {"box_tokens", 0},
                                        {"is_packed", 0},
                                        // As measured, in passes of decode's kernel of 16 rows; through registers by
                                        // arithmetic (docs/platforms.md), in passes of decode's of 8.
                                        {"pass_cost", 3}};

  KVIT_DEVICE static void Run(const Params& params, char* shared_memory) {
    Shared& shared = *reinterpret_cast<Shared*>(shared_memory);
    const Ticket ticket(params.workspace);
    bool is_synced = params.reads_ahead == 0;
    if (is_synced) GridDependencyWait();
    const Scheduler scheduler(params);
    const CtaRange found = scheduler.Find(shared.scheduler, ticket);
    if (is_synced) GridDependencyLaunch();
    if (found.IsEmpty()) {
      if (!is_synced) GridDependencySync();
      return;
    }

    const CtaRange& range = shared.range;
    const WorkIterator<Scheduler> works(scheduler, params.cache.num_kv_heads, found);
    if (ThreadIndex() == 0) {
      shared.range = found;
      shared.place = works.place();
    }
    SyncThreads();
    Loader loader(params, scheduler, range, works, shared.keys, shared.values, shared.loader);
    Combiner combine(params, scheduler, range, shared.combine);
    if (!is_synced && loader.NextIsNew(0)) {
      GridDependencySync();
      is_synced = true;
    }
    loader.Prefetch(0);
    if (!is_synced) GridDependencySync();
    int slot = 0;
    while (shared.place.position < range.end) {
      const typename Scheduler::Work& work = shared.place.work;
      const TileRange visible = scheduler.VisibleTiles(work);
      const auto common = scheduler.Common(work);
      const Score score(params);
      Attention attention(shared.attention[WarpIndex()], score);
      Begin(params, scheduler, work, score, attention);
      for (int tile = visible.first; tile < visible.last; ++tile, slot = 1 - slot) {
        loader.Await();
        const bool has_faulted = SyncThreadsOr(loader.Faulted(slot));
        loader.Land();
        loader.Prefetch(1 - slot);
        Rows rows(scheduler, work, WarpIndex() * Shape::kWarpRows, tile * kTileTokens);
        rows.Look(common, [&](auto is_masked) { attention.Step(Step{shared, slot, rows}, is_masked); });
        if (has_faulted) attention.Poison();
      }
      combine.Finish(attention, work);
      SyncThreads();  // nobody looks at this work tile any more
      if (ThreadIndex() == 0) {
        WorkIterator<Scheduler> next(scheduler, params.cache.num_kv_heads, range, shared.place);
        next.Next();
        shared.place = next.place();
      }
      SyncThreads();
    }
    loader.Await();
    combine.Join();
  }

 private:
  /// The tile of stage `stage`, and what the calling warp's rows see of it.
  struct Step {
    const Shared& shared;
    int stage;
    const Rows& rows;

    KVIT_DEVICE int Slot() const { return Tiles::Mover::kSlots == 1 ? 0 : stage; }
    KVIT_DEVICE const char* Key(int s, int c) const { return shared.keys.Address(Slot(), s, c); }
    KVIT_DEVICE const char* Value(int s, int c) const { return shared.values.Address(Slot(), s, c); }
    KVIT_DEVICE auto KeyParameters(int s) const { return shared.keys.Parameters(Slot(), s); }
    KVIT_DEVICE auto ValueParameters(int s) const { return shared.values.Parameters(Slot(), s); }
  };

  KVIT_DEVICE static void Begin(const KvitDecodeParams& params, const Scheduler& scheduler,
                                const typename Scheduler::Work& work, const Score& score, Attention& attention) {
    const int rows = scheduler.NumRows(work), first = WarpIndex() * Shape::kWarpRows;
    const auto address = [&](int row) -> const char* {
      return first + row < rows ? scheduler.QueryAddress(work, first + row) : nullptr;
    };
    attention.Begin(address, params.cache, params.scale * 1.44269504088896341f,
                    Rows::Factors(score, scheduler, work, first));
    if (work.of.is_bad) attention.Poison();
  }
};

}  // namespace kvit

#endif  // KVIT_ENTRY_PREFILL_WARPS_CUH
