// Widens codes of 8 and 4 bits to f16 where they lie, for a matrix unit that reads 16 bits from shared memory.
#ifndef KVIT_PIPELINE_TILE_WIDENER_CUH
#define KVIT_PIPELINE_TILE_WIDENER_CUH

#include <stdint.h>

#include "abi/params.h"
#include "iterator/sm90.cuh"
#include "layout/tensor_layout.cuh"
#include "pipeline/stage_barriers.cuh"
#include "platform/platform.cuh"
#include "quant/widening.cuh"

namespace kvit {

/// Where the codes of a tile lie until they are widened: granule by granule of 32 tokens, at the end of the place that
/// the last 128 bytes of these tokens take when they have 16 bits. A row that is widened is written over its own codes
/// and over those of rows before it.
///
///   a granule of 64 channels of 8 bits     before   | -            | codes of row 0, 1, 2 ... 31 |
///                                          after    | f16 of row 0, 1 ... 15 | 16, 17 ...     31 |
template <class T, class Codec, int Dim, int Tokens>
struct CodesInPlace {
  static constexpr int kGranule = 32, kGranules = Tokens / kGranule;
  using Iterator = Sm90GmemIterator<typename Codec::template Element<T>, Dim, kGranule>;
  using Layout = typename Iterator::Layout;
  using WideLayout = TensorLayout<Half, Dim, Tokens>;
  static constexpr int kBytes = kGranules * Layout::kBytes;
  static constexpr int kOffset =
      (WideLayout::kChunks - 1) * WideLayout::kChunkBytes + kGranule * WideLayout::kSpan - Layout::kBytes;
  static_assert(kOffset % Layout::kAlignment == 0 && Layout::kSpan == Layout::kRowBytes, "swizzles stay within rows");

  static KVIT_DEVICE char* Granule(char* tile, int granule) {
    return tile + kOffset + granule * (kGranule * WideLayout::kSpan);
  }
  /// As Sm90GmemIterator.
  template <bool IsReadOnce>
  static KVIT_DEVICE void Prefetch(const KvitTensorMap& map, const Box& box, char* tile, int s, uint64_t* barrier) {
    Iterator::template Prefetch<IsReadOnce>(map, box, Granule(tile, s / kGranule), s % kGranule, barrier);
  }
};

/// One of Warps warps that widen all tiles of a ring, each the same granules of every tile.
template <class Codec, int Dim, class Ring, class Codes, int Stages, int Warps>
class TileWidener {
 public:
  /// codes: whose `full` barriers say that a tile's codes are there; wide: whose `full` barriers count these warps.
  KVIT_DEVICE TileWidener(Ring& ring, StageBarriers<Stages>& codes, StageBarriers<Stages>& wide, int warp)
      : ring_(ring), codes_(codes), wide_(wide), warp_(warp) {}

  /// Widens the tiles of all work of a plan.
  template <class Plan>
  KVIT_DEVICE void Run(Plan& plan) {
    uint32_t tiles = 0;  // so far
    for (uint32_t count = 0;; ++count) {
      const auto& now = plan.Read(count);
      if (!now.exists) return;
      const int last = now.visible.last;
      for (int tile = now.visible.first; tile < last; ++tile, ++tiles) {
        const auto stage = int(tiles % Stages);
        codes_.WaitFull(stage, tiles / Stages);
        for (int granule = warp_; granule < Codes::kGranules; granule += Warps) Widen(ring_.Tile(stage, 0), granule);
        FenceAsyncCopies();  // the matrix unit reads them as such a copy would
        SyncWarp();
        if (LaneIndex() == 0) Arrive(&wide_.full[stage]);
      }
      plan.Release(count);
    }
  }

 private:
  using Wide = Widening<Codec>;
  using Layout = typename Codes::Layout;
  using WideLayout = typename Codes::WideLayout;

  // Eight channels of a row a lane and turn, row after row; codes of some turns are read before any of them is written.
  static KVIT_DEVICE void Widen(char* tile, int granule) {
    constexpr int kVectors = Dim / 8, kRows = 32 / kVectors;    // of a row; of a turn
    constexpr int kPattern = Max(8 / kRows, 1), kTogether = 4;  // turns after which swizzles are the same again
    const int first = LaneIndex() / kVectors, vector = LaneIndex() % kVectors;
    const char* const from = Codes::Granule(tile, granule);
    char* const to = tile + granule * (Codes::kGranule * WideLayout::kSpan);
    int from_offset[kPattern], to_offset[kPattern];
    KVIT_UNROLL
    for (int i = 0; i < kPattern; ++i) {
      from_offset[i] = Layout::Offset(i * kRows + first, vector * int(sizeof(typename Wide::Bytes)));
      to_offset[i] = WideLayout::Offset(i * kRows + first, vector * 16);
    }
    KVIT_UNROLL
    for (int turn = 0; turn < Codes::kGranule / kRows; turn += kTogether) {
      typename Wide::Bytes codes[kTogether];
      const auto row = [&](int i) { return (turn + i) / kPattern * kPattern * kRows; };
      KVIT_UNROLL
      for (int i = 0; i < kTogether; ++i) {
        codes[i] = LoadShared<typename Wide::Bytes>(from + from_offset[(turn + i) % kPattern] + row(i) * Layout::kSpan);
      }
      SyncWarp();
      KVIT_UNROLL
      for (int i = 0; i < kTogether; ++i) {
        StoreShared(to + to_offset[(turn + i) % kPattern] + row(i) * WideLayout::kSpan, Wide::Of(codes[i]));
      }
    }
  }

  Ring& ring_;
  StageBarriers<Stages>&codes_, &wide_;
  int warp_;
};

}  // namespace kvit

#endif  // KVIT_PIPELINE_TILE_WIDENER_CUH
