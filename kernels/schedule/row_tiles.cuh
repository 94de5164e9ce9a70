// How many units of work each row tile of a sequence has: what its rows see decides, so a causal one has fewer than the
// next.
#ifndef KVIT_SCHEDULE_ROW_TILES_CUH
#define KVIT_SCHEDULE_ROW_TILES_CUH

#include <stdint.h>

#include <type_traits>

#include "cache/fast_divide.cuh"
#include "core/macros.h"
#include "core/types.h"
#include "schedule/even_sums.cuh"
#include "schedule/work_tile.cuh"

namespace kvit {

/// How many keys query token i (0 <= i < new_tokens) of a sequence sees from its first on: first + i * step, where that
/// is less than 0 none. step is 1, or 0 where all queries see as many.
struct KeyEnds {
  int first, step;

  KVIT_HD int Of(int token) const { return first + token * step; }
  /// The least range of all keys that any of the tokens [from, to] sees.
  KVIT_HD KeysFromFirst Union(int, int to) const { return {Of(to)}; }
};

/// The row tiles of one head of a sequence: Rows query rows each, row r of token r / group. A row tile has the tiles of
/// TileTokens keys from the first that any of its rows sees to the last, and at least one, so that somebody writes its
/// zeros; and a unit for each `split` tiles, which are counted from the sequence's first, behind `opening` units that
/// have none. Keys has a Union like KeyEnds.
///
///   Rows = 8, group = 4, TileTokens = 4, split = 1, 6 new tokens behind 3 old ones
///
///     row tile   tokens   keys seen   units   units before
///        0        0, 1      4, 5        2          0
///        1        2, 3      6, 7        2          2
///        2        4, 5      8, 9        3          4
template <int Rows, int TileTokens, class Keys = KeyEnds>
class RowTiles {
 public:
  /// by_group: division by group
  KVIT_DEVICE RowTiles(const Keys& keys, int new_tokens, int group, FastDivide by_group, int split, int opening = 0)
      : keys_(keys), new_tokens_(new_tokens), group_(group), by_group_(by_group), split_(split), opening_(opening) {}

  KVIT_DEVICE int Count() const { return int((int64_t(new_tokens_) * group_ + Rows - 1) / Rows); }

  /// All keys that any of its rows sees.
  KVIT_DEVICE auto Seen(int row_tile) const {
    const int to = int(by_group_(uint32_t(row_tile * Rows + Rows - 1)));
    return keys_.Union(int(by_group_(uint32_t(row_tile * Rows))), to < new_tokens_ ? to : new_tokens_ - 1);
  }
  KVIT_DEVICE auto Tiles(int row_tile) const { return TilesOf(Seen(row_tile)); }
  KVIT_DEVICE int Units(int row_tile) const {
    return opening_ + (split_ == 1 ? NumTiles(Tiles(row_tile)) : NumSplits(Tiles(row_tile), split_));
  }

  static KVIT_DEVICE TileRange TilesOf(const KeyRange& keys) {
    if (keys.end <= keys.begin) return {0, 1};
    return {keys.begin / TileTokens, (keys.end - 1) / TileTokens + 1};
  }
  static KVIT_DEVICE TilesFromFirst TilesOf(const KeysFromFirst& keys) {
    return {keys.end <= 0 ? 1 : (keys.end - 1) / TileTokens + 1};
  }
  template <class Range>
  static KVIT_DEVICE int NumTiles(const Range& tiles) {
    return tiles.last - tiles.first;
  }
  /// Splits of so many tiles, counted from the sequence's first, in which there are tiles.
  static KVIT_DEVICE int NumSplits(const TileRange& tiles, int split) {
    return (tiles.last - 1) / split + 1 - tiles.first / split;
  }
  static KVIT_DEVICE int NumSplits(const TilesFromFirst& tiles, int split) { return (tiles.last - 1) / split + 1; }

  /// Units of the row tiles before this one.
  KVIT_DEVICE int64_t Before(int row_tile) const {
    if constexpr (kHasMany) {
      if (IsEven()) return BeforeEven(row_tile);
    }
    // One by one: calls with many of them have other things to do, and 64-bit divisions take registers from all of the
    // kernel.
    int64_t units = 0;
    KVIT_ROLLED
    for (int i = 0; i < row_tile; ++i) units += Units(i);
    return units;
  }
  KVIT_DEVICE int64_t Total() const { return Before(Count()); }

  /// The row tile that has unit `unit` of the head, one of Total(), and the units before it.
  struct Place {
    int row_tile;
    int64_t before;
  };
  KVIT_DEVICE Place Find(int64_t unit) const {
    Place place = {0, 0};
    if constexpr (kHasMany) {
      if (IsEven()) {
        const float guess = keys_.step == 0 ? float(unit) / float(Units(0)) : Sums().Guess(unit, opening_);
        place.row_tile = Min(int(guess), Count() - 1);
        place.before = BeforeEven(place.row_tile);
        KVIT_ROLLED
        while (place.before > unit) place.before -= Units(--place.row_tile);
      }
    }
    KVIT_ROLLED
    for (int units; unit - place.before >= (units = Units(place.row_tile)); ++place.row_tile) place.before += units;
    return place;
  }

 private:
  // Kernels for prompts, where a head has hundreds of row tiles.
  static constexpr bool kHasMany = Rows >= 64 && Rows % TileTokens == 0 && std::is_same_v<Keys, KeyEnds>;
  static constexpr int kRatio = Max(Rows / TileTokens, 1);

  // Of all row tiles but the last, which may end early.
  KVIT_DEVICE EvenSums<kRatio> Sums() const {
    return {uint32_t((int64_t(keys_.first - 1) * group_ + Rows - 1) / TileTokens), group_, by_group_};
  }
  KVIT_DEVICE bool IsEven() const {
    return split_ == 1 && keys_.first > 0 && (keys_.step == 0 || EvenSums<kRatio>::AreClosed(group_));
  }
  KVIT_DEVICE int64_t BeforeEven(int row_tile) const {
    const int even = Max(Min(row_tile, Count() - 1), 0);
    const int64_t before = keys_.step == 0 ? int64_t(even) * (Units(0) - opening_) : Sums().Before(even);
    return before + int64_t(opening_) * even + (row_tile > even ? Units(even) : 0);
  }

  Keys keys_;
  int new_tokens_, group_;
  FastDivide by_group_;
  int split_, opening_;
};

}  // namespace kvit

#endif  // KVIT_SCHEDULE_ROW_TILES_CUH
