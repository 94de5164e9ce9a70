// A warp's tokens of a tile as the rows of a row tile see them, whatever each of them sees: variant `general`.
#ifndef KVIT_ATTENTION_GENERAL_STEP_CUH
#define KVIT_ATTENTION_GENERAL_STEP_CUH

#include "attention/general_mask.cuh"
#include "core/types.h"
#include "platform/platform.cuh"
#include "schedule/work_tile.cuh"

namespace kvit {

/// A warp's tokens of a tile, in ring slot `stage`, and which of them the rows of a row tile see. A tile that all rows
/// see whole is one step. Any other is a step for each run of query tokens that see the same of it, and none for a run
/// that sees nothing. Nothing in shared memory changes: what a step does not see is zeroed where it is loaded.
template <class Scheduler, class Pipe, int Tokens>
struct GeneralStep {
  static constexpr bool kHidesInMemory = false;
  static constexpr int kNoPart = -1;
  static constexpr int kWords = CeilDiv(Tokens, 32);
  using Work = typename Scheduler::Work;

  const Scheduler& scheduler;
  const Work& work;
  Pipe& pipe;
  int stage;
  int first_key;   // the first of the tokens
  bool is_masked;  // some row does not see all of them
  int from;        // where is_masked: the step is for the query tokens [from, to) of the sequence; kNoPart: the first
  int to = 0;
  bool is_partial = false;
  KeySet set = {};             // what they see,
  uint32_t seen[kWords] = {};  // and of this step's tokens a bit for each

  /// Keys that all rows of a work tile see.
  static KVIT_DEVICE KeyRange Common(const Scheduler& scheduler, const Work& work) {
    return scheduler.mask().Of(work.of).Common(scheduler.FirstToken(work), scheduler.LastToken(work));
  }
  static KVIT_DEVICE bool IsMasked(const KeyRange& common, int first_key) {
    return first_key < common.begin || first_key + Tokens > common.end;
  }

  KVIT_DEVICE const char* Key(int s, int c) const { return pipe.Key(stage, s, c); }
  KVIT_DEVICE const char* Value(int s, int c) const { return pipe.Value(stage, s, c); }
  KVIT_DEVICE auto KeyParameters(int s) const { return pipe.KeyParameters(stage, s); }
  KVIT_DEVICE auto ValueParameters(int s) const { return pipe.ValueParameters(stage, s); }
  KVIT_DEVICE void WaitForValues() const { pipe.WaitForValues(stage); }

  /// Where is_masked: decides which rows the step is for. False where they see none of the tokens: then there is
  /// nothing to do, but to wait for what is under way.
  KVIT_DEVICE bool Finds() {
    const int first = scheduler.FirstToken(work), last = scheduler.LastToken(work);
    if (from == kNoPart) from = first;
    bool finds = false;
    KVIT_ROLLED
    for (to = from; to <= last; ++to) {
      const KeySet next = scheduler.mask().Set(work.of, to);
      bool is_same = to == from || set.HasPositionsOf(next, first_key + Tokens);
      KVIT_UNROLL
      for (int word = 0; word < kWords; ++word) {
        const uint32_t bits = Ballot(next.Has(first_key + word * 32 + LaneIndex()));
        if (to == from) seen[word] = bits;
        is_same = is_same && seen[word] == bits;
        finds = finds || seen[word] != 0;
      }
      if (!is_same) break;
      if (to == from) set = next;
    }
    is_partial = from > first || to <= last;
    if (!finds) WaitForValues();
    return finds;
  }
  KVIT_DEVICE bool Sees(int s) const { return (seen[s / 32] >> s % 32 & 1u) != 0; }
  KVIT_DEVICE bool Has(int row) const {
    const int token = scheduler.TokenOfRow(work, row);
    return from <= token && token < to;
  }
  /// `from` of the step after it in the same tile; kNoPart: the tile is done.
  KVIT_DEVICE int NextPart(const KeyRange&) const { return to <= scheduler.LastToken(work) ? to : kNoPart; }

  /// Where token s stands, as the rows of the step see it.
  KVIT_DEVICE int PositionOf(int s) const { return is_masked ? set.PositionOf(first_key + s) : first_key + s; }
  template <class Score>
  KVIT_DEVICE auto RowOf(const Score& score, int row) const {
    const int token = scheduler.TokenOfRow(work, row);
    const int head = work.head * scheduler.group() + work.row_tile * Scheduler::kRows + row - token * scheduler.group();
    const bool exists = token < work.of.new_tokens;
    return score.RowOf(exists ? head : 0, exists ? scheduler.mask().PositionOf(work.of, token) : 0);
  }
};

}  // namespace kvit

#endif  // KVIT_ATTENTION_GENERAL_STEP_CUH
