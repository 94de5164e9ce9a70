// Deals the work of a call out to CTAs. Every unit of every head of every sequence lies on a line, one after the other,
// which is cut evenly over the grid. A unit is a tile (stream-K), or a split: tiles that are computed together whatever
// the batch.
//
// There are params.partitions such lines: partition p has the heads and the CTAs whose numbers leave p when divided by
// that. Neighbouring CTAs then read neighbouring heads of the same tokens, at much the same time.
//
//   2 partitions, 4 heads   0   sequence 0 head 0, head 2, sequence 1 head 0, ...   cut over CTAs 0, 2, 4, ...
//                           1   sequence 0 head 1, head 3, sequence 1 head 1, ...   cut over CTAs 1, 3, 5, ...
#ifndef KVIT_SCHEDULE_TILE_SCHEDULER_CUH
#define KVIT_SCHEDULE_TILE_SCHEDULER_CUH

#include <stdint.h>

#include <type_traits>

#include "abi/params.h"
#include "cache/fast_divide.cuh"
#include "cache/fault.cuh"
#include "cache/sequence_view.cuh"
#include "core/types.h"
#include "platform/platform.cuh"
#include "schedule/cta_range.cuh"
#include "schedule/range_finder.cuh"
#include "schedule/row_tiles.cuh"
#include "schedule/ticket.cuh"
#include "schedule/warp_counts.cuh"
#include "schedule/work_tile.cuh"

namespace kvit {

/// Mask says what query rows see, as attention/mask.cuh has it. A row tile has at most 2^SplitLevels splits. Where a
/// unit is a tile, a row tile has Opening units more in front, which stand for what its queries and its outputs cost;
/// and a CTA has FewestUnits at least where there is less work than CTAs, since parts of few tiles cost more to join.
template <class Mask, int Rows, int TileTokens, int Threads, int SplitLevels, int Opening = 0, int FewestUnits = 1>
class TileScheduler {
 public:
  using OfRowTiles = RowTiles<Rows, TileTokens, typename Mask::Keys>;
  using Tiles = std::conditional_t<Mask::kHasBegin, TileRange, TilesFromFirst>;  // of a row tile
  using Work = WorkTile<Tiles>;
  static constexpr int kWarps = Threads / 32;
  static constexpr int kRows = Rows;
  static constexpr int kTileTokens = TileTokens;
  static constexpr int kSplitLevels = SplitLevels;
  static constexpr int kOpening = Opening;
  static constexpr int kFewestUnits = FewestUnits;
  static constexpr bool kHasBegin = Mask::kHasBegin;  // row tiles may begin behind the first tile of a sequence
  // Prompts have hundreds of row tiles, and these no closed form: lanes share them.
  static constexpr bool kCountsInWarp = kHasBegin && Rows >= 64;
  using Shared = RangeFinderShared<kWarps>;

  KVIT_DEVICE explicit TileScheduler(const KvitDecodeParams& params)
      : params_(params),
        mask_(params),
        by_group_(params.group),
        group_(params.num_query_heads / params.cache.num_kv_heads),
        heads_(params.cache.num_kv_heads / params.partitions) {}

  KVIT_DEVICE int partitions() const { return params_.partitions; }

  /// Query heads of a KV head, and where a query row lies: row r of a sequence is token r / group, head r % group.
  KVIT_DEVICE int group() const { return group_; }
  KVIT_DEVICE int TokenOf(int row) const { return int(by_group_(uint32_t(row))); }

  /// Whether heads are cut where params.split_tiles says, and not where CTAs' ranges end.
  KVIT_DEVICE bool IsSplit() const { return params_.split_tiles != 0; }

  /// Tiles of a split of a sequence: split_tiles, doubled until a head has no more splits than the levels of a tree
  /// have room for. Only where IsSplit().
  KVIT_DEVICE int SplitOf(const SequenceWork& work) const {
    int split = params_.split_tiles;
    while ((work.length - 1) / TileTokens >> kSplitLevels >= split) split *= 2;
    return split;
  }

  /// Tiles of a row tile.
  KVIT_DEVICE Tiles TilesOf(const SequenceWork& work, int row_tile) const {
    if (row_tile + 1 < work.row_tiles) return RowTilesOf(work, 1).Tiles(row_tile);
    return OfRowTiles::TilesOf(mask_.LastUnion(work, TokenOf(row_tile * Rows)));
  }
  /// Units of a row tile of these tiles.
  KVIT_DEVICE int Units(const SequenceWork& work, const Tiles& tiles) const {
    if constexpr (kHasBegin) {
      return IsSplit() ? OfRowTiles::NumSplits(tiles, SplitOf(work)) : tiles.last - tiles.first + kOpening;
    } else {
      return IsSplit() ? (tiles.last - 1) / SplitOf(work) + 1 : tiles.last + kOpening;
    }
  }
  /// Units of a row tile in front of those with tiles.
  KVIT_DEVICE int Openings() const { return kOpening == 0 || IsSplit() ? 0 : kOpening; }
  /// The split in which the first tile of a row tile lies. Only where IsSplit().
  KVIT_DEVICE int FirstSplit(const Work& work) const { return work.tiles.first / SplitOf(work.of); }
  /// Units of all row tiles of a head. Where kCountsInWarp, all lanes of a warp call for the same sequence.
  KVIT_DEVICE int64_t HeadUnits(const SequenceWork& work) const {
    if (work.row_tiles == 1) return Units(work, TilesOf(work, 0));
    if (kSplitLevels == 0 && IsSplit()) return work.row_tiles;  // none is ever cut
    const OfRowTiles row_tiles = RowTilesOf(work, IsSplit() ? SplitOf(work) : 1);
    if constexpr (kCountsInWarp) {
      return TotalInWarp(row_tiles);
    } else {
      return row_tiles.Total();
    }
  }
  /// The row tile of a head that has unit `unit`. Called as HeadUnits.
  KVIT_DEVICE typename OfRowTiles::Place FindRowTile(const SequenceWork& work, int64_t unit) const {
    if (work.row_tiles == 1) return {0, 0};
    if (kSplitLevels == 0 && IsSplit()) return {int(unit), unit};
    const OfRowTiles row_tiles = RowTilesOf(work, IsSplit() ? SplitOf(work) : 1);
    if constexpr (kCountsInWarp) {
      return FindInWarp(row_tiles, unit);
    } else {
      return row_tiles.Find(unit);
    }
  }

  /// What a sequence asks for. Where `report` is set, says what is wrong.
  KVIT_DEVICE SequenceWork View(int sequence, bool report = false) const {
    const SequenceView view = ViewSequence(params_.table, params_.cache.page_size, sequence);
    const TokenRange queries = TokensOf(params_.tokens, sequence);
    const KvitFault fault = queries.fault.kind != KVIT_FAULT_NONE ? queries.fault : view.fault;
    const bool is_bad = fault.kind != KVIT_FAULT_NONE;
    if (report && is_bad) ReportFault(params_.fault, fault);
    const int new_tokens = queries.end - queries.begin;
    return {view.length, new_tokens, queries.begin, int((int64_t(new_tokens) * group_ + Rows - 1) / Rows),
            view.begin,  is_bad};
  }

  /// Finds the range of the CTA with this ticket, which it shares. All threads call.
  KVIT_DEVICE CtaRange Find(Shared& shared, const Ticket& ticket) const {
    return RangeFinder<TileScheduler>(*this, params_.table.num_sequences).Find(shared, ticket);
  }
  /// Units of a sequence on a line of work. Called as HeadUnits.
  KVIT_DEVICE int64_t UnitsOf(const SequenceWork& work) const {
    return work.row_tiles == 0 ? 0 : heads_ * HeadUnits(work);
  }

  /// Query rows of a row tile, one after the other in memory.
  struct QueryWalk {
    const char* address;
    int head, group;  // head: of the group's
    int64_t to_next_head, to_next_token;

    KVIT_DEVICE void Advance(int rows) {
      head += rows;
      address += rows * to_next_head;
      if (head < group) return;
      head -= group;
      address += to_next_token - group * to_next_head;
      KVIT_ROLLED
      for (; head >= group; head -= group) address += to_next_token - group * to_next_head;
    }
  };
  KVIT_DEVICE QueryWalk QueriesFrom(const Work& work, int row) const {
    const int index = work.row_tile * Rows + row;
    return {QueryAddress(work, row), index - TokenOf(index) * group_, group_, params_.q.head_stride,
            params_.q.token_stride};
  }

  /// Where query row `row` of a row tile lies in memory. It must be one of NumRows(work).
  KVIT_DEVICE const char* QueryAddress(const Work& work, int row) const {
    const int index = work.row_tile * Rows + row, token_of_sequence = TokenOf(index);
    const int64_t token = work.of.first_token + token_of_sequence;
    const int64_t head = int64_t(work.head) * group_ + (index - token_of_sequence * group_);
    return static_cast<const char*>(params_.q.base) + token * params_.q.token_stride + head * params_.q.head_stride;
  }

  /// Keys that query row `row` of a row tile sees.
  KVIT_DEVICE KeyRange Visible(const Work& work, int row) const {
    return mask_.Visible(work.of, TokenOf(work.row_tile * Rows + row));
  }

  /// The end of what the last row of a row tile sees: no row sees more. Where ranges have no begin.
  KVIT_DEVICE int MostEnd(const Work& work) const {
    if (work.row_tile + 1 < work.of.row_tiles) return Visible(work, Rows - 1).end;
    return mask_.LastUnion(work.of, 0).end;
  }

  /// The query token that a row of a row tile is of; behind the last where the row does not exist.
  KVIT_DEVICE int TokenOfRow(const Work& work, int row) const { return TokenOf(work.row_tile * Rows + row); }
  /// The first and the last query token of a row tile.
  KVIT_DEVICE int FirstToken(const Work& work) const { return TokenOf(work.row_tile * Rows); }
  KVIT_DEVICE int LastToken(const Work& work) const {
    return Min(TokenOf(work.row_tile * Rows + Rows - 1), work.of.new_tokens - 1);
  }

  /// A key before which no row of a row tile sees any. Where row tiles have a begin.
  KVIT_DEVICE int FirstKey(const Work& work) const {
    return mask_.Of(work.of).Union(FirstToken(work), LastToken(work)).begin;
  }

  /// A range of keys that all rows of a row tile see.
  KVIT_DEVICE auto Common(const Work& work) const {
    if constexpr (kHasBegin) {
      return mask_.Of(work.of).Common(FirstToken(work), LastToken(work));
    } else {
      return KeysFromFirst{Visible(work, 0).end};  // nobody sees less than the first
    }
  }

  /// The tiles of a work tile that any of its rows sees.
  KVIT_DEVICE TileRange VisibleTiles(const Work& work) const {
    if constexpr (kHasBegin) {
      const KeyRange seen = mask_.Of(work.of).Union(FirstToken(work), LastToken(work));
      return {Max(work.first, work.tiles.first), seen.end <= seen.begin ? 0 : work.last};
    } else {
      return {work.first, MostEnd(work) <= 0 ? 0 : work.last};
    }
  }

  /// Tiles of which all rows of a row tile see all.
  KVIT_DEVICE Tiles WholeTiles(const Work& work) const {
    const auto keys = Common(work);
    if constexpr (kHasBegin) {
      return {CeilDiv(keys.begin, TileTokens), keys.end / TileTokens};
    } else {
      return {keys.end / TileTokens};
    }
  }

  KVIT_DEVICE const Mask& mask() const { return mask_; }

  /// Query rows of a row tile: the last of a sequence may have fewer.
  KVIT_DEVICE int NumRows(const Work& work) const {
    return Min(Rows, work.of.new_tokens * group_ - work.row_tile * Rows);
  }

 private:
  KVIT_DEVICE OfRowTiles RowTilesOf(const SequenceWork& work, int split) const {
    return {mask_.Of(work), work.new_tokens, group_, by_group_, split, Openings()};
  }

  const KvitDecodeParams& params_;
  Mask mask_;
  FastDivide by_group_;
  int group_, heads_;  // heads_: KV heads of a partition
};

}  // namespace kvit

#endif  // KVIT_SCHEDULE_TILE_SCHEDULER_CUH
