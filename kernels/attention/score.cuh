// What happens to a score between the product and the exponent.
#ifndef KVIT_ATTENTION_SCORE_CUH
#define KVIT_ATTENTION_SCORE_CUH

#include "abi/params.h"
#include "attention/mask.cuh"
#include "core/types.h"

namespace kvit {

/// The scale alone, which the exponent's own multiplication carries: nothing is left to do. What a score modifier has:
///
///   kIsIdentity                  Modify is not even called
///   Modify(score, scale, key)    a score in the units of the product, `scale` of which make one in log2 units, of key
///                                `key` of the sequence; returns it in the same units
class PlainScore {
 public:
  static constexpr bool kIsIdentity = true;
  KVIT_HD explicit PlainScore(const KvitDecodeParams&) {}
  KVIT_HD float Modify(float score, float, int) const { return score; }
};

/// What a kernel's axis `variant` stands for.
struct PlainVariant {
  using Mask = CausalMask;
  using Score = PlainScore;
};

}  // namespace kvit

#endif  // KVIT_ATTENTION_SCORE_CUH
