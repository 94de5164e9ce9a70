// A warp's tokens of a tile as the rows of a row tile see them, where they differ in what they see last: variant
// `plain`.
#ifndef KVIT_ATTENTION_CAUSAL_STEP_CUH
#define KVIT_ATTENTION_CAUSAL_STEP_CUH

#include "core/types.h"
#include "schedule/work_tile.cuh"

namespace kvit {

/// A warp's tokens of a tile, in ring slot `stage`, and which of them the rows of a row tile see. A tile of which all
/// rows see as much is one step. Where their ends lie in it, it is a step for each end, the last one first: before
/// each, what its rows do not see is zeroed in shared memory.
template <class Scheduler, class Pipe, int Tokens>
struct CausalStep {
  static constexpr bool kHidesInMemory = true;
  static constexpr int kNoPart = -1;
  using Work = typename Scheduler::Work;

  const Scheduler& scheduler;
  const Work& work;
  Pipe& pipe;
  int stage;
  int first_key;   // the first of the tokens
  bool is_masked;  // some row does not see all of them
  int end;         // of the rows that the step is for; kNoPart: where the tile begins
  bool is_partial = false;

  /// Keys that all rows of a work tile see: so many.
  static KVIT_DEVICE int Common(const Scheduler& scheduler, const Work& work) { return scheduler.Visible(work, 0).end; }
  static KVIT_DEVICE bool IsMasked(int common, int first_key) { return first_key + Tokens > common; }

  KVIT_DEVICE const char* Key(int s, int c) const { return pipe.Key(stage, s, c); }
  KVIT_DEVICE const char* Value(int s, int c) const { return pipe.Value(stage, s, c); }
  KVIT_DEVICE auto KeyParameters(int s) const { return pipe.KeyParameters(stage, s); }
  KVIT_DEVICE auto ValueParameters(int s) const { return pipe.ValueParameters(stage, s); }
  KVIT_DEVICE void WaitForValues() const { pipe.WaitForValues(stage); }

  /// Where is_masked: decides what this step is for, and zeroes the parameters that its rows do not see.
  KVIT_DEVICE void HideParameters() {
    const int most = Min(scheduler.MostEnd(work) - first_key, Tokens);
    if (end == kNoPart) end = most;
    is_partial = end > 0 && End(0) < most;
    if (end < Min(work.of.length - first_key, Tokens)) pipe.HideParameters(stage, Max(0, end));
  }
  KVIT_DEVICE void HideValues() const {
    WaitForValues();
    if (end < Tokens) pipe.HideValues(stage, Max(0, end));
  }
  /// Tokens that a row sees, from the first on; and whether the step is for it.
  KVIT_DEVICE int End(int row) const { return scheduler.Visible(work, row).end - first_key; }
  KVIT_DEVICE bool Has(int row) const { return !is_partial || Min(End(row), Tokens) == end; }
  /// `end` of the step after it in the same tile; kNoPart: the tile is done.
  KVIT_DEVICE int NextPart(int common) const {
    return is_partial && end > Max(common - first_key, 1) ? end - 1 : kNoPart;
  }
};

}  // namespace kvit

#endif  // KVIT_ATTENTION_CAUSAL_STEP_CUH
