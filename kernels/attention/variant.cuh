// What a kernel's axis `variant` stands for: a mask, and what happens to scores.
#ifndef KVIT_ATTENTION_VARIANT_CUH
#define KVIT_ATTENTION_VARIANT_CUH

#include "attention/general_mask.cuh"
#include "attention/general_score.cuh"
#include "attention/mask.cuh"
#include "attention/score.cuh"

namespace kvit {

/// Causal or full, and scaled.
struct PlainVariant {
  using Mask = CausalMask;
  using Score = PlainScore;
  static constexpr bool kTakesFewer = false;
};

/// Everything of KvitGeneral, and rows of fewer channels than a kernel has room for.
struct GeneralVariant {
  using Mask = GeneralMask;
  using Score = GeneralScore;
  static constexpr bool kTakesFewer = true;
};

}  // namespace kvit

#endif  // KVIT_ATTENTION_VARIANT_CUH
