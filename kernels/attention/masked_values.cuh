// O += P V of a step that hides something, whatever stands in what it hides.
#ifndef KVIT_ATTENTION_MASKED_VALUES_CUH
#define KVIT_ATTENTION_MASKED_VALUES_CUH

#include "attention/seen_tokens.cuh"
#include "core/types.h"
#include "platform/platform.cuh"

namespace kvit {

/// A weight of zero is not enough where a value may be infinite. Where one that some row sees is, each row is computed
/// with what it sees alone, and the others keep what they have; rows of one token see the same, and are one pass.
///
/// Of a warp that has RowTiles * 16 query rows to itself. Values is RowValues, or what has its Add, HasSpecial and
/// Stash; weights are A fragments of P; a step is as RowAttention::Step has it.
template <class Values, int RowTiles, int Blocks>
class MaskedValues {
 public:
  using Weights = uint32_t[Blocks][RowTiles][4];

  template <class Step>
  static KVIT_DEVICE void Add(Values& values, const Step& step, const Weights& weights) {
    bool has_special = false;
    if constexpr (!Values::kIsFinite) {
      KVIT_UNROLL
      for (int b = 0; b < Blocks; ++b) {
        has_special |= Values::HasSpecial([&](int s, int c) { return step.Value(b * 16 + s, c); },
                                          Keeps<KeepsSeen>(step.rows.SeenBySome(), b));
      }
    }
    if (Ballot(has_special) == 0) {
      AddSeen<KeepsSeen>(values, step, weights, step.rows.SeenBySome());
    } else {
      AddRowByRow<KeepsSeen>(values, step, weights);
    }
  }

  /// Each row with what it sees alone, of that what Keep keeps.
  template <class Keep, class Step>
  static KVIT_DEVICE void AddRowByRow(Values& values, const Step& step, const Weights& weights) {
    constexpr int kRows = RowTiles * 16;
    KVIT_ROLLED
    for (int row = 0, next = 0; row < kRows; row = next) {
      const auto of_row = step.rows.Seen(row);
      for (next = row + 1; next < kRows && step.rows.Seen(next) == of_row;) ++next;
      if (of_row.IsEmpty()) continue;
      typename Values::Stash before;
      bool takes_part[RowTiles][2];
      KVIT_UNROLL
      for (int i = 0; i < RowTiles * 2; ++i) {
        const int mine = i * 8 + LaneIndex() / 4;
        takes_part[i / 2][i % 2] = row <= mine && mine < next;
      }
      before.Store(values);
      AddSeen<Keep>(values, step, weights, of_row);
      before.Restore(values, takes_part);
    }
  }

 private:
  template <class Keep, class Step, class Seen>
  static KVIT_DEVICE void AddSeen(Values& values, const Step& step, const Weights& weights, const Seen& seen) {
    KVIT_UNROLL
    for (int b = 0; b < Blocks; ++b) {
      values.Add(weights[b], [&](int s, int c) { return step.Value(b * 16 + s, c); }, Keeps<Keep>(seen, b));
    }
  }
  // Of a block of 16 tokens of a step, those that are seen.
  template <class Keep, class Seen>
  static KVIT_DEVICE Keep Keeps(const Seen& seen, int block) {
    return Keep([&](int s) { return seen.Has(block * 16 + s); });
  }
};

}  // namespace kvit

#endif  // KVIT_ATTENTION_MASKED_VALUES_CUH
