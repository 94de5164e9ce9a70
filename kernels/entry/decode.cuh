// Family `decode`: attention of one or a few new tokens per sequence over its paged cache, in one launch.
#ifndef KVIT_ENTRY_DECODE_CUH
#define KVIT_ENTRY_DECODE_CUH

#include "abi/fact.h"
#include "abi/params.h"
#include "attention/kv_ring.cuh"
#include "attention/piece_merge.cuh"
#include "attention/tile_loader.cuh"
#include "attention/warp_attention.cuh"
#include "attention/work_line.cuh"
#include "cache/paged_iterator.cuh"
#include "quant/codec.cuh"

namespace kvit {

/// How a decode kernel uses an SM.
template <int Warps, int WarpTokens, int Stages, int CtasPerSm>
struct DecodeTuning {
  static constexpr int kWarps = Warps;
  static constexpr int kWarpTokens = WarpTokens;  // of a tile, that a warp loads and consumes
  static constexpr int kStages = Stages;
  static constexpr int kCtasPerSm = CtasPerSm;
};

namespace detail {
/// Two CTAs per SM, each with rings of about 64 KB: what fits beside the merge in the 99 KB of the smallest GPUs, and
/// keeps enough bytes under way. Small tokens are taken 32 at a step, which halves what a step costs besides its
/// products; tokens of more than 768 bytes (K and V together) leave room for two warps only.
template <class KeyCodec, class ValueCodec, int HeadDim>
struct DefaultTuning {
  static constexpr int kTokenBytes = int(BytesOf<typename KeyCodec::template Element<Half>>(HeadDim) +
                                         BytesOf<typename ValueCodec::template Element<Half>>(HeadDim));
  static constexpr int kWarps = kTokenBytes > 768 ? 2 : 4;
  static constexpr int kWarpTokens = kTokenBytes <= 256 ? 32 : 16;
  static constexpr int kStages = Min(8, 65536 / (kWarps * kWarpTokens * kTokenBytes));
  using Type = DecodeTuning<kWarps, kWarpTokens, kStages, 2>;
};
}  // namespace detail

/// Each warp loads and consumes its own tokens of every tile, so the main loop has no CTA-wide barrier.
///
///   shared memory   ring of K tiles | ring of V tiles | the warps' outputs of a finished piece | work line
template <class T, class KeyCodec, class ValueCodec, int HeadDim, int RowsPerTile,
          class Tuning = typename detail::DefaultTuning<KeyCodec, ValueCodec, HeadDim>::Type>
struct DecodeKernel {
  using Params = KvitDecodeParams;
  static constexpr int kWarps = Tuning::kWarps;
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kTileTokens = kWarps * Tuning::kWarpTokens;
  static constexpr int kStages = Tuning::kStages;
  static constexpr int kMinCtas = Tuning::kCtasPerSm;

  using Line = WorkLine<RowsPerTile, kTileTokens, kThreads>;
  using KeyRing = KvRing<T, KeyCodec, HeadDim, kTileTokens, kWarps, kStages, 0>;
  using ValueRing = KvRing<T, ValueCodec, HeadDim, kTileTokens, kWarps, kStages, 1>;
  using Loader =
      TileLoader<Line, PagedIterator<KeyRing::kPools | ValueRing::kPools, typename KeyRing::Map>, KeyRing, ValueRing>;
  using Attention = WarpAttention<T, KeyCodec, ValueCodec, HeadDim, RowsPerTile, Tuning::kWarpTokens>;
  using Merge = PieceMerge<T, HeadDim, RowsPerTile, kWarps, Attention, Line>;
  static_assert(KeyRing::Map::kFootprintS == Attention::kTokens && ValueRing::Map::kFootprintS == Attention::kTokens,
                "a warp loads the tokens that it consumes in a step");

  struct Shared {
    KeyRing keys;
    ValueRing values;
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

    Loader loader(params, line, share, shared.keys, shared.values);
    KVIT_UNROLL
    for (int stage = 0; stage < kStages - 1; ++stage) loader.Prefetch(stage);

    Merge merge(params, line, share, shared.merge);
    PipeIter<kStages> pipe;
    for (WorkCursor<Line> cursor(line, params.cache.num_kv_heads, share); !cursor.Done(); cursor.Next()) {
      const Piece& piece = cursor.piece();
      Attention attention;
      Begin(params, line, piece, attention);
      if (piece.work.fault.kind != KVIT_FAULT_NONE) {
        attention.Poison();
        if (ThreadIndex() == 0) ReportFault(params.fault, piece.work.fault);
      }
      const int fully_visible = line.KeyLimit(piece, 0), end = line.VisibleEnd(piece);
      for (int tile = piece.first; tile < end; ++tile, ++pipe) {
        CopyAsyncWait<kStages - 2>();
        SyncWarp();  // the tile is there for all lanes, and all have left the slot that is filled next
        loader.Prefetch(pipe.write());
        const int row = WarpIndex() * Tuning::kWarpTokens;  // of the tile
        const int token = tile * kTileTokens + row;
        attention.Step([&](int s, int c) { return shared.keys.Address(pipe.read(), row + s, c); },
                       [&](int s) { return shared.keys.Parameters(pipe.read(), row + s); },
                       [&](int s, int c) { return shared.values.Address(pipe.read(), row + s, c); },
                       [&](int s) { return shared.values.Parameters(pipe.read(), row + s); },
                       token + Attention::kTokens > fully_visible,
                       [&](int query) { return Min(line.KeyLimit(piece, query), piece.work.length) - token; });
        if (loader.Faulted(pipe.read())) attention.Poison();
      }
      merge.Finish(attention, piece);
    }
    CopyAsyncWait<0>();
  }

 private:
  KVIT_DEVICE static void Begin(const Params& params, const Line& line, const Piece& piece, Attention& attention) {
    const int rows = line.NumRows(piece), group = line.group();
    const auto address = [&](int row) -> const char* {
      if (row >= rows) return nullptr;
      const int index = piece.row_tile * RowsPerTile + row;
      const int64_t token = piece.work.first_token + index / group;
      const int64_t head = int64_t(piece.head) * group + index % group;
      return static_cast<const char*>(params.q.base) + token * params.q.token_stride + head * params.q.head_stride;
    };
    attention.Begin(address, params.scale * 1.44269504088896341f);
  }
};

}  // namespace kvit

#endif  // KVIT_ENTRY_DECODE_CUH
