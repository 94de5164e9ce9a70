// Family `relayout`: pages of one cache into pages of another that holds the same bytes in other places.
#ifndef KVIT_ENTRY_RELAYOUT_CUH
#define KVIT_ENTRY_RELAYOUT_CUH

#include "abi/fact.h"
#include "abi/params.h"
#include "cache/page_place.cuh"
#include "core/array.cuh"
#include "core/types.h"
#include "platform/platform.cuh"

namespace kvit {

/// Tiles of Tokens rows of one (page, head) go through shared memory: read in the order that is dense in the source,
/// written in the order that is dense in the target. How wide an access can be follows from addresses and strides, of
/// each side and pool alone.
///
///   row in chunks    lanes go along tokens      (a chunk of the next token lies next to it: vLLM's K and V)
///   row in one       lanes go along the row
///
/// Of rows of more than kPieceBytes, a piece after the other goes that way.
template <int Tokens>
struct RelayoutKernel {
  using Params = KvitRelayoutParams;
  static constexpr int kThreads = 256;
  static constexpr int kPieceBytes = 512;
  static constexpr int kPitch = kPieceBytes + 16;  // rows begin in different banks
  static constexpr int kSharedBytes = Tokens * kPitch;
  static constexpr int kMinCtas = 4;
  static constexpr KvitFact kFacts[] = {{"tile_tokens", Tokens}};

  KVIT_DEVICE static void Run(const Params& params, char* shared) {
    const int page_size = params.source.page_size;
    const int64_t heads = params.source.num_kv_heads, tiles = CeilDiv(page_size, Tokens);
    const int64_t items = params.count * heads * tiles;
    for (int64_t item = BlockIndex(); item < items; item += GridSize()) {
      const int64_t pair_head = item / tiles;
      const auto pair = int(pair_head / heads);
      const auto token = int(item - pair_head * tiles) * Tokens;
      const PagePair pages = FindPagePair(params, pair);
      if (!pages.exists) continue;  // all threads of the CTA do
      const Tile tile = {token, Min(Tokens, page_size - token), int(pair_head - pair * heads), shared};
      for (int pool = 0; pool < kNumPools; ++pool) {
        const auto row_bytes = int(params.row_bytes[pool]);
        const Side from = {params.source.pool[pool], params.source_chunks[pool], pages.source, row_bytes};
        const Side to = {params.target.pool[pool], params.target_chunks[pool], pages.target, row_bytes};
        for (int begin = 0; begin < row_bytes; begin += kPieceBytes) {
          MoveWide<true>(from, tile, begin);
          SyncThreads();
          MoveWide<false>(to, tile, begin);
          SyncThreads();  // before the next rows come to the same place
        }
      }
    }
  }

 private:
  struct Tile {
    int token, num_tokens, head;
    char* shared;
  };
  struct Side {
    const KvitPool& pool;
    const KvitChunks& chunks;
    PagePlace page;
    int row_bytes;
  };

  // Picks the widest access that every address of the side allows.
  template <bool IsLoad>
  KVIT_DEVICE static void MoveWide(const Side& side, const Tile& tile, int begin) {
    const int64_t bits = reinterpret_cast<int64_t>(side.pool.base) | side.pool.page_stride | side.pool.token_stride |
                         side.pool.head_stride | side.chunks.bytes | side.chunks.stride | side.row_bytes | 16;
    switch (LowBit(int(bits & 31))) {
      case 16:
        return Move<IsLoad, Words<16>>(side, tile, begin);
      case 8:
        return Move<IsLoad, Words<8>>(side, tile, begin);
      case 4:
        return Move<IsLoad, uint32_t>(side, tile, begin);
      case 2:
        return Move<IsLoad, uint16_t>(side, tile, begin);
      default:
        return Move<IsLoad, uint8_t>(side, tile, begin);
    }
  }

  template <bool IsLoad, class Vector>
  KVIT_DEVICE static void Move(const Side& side, const Tile& tile, int begin) {
    constexpr int kBytes = sizeof(Vector);
    const int vectors = Min(kPieceBytes, side.row_bytes - begin) / kBytes, chunk = int(side.chunks.bytes);
    const bool along_tokens = chunk < side.row_bytes;
    for (int item = ThreadIndex(); item < vectors * tile.num_tokens; item += kThreads) {
      const int token = along_tokens ? item % tile.num_tokens : item / vectors;
      const int byte = begin + (along_tokens ? item / tile.num_tokens : item % vectors) * kBytes;
      const int64_t row = RowAddress(side.pool, side.page, tile.token + token, tile.head);
      char* place = reinterpret_cast<char*>(row + byte / chunk * side.chunks.stride + byte % chunk);
      char* staged = tile.shared + token * kPitch + byte - begin;
      if constexpr (IsLoad) {
        StoreShared(staged, LoadGlobal<Vector>(place));
      } else {
        StoreGlobal(place, LoadShared<Vector>(staged));
      }
    }
  }
};

}  // namespace kvit

#endif  // KVIT_ENTRY_RELAYOUT_CUH
