// Units of many row tiles at once, where each sees as many keys more than the one before.
#ifndef KVIT_SCHEDULE_EVEN_SUMS_CUH
#define KVIT_SCHEDULE_EVEN_SUMS_CUH

#include <math.h>
#include <stdint.h>

#include "cache/fast_divide.cuh"
#include "core/macros.h"

namespace kvit {

/// Row tile i of Rows = Ratio * TileTokens query rows ends with row i * Rows + Rows - 1, whose token, one of `group`
/// rows, sees as many keys more than the first token as it is behind it. Rounded down twice is rounded down once, so
/// its units are, in closed form,
///
///   1 + (first + i * Ratio) / group,   first = (keys * group + Rows - 1) / TileTokens
///
/// where the first token sees `keys` keys besides one. Sums of that are sums of x / period, with period group / Ratio.
///
///   group = 3, Ratio = 1, first = 4     i        0   1   2   3   4
///                                       units    2   2   3   3   3
///                                       before   0   2   4   7  10
template <int Ratio>
class EvenSums {
 public:
  /// first >= 0; by_group: division by group. Sums stay below 2^31 tiles.
  KVIT_HD EvenSums(uint32_t first, int group, FastDivide by_group)
      : first_(first), period_(uint32_t(group) / Ratio), by_group_(by_group) {}

  /// Only then: halves of odd groups are no periods.
  static KVIT_HD bool AreClosed(int group) { return group == 1 || group % Ratio == 0; }
  /// Units of the row tiles before the i-th.
  KVIT_HD int64_t Before(int i) const {
    const auto n = uint32_t(i);
    if (period_ == 0) return n * int64_t(first_ + 1) + Pairs(n) * Ratio;  // a group of one
    const uint32_t begin = first_ / Ratio;
    return n + Floors(begin + n) - Floors(begin);
  }
  /// About how many row tiles there are before `units` of them, where each has `more` units besides: the root of the
  /// parabola that Before is nearly.
  KVIT_HD float Guess(int64_t units, int more) const {
    const float period = period_ == 0 ? 1.0f / Ratio : float(period_);
    const float slope = float(first_) / Ratio + (float(more) + 0.5f) * period;
    return sqrtf(slope * slope + 2.0f * period * float(units)) - slope;
  }

 private:
  static KVIT_HD int64_t Pairs(uint32_t n) { return int64_t(n) * (int64_t(n) - 1) / 2; }
  // The sum of x / period over all x < n.
  KVIT_HD int64_t Floors(uint32_t n) const {
    const uint32_t quotient = by_group_(n * Ratio), rest = n - quotient * period_;
    return Pairs(quotient) * period_ + int64_t(quotient) * rest;
  }

  uint32_t first_, period_;
  FastDivide by_group_;
};

}  // namespace kvit

#endif  // KVIT_SCHEDULE_EVEN_SUMS_CUH
