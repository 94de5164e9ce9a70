// What a kernel's axis `variant` stands for: a mask, what happens to scores, and how rows of warps see a tile.
#ifndef KVIT_ATTENTION_VARIANT_CUH
#define KVIT_ATTENTION_VARIANT_CUH

#include "attention/causal_rows.cuh"
#include "attention/general_mask.cuh"
#include "attention/general_rows.cuh"
#include "attention/general_score.cuh"
#include "attention/mask.cuh"
#include "attention/score.cuh"

namespace kvit {

/// Causal or full, and scaled.
struct PlainVariant {
  using Mask = CausalMask;
  using Score = PlainScore;
  static constexpr bool kTakesFewer = false;
  template <class Scheduler, int WarpRows, int Tokens>
  using Rows = CausalRows<Scheduler, WarpRows, Tokens>;
};

/// Everything of KvitGeneral, and rows of fewer channels than a kernel has room for.
struct GeneralVariant {
  using Mask = GeneralMask;
  using Score = GeneralScore;
  static constexpr bool kTakesFewer = true;
  template <class Scheduler, int WarpRows, int Tokens>
  using Rows = GeneralRows<Scheduler, WarpRows, Tokens>;
};

}  // namespace kvit

#endif  // KVIT_ATTENTION_VARIANT_CUH
