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
};

/// Everything of KvitGeneral.
struct GeneralVariant {
  using Mask = GeneralMask;
  using Score = GeneralScore;
};

}  // namespace kvit

#endif  // KVIT_ATTENTION_VARIANT_CUH
