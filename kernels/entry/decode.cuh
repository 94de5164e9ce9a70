// Family `decode`: attention of one or a few new tokens per sequence over its paged cache, in one launch.
#ifndef KVIT_ENTRY_DECODE_CUH
#define KVIT_ENTRY_DECODE_CUH

#include "abi/fact.h"
#include "abi/params.h"
#include "attention/piece_merge.cuh"
#include "attention/tile_loader.cuh"
#include "attention/warp_attention.cuh"
#include "attention/work_line.cuh"
#include "cache/paged_iterator.cuh"
#include "iterator/sm80.cuh"
#include "layout/kv_layout.cuh"

namespace kvit {

/// How a decode kernel uses an SM.
template <int Warps, int WarpTokens, int Stages, int CtasPerSm>
struct DecodeTuning {
  static constexpr int kWarps = Warps;
  static constexpr int kWarpTokens = WarpTokens;  // of a tile, that a warp loads and consumes
  static constexpr int kStages = Stages;
  static constexpr int kCtasPerSm = CtasPerSm;
};

/// Each warp loads and consumes its own tokens of every tile, so the main loop has no CTA-wide barrier.
///
///   shared memory   [stage][tile tokens, HeadDim] K | the same of V | the warps' outputs of a finished piece | work
///   line
template <class T, int HeadDim, int RowsPerTile, class Tuning = DecodeTuning<4, 16, HeadDim <= 64 ? 4 : 2, 2>>
struct DecodeKernel {
  using Params = KvitDecodeParams;
  static constexpr int kWarps = Tuning::kWarps;
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kTileTokens = kWarps * Tuning::kWarpTokens;
  static constexpr int kStages = Tuning::kStages;
  static constexpr int kMinCtas = Tuning::kCtasPerSm;

  using Map = KvThreadMap<T, HeadDim, kTileTokens, kWarps>;
  using Layout = KvLayout<T, HeadDim, kTileTokens>;
  using Line = WorkLine<RowsPerTile, kTileTokens, kThreads>;
  using Loader = TileLoader<Line, PagedIterator<0b0011, Map>, Sm80GmemIterator<T, Map, Layout, 0>,
                            Sm80GmemIterator<T, Map, Layout, 1>, kStages>;
  using Attention = WarpAttention<T, HeadDim, RowsPerTile>;
  using Merge = PieceMerge<T, HeadDim, RowsPerTile, kWarps, Attention, Line>;
  static_assert(Map::kFootprintS == Tuning::kWarpTokens && Tuning::kWarpTokens % Attention::kTokens == 0,
                "a warp loads the tokens that it consumes, a whole number of steps");

  struct Shared {
    alignas(128) T k[kStages][Layout::kSize];
    alignas(128) T v[kStages][Layout::kSize];
    typename Merge::Shared merge;
    typename Line::Shared line;
  };
  static constexpr int kSharedBytes = sizeof(Shared);
  static constexpr KvitFact kFacts[] = {
      {"rows", RowsPerTile}, {"tile_tokens", kTileTokens}, {"stages", kStages}, {"ctas_per_sm", kMinCtas}};

  KVIT_DEVICE static void Run(const Params& params, char* shared_memory) {
    Shared& shared = *reinterpret_cast<Shared*>(shared_memory);
    const Line line(params);
    const Share share = line.Find(shared.line);
    if (BlockIndex() >= share.ctas) return;

    Loader loader(params, line, share, &shared.k[0][0], &shared.v[0][0]);
    KVIT_UNROLL
    for (int stage = 0; stage < kStages - 1; ++stage) loader.Prefetch(stage);

    Merge merge(params, line, share, shared.merge);
    const float scale_log2 = params.scale * 1.44269504088896341f;
    PipeIter<kStages> pipe;
    for (WorkCursor<Line> cursor(line, params.cache.num_kv_heads, share); !cursor.Done(); cursor.Next()) {
      const Piece& piece = cursor.piece();
      Attention attention;
      LoadQueries(params, line, piece, attention);
      if (piece.work.fault.kind != KVIT_FAULT_NONE) {
        attention.Poison();
        if (ThreadIndex() == 0) ReportFault(params.fault, piece.work.fault);
      }
      const int fully_visible = line.KeyLimit(piece, 0), end = line.VisibleEnd(piece);
      for (int tile = piece.first; tile < end; ++tile, ++pipe) {
        CopyAsyncWait<kStages - 2>();
        SyncWarp();  // the tile is there for all lanes, and all have left the slot that is filled next
        loader.Prefetch(pipe.write());
        KVIT_UNROLL
        for (int step = 0; step < Tuning::kWarpTokens / Attention::kTokens; ++step) {
          const int row = WarpIndex() * Tuning::kWarpTokens + step * Attention::kTokens;  // of the tile
          const int token = tile * kTileTokens + row;
          attention.Step([&](int s, int c) { return shared.k[pipe.read()] + Layout::Index(row + s, c); },
                         [&](int s, int c) { return shared.v[pipe.read()] + Layout::Index(row + s, c); }, scale_log2,
                         token + Attention::kTokens > fully_visible,
                         [&](int query) { return Min(line.KeyLimit(piece, query), piece.work.length) - token; });
        }
        if (loader.Faulted(pipe.read())) attention.Poison();
      }
      merge.Finish(attention, piece);
    }
    CopyAsyncWait<0>();
  }

 private:
  KVIT_DEVICE static void LoadQueries(const Params& params, const Line& line, const Piece& piece,
                                      Attention& attention) {
    const int rows = line.NumRows(piece), group = line.group();
    attention.LoadQueries([&](int row) -> const char* {
      if (row >= rows) return nullptr;
      const int index = piece.row_tile * RowsPerTile + row;
      const int64_t token = piece.work.first_token + index / group;
      const int64_t head = int64_t(piece.head) * group + index % group;
      return static_cast<const char*>(params.q.base) + token * params.q.token_stride + head * params.q.head_stride;
    });
  }
};

}  // namespace kvit

#endif  // KVIT_ENTRY_DECODE_CUH
