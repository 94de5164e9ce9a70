// What is dealt out to CTAs: what a sequence asks for, and the run of its tiles that a CTA computes in one go.
#ifndef KVIT_SCHEDULE_WORK_TILE_CUH
#define KVIT_SCHEDULE_WORK_TILE_CUH

#include <stdint.h>

#include "core/macros.h"

namespace kvit {

/// Keys [begin, end) of a sequence; none where end <= begin.
struct KeyRange {
  int begin, end;
};
/// Tiles [first, last) of a sequence's keys.
struct TileRange {
  int first, last;
};
/// The same from the sequence's first on, for code that shall not ask where they begin.
struct KeysFromFirst {
  static constexpr int begin = 0;
  int end;
};
struct TilesFromFirst {
  static constexpr int first = 0;
  int last;
};

/// What a sequence asks for: `row_tiles` groups of query rows for each KV head, each over tiles of keys of its own.
struct SequenceWork {
  int length;       // keys
  int new_tokens;   // queries: the last `new_tokens` tokens of the sequence
  int first_token;  // of its queries, among all queries of the call
  int row_tiles;    // 0: it has no queries
  int64_t pages;    // where its page ids begin in the table
  bool is_bad;      // the table describes it wrongly: its outputs are NaN

  KVIT_HD int OldTokens() const { return length - new_tokens; }
};

/// A run of tiles [first, last) of one row tile of one head, computed by one CTA in one go. The first split of a row
/// tile may begin before its tiles do. Tiles is a TileRange or TilesFromFirst.
template <class Tiles>
struct WorkTile {
  int sequence, head, row_tile;
  int first, last;
  Tiles tiles;         // of the row tile
  int64_t line_begin;  // where unit 0 of the row tile stands on the line of work
  SequenceWork of;

  KVIT_HD bool Begins() const { return first == tiles.first; }
  KVIT_HD bool Ends() const { return last == tiles.last; }
};

}  // namespace kvit

#endif  // KVIT_SCHEDULE_WORK_TILE_CUH
