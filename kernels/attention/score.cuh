// What happens to a score between the product and the exponent.
#ifndef KVIT_ATTENTION_SCORE_CUH
#define KVIT_ATTENTION_SCORE_CUH

#include <math.h>

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

/// The factor of every row where rows have none of their own.
struct NoFactor {
  KVIT_DEVICE float operator()(int) const { return 1.0f; }
};

/// Whether a modifier changes scores.
template <class Score>
KVIT_DEVICE bool Changes(const Score& modifier) {
  if constexpr (Score::kIsIdentity) {
    return false;
  } else {
    return modifier.Changes();
  }
}

/// What makes log2 units of a row's scores, which come out of the product with keys.Scale(i, j): those that a modifier
/// has changed are in them already.
template <class Score, class Keys>
KVIT_DEVICE float ScaleOf(const Score& modifier, const Keys& keys, int i, int j) {
  return Changes(modifier) ? 1.0f : keys.Scale(i, j);
}

/// The same as an object, for those who ask it alone. Changes is bool, or where that is known, a Known.
template <class Keys, class Changes>
struct ScalesOf {
  const Keys& keys;
  Changes changes;
  KVIT_DEVICE float Scale(int i, int j) const { return changes ? 1.0f : keys.Scale(i, j); }
};

/// A score that is less than any other once its row's scale has met it.
KVIT_DEVICE float Hidden(float scale) { return scale < 0.0f ? INFINITY : -INFINITY; }

}  // namespace kvit

#endif  // KVIT_ATTENTION_SCORE_CUH
