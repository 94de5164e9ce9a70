// How many units of work each row tile of a sequence has: what its rows see decides, so a causal one has fewer than the
// next.
#ifndef KVIT_SCHEDULE_ROW_TILES_CUH
#define KVIT_SCHEDULE_ROW_TILES_CUH

#include <stdint.h>

#include "cache/fast_divide.cuh"
#include "core/macros.h"

namespace kvit {

/// Keys [begin, end) of a sequence; none where end <= begin.
struct KeyRange {
  int begin, end;
};

/// How many keys query token i (0 <= i < new_tokens) of a sequence sees from its first on: first + i * step, where that
/// is less than 0 none. step is 1, or 0 where all queries see as many.
struct KeyEnds {
  int first, step;

  KVIT_HD int Of(int token) const { return first + token * step; }
};

/// The row tiles of one head of a sequence: Rows query rows each, row r of token r / group. A row tile has a tile for
/// each TileTokens keys that any of its rows sees, and at least one, so that somebody writes its zeros; and a unit for
/// each `split` tiles.
///
///   Rows = 8, group = 4, TileTokens = 4, split = 1, 6 new tokens behind 3 old ones
///
///     row tile   tokens   keys seen   units   units before
///        0        0, 1      4, 5        2          0
///        1        2, 3      6, 7        2          2
///        2        4, 5      8, 9        3          4
template <int Rows, int TileTokens>
class RowTiles {
 public:
  /// by_group: division by group
  KVIT_HD RowTiles(const KeyEnds& ends, int new_tokens, int group, FastDivide by_group, int split)
      : ends_(ends), new_tokens_(new_tokens), group_(group), by_group_(by_group), split_(split) {}

  KVIT_HD int Count() const { return int((int64_t(new_tokens_) * group_ + Rows - 1) / Rows); }

  KVIT_HD int Tiles(int row_tile) const {
    const int token = int(by_group_(uint32_t(row_tile * Rows + Rows - 1)));
    const int keys = ends_.Of(token < new_tokens_ ? token : new_tokens_ - 1);  // of its last row, and no row sees more
    return keys <= 0 ? 1 : (keys - 1) / TileTokens + 1;
  }
  KVIT_HD int Units(int row_tile) const { return split_ == 1 ? Tiles(row_tile) : (Tiles(row_tile) - 1) / split_ + 1; }

  /// Units of the row tiles before this one. Row tiles are looked at one by one: calls with many of them have other
  /// things to do, and 64-bit divisions take registers from all of the kernel.
  KVIT_HD int64_t Before(int row_tile) const {
    int64_t units = 0;
    KVIT_ROLLED
    for (int i = 0; i < row_tile; ++i) units += Units(i);
    return units;
  }
  KVIT_HD int64_t Total() const { return Before(Count()); }

  /// The row tile that has unit `unit` of the head, one of Total(), and the units before it.
  struct Place {
    int row_tile;
    int64_t before;
  };
  KVIT_HD Place Find(int64_t unit) const {
    Place place = {0, 0};
    KVIT_ROLLED
    for (int units; unit - place.before >= (units = Units(place.row_tile)); ++place.row_tile) place.before += units;
    return place;
  }

 private:
  KeyEnds ends_;
  int new_tokens_, group_;
  FastDivide by_group_;
  int split_;
};

}  // namespace kvit

#endif  // KVIT_SCHEDULE_ROW_TILES_CUH
