// Walks through a CTA's share of its line of work.
#ifndef KVIT_ATTENTION_WORK_CURSOR_CUH
#define KVIT_ATTENTION_WORK_CURSOR_CUH

#include <stdint.h>

#include "attention/work_line.cuh"
#include "core/types.h"
#include "platform/platform.cuh"

namespace kvit {

/// Walks a CTA's share, piece by piece.
///
///   unit = ((head of the line * row_tiles) + row_tile) * units + unit of the head
///
/// within a sequence: row tiles of a head share its keys in L2.
template <class Line>
class WorkCursor {
 public:
  KVIT_DEVICE WorkCursor(const Line& line, int num_heads, const Share& share)
      : line_(line),
        num_heads_(num_heads),
        strand_(BlockIndex() - share.cta * line.strands()),
        position_(share.begin),
        end_(share.end) {
    piece_.sequence = share.sequence;
    piece_.work = share.work;
    const int units = line_.HeadUnits(piece_.work.tiles), row_tiles = piece_.work.row_tiles;
    const int64_t within = share.begin - share.sequence_begin;
    const int head_and_rows = int(Divide(within, units));
    const int head = row_tiles == 1 ? head_and_rows : head_and_rows / row_tiles;
    piece_.head = head * line_.strands() + strand_;
    piece_.row_tile = head_and_rows - head * row_tiles;
    Begin(int(within - int64_t(head_and_rows) * units));
  }

  KVIT_DEVICE bool Done() const { return position_ >= end_; }
  KVIT_DEVICE const Piece& piece() const { return piece_; }

  KVIT_DEVICE void Next() {
    position_ += line_.IsSplit() ? 1 : piece_.last - piece_.first;
    if (Done()) return;
    if (!piece_.Ends()) {  // there is another split of the head
      Begin(int(position_ - piece_.head_begin));
      return;
    }
    if (++piece_.row_tile == piece_.work.row_tiles) {
      piece_.row_tile = 0;
      piece_.head += line_.strands();
      if (piece_.head >= num_heads_) {
        piece_.head = strand_;
        do {
          piece_.work = line_.View(++piece_.sequence);
        } while (piece_.work.row_tiles == 0);
      }
    }
    Begin(0);
  }

 private:
  KVIT_DEVICE void Begin(int unit) {
    const int tiles = piece_.work.tiles;
    piece_.head_begin = position_ - unit;
    if (line_.IsSplit()) {
      const int split = line_.SplitOf(tiles);
      piece_.first = unit * split;
      piece_.last = Min(piece_.first + split, tiles);
    } else {
      const int64_t left = end_ - position_;
      piece_.first = unit;
      piece_.last = left < tiles - unit ? unit + int(left) : tiles;
    }
  }

  const Line& line_;
  int num_heads_, strand_;
  int64_t position_, end_;
  Piece piece_;
};

}  // namespace kvit

#endif  // KVIT_ATTENTION_WORK_CURSOR_CUH
