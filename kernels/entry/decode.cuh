// Family `decode`: attention of one or a few new tokens per sequence over its paged cache, in one launch.
#ifndef KVIT_ENTRY_DECODE_CUH
#define KVIT_ENTRY_DECODE_CUH

#include "abi/fact.h"
#include "abi/params.h"
#include "attention/kv_pipe.cuh"
#include "attention/piece_merge.cuh"
#include "attention/warp_attention.cuh"
#include "attention/work_cursor.cuh"
#include "attention/work_line.cuh"
#include "core/pipe_iter.cuh"
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

/// Copies by cp.async: two CTAs per SM, each with rings of at most 64 KB: what fits beside the merge in the 99 KB of
/// the smallest GPUs. Steps as long as registers allow, and one stage where a step of the CTA has 16 KB: eight warps
/// that wait at different times keep enough bytes under way, and more in flight are slower. Tokens of more than 768
/// bytes (K and V together) leave room for two warps only.
template <class Copies, int HeadDim, int TokenBytes, int Rows>
struct DefaultTuning {
  static constexpr int kWarps = TokenBytes > 768 ? 2 : 4;
  static constexpr int kWarpTokens = TokenBytes <= (Rows > 8 ? 256 : 512) ? 32 : 16;
  static constexpr int kStages = kWarps == 4 && kWarpTokens * TokenBytes >= 4096 ? 1 : 2;
  using Type = DecodeTuning<kWarps, kWarpTokens, kStages, 2>;
};

/// Tensor copies: long steps, since a step costs much besides its products, and one CTA per SM with rings of 128 KB:
/// the fewer CTAs, the fewer parts of a head. One stage, where that fills the rings: what a warp asks for lies
/// together, and the other warps compute meanwhile. Small tokens are bound by instructions, and gain by the second CTA;
/// larger codes and 16 rows by twice the warps.
template <int HeadDim, int TokenBytes, int Rows>
struct DefaultTuning<Sm90Copies, HeadDim, TokenBytes, Rows> {
  static constexpr int kCtas = TokenBytes <= 128 ? 2 : 1;
  static constexpr int kWarps = kCtas == 1 && (Rows > 8 || TokenBytes <= 256) ? 8 : 4;
  static constexpr int kWarpTokens = kWarps * TokenBytes <= 2048 ? 64 : 32;
  static constexpr int kStages = kWarps * TokenBytes <= 1024 ? 2 : 1;
  using Type = DecodeTuning<kWarps, kWarpTokens, kStages, kCtas>;
};

/// By lines: the smallest tokens of all, so more of them at a step, and eight warps per SM.
template <int HeadDim, int TokenBytes, int Rows>
struct DefaultTuning<Sm90LineCopies, HeadDim, TokenBytes, Rows> {
  static constexpr int kWarpTokens = HeadDim <= 64 && TokenBytes <= 128 && Rows <= 8 ? 128 : 64;
  static constexpr int kCtas = TokenBytes <= 64 ? 2 : 1;
  static constexpr int kWarps = TokenBytes <= 128 ? 8 / kCtas : 4;
  using Type = DecodeTuning<kWarps, kWarpTokens, Min(2, 131072 / (kWarps * kWarpTokens * TokenBytes)), kCtas>;
};

/// Each warp loads and consumes its own tokens of every tile, so the main loop has no CTA-wide barrier.
///
///   shared memory   ring of K tiles | ring of V tiles | the warps' outputs of a finished piece | work line
template <class T, class KeyCodec, class ValueCodec, int HeadDim, int RowsPerTile, class Copies,
          class Tuning = typename DefaultTuning<Copies, HeadDim,
                                                int(BytesOf<typename KeyCodec::template Element<Half>>(HeadDim) +
                                                    BytesOf<typename ValueCodec::template Element<Half>>(HeadDim)),
                                                RowsPerTile>::Type>
struct DecodeKernel {
  using Params = KvitDecodeParams;
  static constexpr int kWarps = Tuning::kWarps;
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kTileTokens = kWarps * Tuning::kWarpTokens;
  static constexpr int kStages = Tuning::kStages;
  static constexpr int kMinCtas = Tuning::kCtasPerSm;

  using Line = WorkLine<RowsPerTile, kTileTokens, kThreads>;
  using Pipe = KvPipe<Copies, T, KeyCodec, ValueCodec, HeadDim, Line, Tuning>;
  using Attention = WarpAttention<T, KeyCodec, ValueCodec, HeadDim, RowsPerTile, Tuning::kWarpTokens>;
  using Merge = PieceMerge<T, HeadDim, RowsPerTile, kWarps, Attention, Line>;

  struct Shared {
    typename Pipe::Shared pipe;
    typename Merge::Shared merge;
    typename Line::Shared line;
  };
  static constexpr int kSharedBytes = sizeof(Shared);
  static constexpr KvitFact kFacts[] = {{"rows", RowsPerTile},
                                        {"tile_tokens", kTileTokens},
                                        {"stages", kStages},
                                        {"ctas_per_sm", kMinCtas},
                                        {"overlaps", 1},
                                        {"parts", Merge::kParts},
                                        {"split_parts", Merge::kSplitParts},
                                        {"most_splits", 1 << kSplitLevels},
                                        {"page_multiple", Copies::kPageMultiple},
                                        // What tensor maps need, and how many tokens of a page their boxes may hold.
                                        {"needs_strides", Copies::kPageMultiple > 1},
                                        {"box_tokens", Copies::kPageMultiple > 1 ? Tuning::kWarpTokens : 0},
                                        {"has_lines", Copies::kHasLines}};

  KVIT_DEVICE static void Run(const Params& params, char* shared_memory) {
    Shared& shared = *reinterpret_cast<Shared*>(shared_memory);
    Pipe::Init(params, shared.pipe);
    bool has_turn = params.reads_ahead == 0;
    if (has_turn) TakeTurn();
    const Line line(params);
    const Share share = line.Find(shared.line);
    if (share.cta >= share.ctas) {
      if (!has_turn) TakeTurn();
      return;
    }

    WorkCursor<Line> cursor(line, params.cache.num_kv_heads, share);
    Pipe pipe(params, line, cursor, shared.pipe);
    Merge merge(params, line, share, shared.merge);
    PipeIter<kStages> filled, used;
    int under_way = 0;  // tiles that are in the ring or on their way
    for (; !cursor.Done(); cursor.Next()) {
      const Piece& piece = cursor.piece();
      const int fully_visible = line.KeyLimit(piece, 0), end = line.VisibleEnd(piece);
      Attention attention;
      for (int tile = piece.first;; ++tile) {
        SyncWarp();  // all lanes have left the slot that is filled next
        for (; under_way < kStages; ++under_way) {
          if (!has_turn && pipe.NextIsNew()) {
            TakeTurn();
            has_turn = true;
          }
          pipe.Prefetch(filled.read());
          ++filled;
        }
        if (!has_turn) {
          TakeTurn();
          has_turn = true;
        }
        if (tile == piece.first) Begin(params, line, piece, attention);
        if (tile >= end) break;
        const int slot = used.read();
        pipe.WaitForKeys(slot);
        const int token = tile * kTileTokens + WarpIndex() * Tuning::kWarpTokens;
        const PipeTile<Pipe, Tuning::kWarpTokens> keys_and_values = {pipe, slot, piece.work.length - token};
        attention.Step(keys_and_values, tile == piece.first, token + Attention::kTokens > fully_visible,
                       [&](int query) { return Min(line.KeyLimit(piece, query), piece.work.length) - token; });
        if (pipe.Faulted(slot)) attention.Poison();
        ++used;
        --under_way;
      }
      merge.Finish(attention, piece);
    }
    CopyAsyncWait<0>();
    merge.Join();
  }

 private:
  KVIT_DEVICE static void Begin(const KvitDecodeParams& params, const Line& line, const Piece& piece,
                                Attention& attention) {
    const int rows = line.NumRows(piece), group = line.group();
    const auto address = [&](int row) -> const char* {
      if (row >= rows) return nullptr;
      const int index = piece.row_tile * RowsPerTile + row;
      const int token_of_sequence = line.TokenOf(index);
      const int64_t token = piece.work.first_token + token_of_sequence;
      const int64_t head = int64_t(piece.head) * group + (index - token_of_sequence * group);
      return static_cast<const char*>(params.q.base) + token * params.q.token_stride + head * params.q.head_stride;
    };
    attention.Begin(address, params.scale * 1.44269504088896341f);
    if (piece.work.is_bad) attention.Poison();
  }
};

}  // namespace kvit

#endif  // KVIT_ENTRY_DECODE_CUH
