// Which part of a line of work is a CTA's, and whose any other part is.
#ifndef KVIT_SCHEDULE_CTA_RANGE_CUH
#define KVIT_SCHEDULE_CTA_RANGE_CUH

#include <stdint.h>

#include "core/types.h"
#include "schedule/work_tile.cuh"

namespace kvit {

/// a / b for a >= 0 and b >= 1, by a short division wherever they allow it: nearly always.
KVIT_HD int64_t Divide(int64_t a, int64_t b) { return (a | b) >> 32 == 0 ? int64_t(uint32_t(a) / uint32_t(b)) : a / b; }

/// A CTA's units of its partition's line, whose CTAs are counted from 0: the first total % ctas have a unit more than
/// the others.
struct CtaRange {
  int ticket;          // this CTA's number in the grid
  int partitions;      // of the launch
  int cta;             // this CTA's number in its partition
  int ctas;            // of the partition that have a range: never more than there is work for
  int64_t total;       // units on the line
  int64_t begin, end;  // [begin, end) are this CTA's
  int64_t least;       // units of every CTA
  int longer;          // CTAs with one more
  int sequence;        // in which `begin` lies
  int64_t sequence_begin;
  SequenceWork work;  // of that sequence

  /// The range of CTA `ticket` of `grid`, before its sequence is known. A range has `fewest` units at least, or all.
  static KVIT_HD CtaRange Cut(int64_t total, int ticket, int grid, int partitions, int fewest = 1) {
    CtaRange range = {};
    const int ctas = grid / partitions;
    range.ticket = ticket;
    range.partitions = partitions;
    range.cta = ticket / partitions;
    range.total = total;
    const int64_t most = fewest == 1 || total == 0 ? total : total < fewest ? 1 : total / fewest;
    range.ctas = int64_t(ctas) < most ? ctas : int(most);
    if (range.ctas == 0) return range;
    range.least = Divide(total, range.ctas);
    range.longer = int(total - range.least * range.ctas);
    range.begin = range.BeginOf(range.cta);
    range.end = range.BeginOf(range.cta + 1);
    return range;
  }

  KVIT_HD bool IsEmpty() const { return cta >= ctas; }
  KVIT_HD int Partition() const { return ticket - cta * partitions; }

  /// The ticket of another CTA of the partition.
  KVIT_HD int TicketOf(int other) const { return ticket + (other - cta) * partitions; }
  KVIT_HD int64_t BeginOf(int other) const { return least * other + Min(other, longer); }
  /// The CTA whose range holds `unit`.
  KVIT_HD int Owner(int64_t unit) const {
    const int64_t in_longer = (least + 1) * longer;
    return unit < in_longer ? int(Divide(unit, least + 1)) : longer + int(Divide(unit - in_longer, least));
  }
};

}  // namespace kvit

#endif  // KVIT_SCHEDULE_CTA_RANGE_CUH
