// What happens to a score between the product and the exponent.
#ifndef KVIT_ATTENTION_SCORE_CUH
#define KVIT_ATTENTION_SCORE_CUH

#include "core/macros.h"

namespace kvit {

/// The scale alone, which the exponent's own multiplication carries: nothing is left to do. What a score modifier has:
///
///   kIsIdentity     no score is ever changed; all that follows but kHasSinks is not even called
///   kHasSinks       WithSink(head, part) is a finished row, a Partial, with its query head's sink
///   Factor(position)         what the scores of a query at this position are multiplied by, besides the scale
///   Changes()                whether Modify has anything to do; the same in all threads
///   RowOf(head, position)    what Modify must know of a query row
///   Modify(score, scale, row, key_position)   a score in the units of the product, `scale` of which make one in log2
///                            units; returns it changed, in log2 units
class PlainScore {
 public:
  static constexpr bool kIsIdentity = true;
  static constexpr bool kHasSinks = false;

  template <class Params>
  KVIT_HD explicit PlainScore(const Params&) {}
};

}  // namespace kvit

#endif  // KVIT_ATTENTION_SCORE_CUH
