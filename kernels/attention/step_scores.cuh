// What happens to the scores of a warp's step before they become weights: modifiers, and what is hidden.
#ifndef KVIT_ATTENTION_STEP_SCORES_CUH
#define KVIT_ATTENTION_STEP_SCORES_CUH

#include "attention/score.cuh"
#include "core/macros.h"
#include "mma/m16n8k16.cuh"
#include "platform/platform.cuh"

namespace kvit {

// Scores are [block of 16 tokens][n-tile of rows][4], not yet times their row's scale, as KeyProduct gives them.

template <class Score, class Keys, class View, int Blocks, int RowTiles>
KVIT_DEVICE void ModifyScores(float (&score)[Blocks][RowTiles][4], const Score& modifier, const Keys& keys,
                              const View& step) {
  if constexpr (!Score::kIsIdentity) {
    if (!modifier.Changes()) return;
    KVIT_UNROLL
    for (int n = 0; n < RowTiles; ++n) {
      KVIT_UNROLL
      for (int j = 0; j < 2; ++j) {
        const auto row = step.RowOf(modifier, FragmentRow(n, j));
        KVIT_UNROLL
        for (int b = 0; b < Blocks; ++b) {
          KVIT_UNROLL
          for (int t = 0; t < 2; ++t) {
            float& s = score[b][n][j + 2 * t];
            s = modifier.Modify(s, keys.Scale(n, j), row, step.PositionOf(b * 16 + FragmentToken(2 * t)));
          }
        }
      }
    }
  }
}

/// Of a masked step. Selects, so that whatever stands in a hidden score is gone.
template <class Score, class Keys, class View, int Blocks, int RowTiles>
KVIT_DEVICE void HideScores(float (&score)[Blocks][RowTiles][4], const Score& modifier, const Keys& keys,
                            const View& step) {
  KVIT_UNROLL
  for (int n = 0; n < RowTiles; ++n) {
    KVIT_UNROLL
    for (int j = 0; j < 2; ++j) {
      const int row = FragmentRow(n, j);
      if constexpr (View::kHidesInMemory) {
        const int end = step.Has(row) ? step.End(row) : 0;
        const float hidden = Hidden(ScaleOf(modifier, keys, n, j));
        KVIT_UNROLL
        for (int b = 0; b < Blocks; ++b) {
          if (b * 16 + FragmentToken(0) >= end) score[b][n][j] = hidden;
          if (b * 16 + FragmentToken(2) >= end) score[b][n][j + 2] = hidden;
        }
      } else {
        const bool has = step.Has(row);
        const float hidden = Hidden(ScaleOf(modifier, keys, n, j));
        KVIT_UNROLL
        for (int b = 0; b < Blocks; ++b) {
          if (!has || !step.Sees(b * 16 + FragmentToken(0))) score[b][n][j] = hidden;
          if (!has || !step.Sees(b * 16 + FragmentToken(2))) score[b][n][j + 2] = hidden;
        }
      }
    }
  }
}

}  // namespace kvit

#endif  // KVIT_ATTENTION_STEP_SCORES_CUH
