// Family `decode`: attention of one or a few new tokens per sequence over its paged cache, in one launch.
#ifndef KVIT_ENTRY_DECODE_CUH
#define KVIT_ENTRY_DECODE_CUH

#include <type_traits>

#include "abi/fact.h"
#include "abi/params.h"
#include "attention/causal_step.cuh"
#include "attention/general_step.cuh"
#include "attention/mma_for.cuh"
#include "attention/variant.cuh"
#include "attention/warp_attention.cuh"
#include "core/pipe_iter.cuh"
#include "pipeline/kv_pipe.cuh"
#include "quant/codec.cuh"
#include "schedule/combine.cuh"
#include "schedule/tile_scheduler.cuh"
#include "schedule/warp_sums.cuh"
#include "schedule/work_iterator.cuh"

namespace kvit {

/// How a decode kernel uses an SM.
template <int Warps, int WarpTokens, int Stages, int CtasPerSm>
struct TileShape {
  static constexpr int kWarps = Warps;
  static constexpr int kWarpTokens = WarpTokens;  // of a tile, that a warp loads and consumes
  static constexpr int kStages = Stages;
  static constexpr int kCtasPerSm = CtasPerSm;
};

/// Of K and V of a token, in the rings.
template <class KeyCodec, class ValueCodec, class Dims>
inline constexpr int kTokenBytes =
    int(BytesOf<typename KeyCodec::template Element<Half>>(Dims::kKey) +
        (Dims::kSharesKv ? 0 : BytesOf<typename ValueCodec::template Element<Half>>(Dims::kValue)));

/// Copies by cp.async: two CTAs per SM, each with rings of at most 64 KB: what fits beside the merge in the 99 KB of
/// the smallest GPUs. Steps as long as registers allow, and one stage where a step of the CTA has 16 KB: eight warps
/// that wait at different times keep enough bytes under way, and more in flight are slower. Tokens of more than 768
/// bytes (K and V together) leave room for two warps only, and of more than 1024 for one stage.
template <class Copies, class Dims, int TokenBytes, int Rows>
struct DefaultTileShape {
  static constexpr int kWarps = TokenBytes > 768 ? 2 : 4;
  static constexpr int kWarpTokens = TokenBytes <= (Rows > 8 ? 256 : 512) ? 32 : 16;
  static constexpr int kStages = TokenBytes > 1024 || (kWarps == 4 && kWarpTokens * TokenBytes >= 4096) ? 1 : 2;
  using Type = TileShape<kWarps, kWarpTokens, kStages, 2>;
};

/// TMA: long steps, since a step costs much besides its products, and one CTA per SM with rings of 128 KB:
/// the fewer CTAs, the fewer parts of a head. One stage, where that fills the rings: what a warp asks for lies
/// together, and the other warps compute meanwhile. Small tokens are bound by instructions, and gain by the second CTA;
/// larger codes and 16 rows by twice the warps.
template <class Dims, int TokenBytes, int Rows>
struct DefaultTileShape<TmaCopies, Dims, TokenBytes, Rows> {
  static constexpr int kCtas = TokenBytes <= 128 ? 2 : 1;
  static constexpr int kWarps = kCtas == 1 && (Rows > 8 || TokenBytes <= 256) ? 8 : 4;
  static constexpr int kWarpTokens = kWarps * TokenBytes <= 2048 ? 64 : 32;
  static constexpr int kStages = kWarps * TokenBytes <= 1024 ? 2 : 1;
  using Type = TileShape<kWarps, kWarpTokens, kStages, kCtas>;
};

/// TMA, packed: the smallest tokens of all, so more of them at a step, and eight warps per SM.
template <class Dims, int TokenBytes, int Rows>
struct DefaultTileShape<TmaPackedCopies, Dims, TokenBytes, Rows> {
  static constexpr int kWarpTokens = Dims::kKey <= 64 && TokenBytes <= 128 && Rows <= 8 ? 128 : 64;
  static constexpr int kCtas = TokenBytes <= 64 ? 2 : 1;
  static constexpr int kWarps = TokenBytes <= 128 ? 8 / kCtas : 4;
  using Type = TileShape<kWarps, kWarpTokens, Min(2, 131072 / (kWarps * kWarpTokens * TokenBytes)), kCtas>;
};

/// Through registers: few tokens at a step, since a tile in flight takes registers, and more where they are small. The
/// 64 KB of shared memory of compute capability 7.5 hold two CTAs of four warps where tiles are small, or three of two;
/// registers, too, are for eight warps an SM.
template <class Dims, int TokenBytes, int Rows>
struct DefaultTileShape<RegisterCopies, Dims, TokenBytes, Rows> {
  static constexpr int kWarpTokens = Dims::kKey <= 64 && TokenBytes <= 128 ? 32 : 16;
  static constexpr int kWarpBytes = kWarpTokens * TokenBytes + Rows * (Dims::kValue + 4) * int(sizeof(float));
  static constexpr int kWarps = kWarpBytes <= 7680 || kWarpBytes > 10240 ? 4 : 2;
  using Type = TileShape<kWarps, kWarpTokens, 2, kWarpBytes <= 7680 ? 2 : kWarps == 2 ? 3 : 1>;
};

/// Each warp loads and consumes its own tokens of every tile, so the main loop has no CTA-wide barrier.
///
///   shared memory   ring of K tiles | ring of V tiles | the warps' outputs of a finished work tile | scheduler
template <class T, class KeyCodec, class ValueCodec, class Dims, int RowsPerTile, class Copies, class Variant,
          class Shape =
              typename DefaultTileShape<Copies, Dims, kTokenBytes<KeyCodec, ValueCodec, Dims>, RowsPerTile>::Type>
struct DecodeKernel {
  using Params = KvitDecodeParams;
  static constexpr int kWarps = Shape::kWarps;
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kTokens = Shape::kWarpTokens;
  static constexpr int kTileTokens = kWarps * kTokens;
  static constexpr int kStages = Shape::kStages;
  static constexpr int kMinCtas = Shape::kCtasPerSm;
  static constexpr int kSplitLevels = 10;

  // What is out of the ordinary is the general variant's, rows of fewer channels too.
  static constexpr bool kTakesFewer = Variant::kTakesFewer && Copies::kTakesFewer;
  using Widths = std::conditional_t<kTakesFewer, AtMost<Dims>, Dims>;

  using Scheduler = TileScheduler<typename Variant::Mask, RowsPerTile, kTileTokens, kThreads, kSplitLevels>;
  using KeyForm = typename Copies::template Form<T, KeyCodec>;
  using ValueForm = typename Copies::template Form<T, ValueCodec>;
  using Pipe = KvPipe<Copies, T, KeyForm, ValueForm, Widths, Scheduler, Shape>;
  using Score = typename Variant::Score;
  using Attention =
      WarpAttention<T, KeyForm, ValueForm, Dims, RowsPerTile, kTokens, Score, MmaFor<Copies::kMultipliesBfloat16>>;
  using Step = std::conditional_t<Scheduler::kHasBegin, GeneralStep<Scheduler, Pipe, kTokens>,
                                  CausalStep<Scheduler, Pipe, kTokens>>;
  using Outputs = WarpSums<Dims::kValue, RowsPerTile, kWarps, ValueCodec::kHasZero>;
  using Combiner = Combine<T, Widths, RowsPerTile, kWarps, Outputs, Scheduler, Score>;

  struct Shared {
    typename Pipe::Shared pipe;
    typename Combiner::Shared combine;
    typename Scheduler::Shared scheduler;
  };
  static constexpr int kSharedBytes = sizeof(Shared);
  static constexpr KvitFact kFacts[] = {{"rows", RowsPerTile},
                                        {"k_dim", Dims::kKey},
                                        {"v_dim", Dims::kValue},
                                        {"takes_fewer", kTakesFewer},
                                        {"shares_kv", Dims::kSharesKv},
                                        {"tile_tokens", kTileTokens},
                                        {"stages", kStages},
                                        {"ctas_per_sm", kMinCtas},
                                        {"overlaps", 1},
                                        // Of the workspace: its head, and what each CTA leaves for others.
                                        {"workspace_head_bytes", kWorkspaceHeadBytes},
                                        {"part_bytes", Combiner::kPartBytes},
                                        {"split_part_bytes", Combiner::kSplitPartBytes},
                                        {"most_splits", 1 << Scheduler::kSplitLevels},
                                        {"page_multiple", Copies::kPageMultiple},
                                        // What tensor maps need, and how many tokens of a page their boxes may hold.
                                        {"needs_strides", Copies::kPageMultiple > 1},
                                        {"box_tokens", Copies::kPageMultiple > 1 ? kTokens : 0},
                                        {"is_packed", Copies::kIsPacked}};

  KVIT_DEVICE static void Run(const Params& params, char* shared_memory) {
    Shared& shared = *reinterpret_cast<Shared*>(shared_memory);
    const Ticket ticket(params.workspace);
    Pipe::Init(params, shared.pipe);
    bool is_synced = params.reads_ahead == 0;
    if (is_synced) GridDependencyWait();
    const Scheduler scheduler(params);
    const CtaRange range = scheduler.Find(shared.scheduler, ticket);
    if (is_synced) GridDependencyLaunch();
    if (range.IsEmpty()) {
      if (!is_synced) GridDependencySync();
      return;
    }

    WorkIterator<Scheduler> works(scheduler, params.cache.num_kv_heads, range);
    Pipe pipe(params, scheduler, works, shared.pipe);
    Combiner combine(params, scheduler, range, shared.combine);
    PipeIter<kStages> filled, used;
    int under_way = 0;  // tiles that are in the ring or on their way
    for (; !works.Done(); works.Next()) {
      const auto& work = works.work();
      const TileRange visible = scheduler.VisibleTiles(work);
      const auto common = Step::Common(scheduler, work);
      Attention attention{Score(params)};
      int part = Step::kNoPart;  // of the tile's steps, where it is several
      for (int tile = visible.first;;) {
        SyncWarp();  // all lanes have left the slot that is filled next
        for (; under_way < kStages; ++under_way) {
          if (!is_synced && pipe.NextIsNew()) {
            GridDependencySync();
            is_synced = true;
          }
          pipe.Prefetch(filled.read());
          ++filled;
        }
        if (!is_synced) {
          GridDependencySync();
          is_synced = true;
        }
        if (tile == visible.first && part == Step::kNoPart) Begin(params, scheduler, work, attention);
        if (tile >= visible.last) break;
        const int slot = used.read(), token = tile * kTileTokens + WarpIndex() * kTokens;
        pipe.WaitForKeys(slot);
        Step step = {scheduler, work, pipe, slot, token, Step::IsMasked(common, token), part};
        if (!step.is_masked) {
          attention.template Step<false>(step, tile == visible.first);
        } else {
          if constexpr (Step::kHidesInMemory) {
            attention.template Step<true>(step, tile == visible.first);
          } else if (step.Finds()) {
            attention.template Step<true>(step, tile == visible.first);
          }
          part = step.NextPart(common);
          if (part != Step::kNoPart) continue;
        }
        if (pipe.Faulted(slot)) attention.Poison();
        pipe.Release(slot);
        ++tile;
        ++used;
        --under_way;
      }
      combine.Finish(attention, work);
    }
    pipe.End();
    combine.Join();
  }

 private:
  KVIT_DEVICE static void Begin(const KvitDecodeParams& params, const Scheduler& scheduler,
                                const typename Scheduler::Work& work, Attention& attention) {
    const int rows = scheduler.NumRows(work);
    const auto address = [&](int row) -> const char* {
      return row < rows ? scheduler.QueryAddress(work, row) : nullptr;
    };
    const float scale_log2 = params.scale * 1.44269504088896341f;
    const RowWidth<Dims::kKey, kTakesFewer> width = {params.cache.k_dim};
    if constexpr (Score::kIsIdentity) {
      attention.Begin(address, params.cache.k_hadamard, width, scale_log2);
    } else {
      const Score score(params);
      attention.Begin(address, params.cache.k_hadamard, width, scale_log2, [&](int row) {
        const int token = Min(scheduler.TokenOf(work.row_tile * RowsPerTile + row), work.of.new_tokens - 1);
        return score.Factor(scheduler.mask().PositionOf(work.of, token));
      });
    }
    if (work.of.is_bad) attention.Poison();
  }
};

}  // namespace kvit

#endif  // KVIT_ENTRY_DECODE_CUH
