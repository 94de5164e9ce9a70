// What a query sees of its sequence's keys. One object answers for scheduler, loaders and products alike.
#ifndef KVIT_ATTENTION_MASK_CUH
#define KVIT_ATTENTION_MASK_CUH

#include "core/types.h"
#include "schedule/row_tiles.cuh"
#include "schedule/work_tile.cuh"

namespace kvit {

/// Causal, or full: the mask of variant `plain`. What a mask has:
///
///   kHasBegin                the ranges of some queries begin behind key 0
///   Visible(work, token)     the keys that query token `token` of a sequence sees, or the least range around them
///   Of(work)                 the same as a line over tokens, for the scheduler: a Keys, whose Union(from, to) is the
///                            least range around what any of the tokens [from, to] sees
///   LastUnion(work, from)    of all tokens from `from` on, at once
///
/// It is made from a launch's params, and keeps references: a kernel's parameters, read where they lie.
class CausalMask {
 public:
  static constexpr bool kHasBegin = false;
  using Keys = KeyEnds;

  template <class Params>
  KVIT_HD explicit CausalMask(const Params& params) : causal_(params.causal) {}

  KVIT_HD KeyEnds Of(SequenceWork work) const {
    return causal_ == 0 || work.new_tokens == 1 ? KeyEnds{work.length, 0}
                                                : KeyEnds{work.length - work.new_tokens + 1, 1};
  }
  KVIT_HD KeysFromFirst LastUnion(const SequenceWork& work, int) const { return {work.length}; }
  KVIT_HD KeyRange Visible(SequenceWork work, int token) const {
    if (causal_ == 0 || work.new_tokens == 1) return {0, work.length};
    return {0, Min(work.length - work.new_tokens + 1 + token, work.length)};
  }

 private:
  const int32_t& causal_;
};

}  // namespace kvit

#endif  // KVIT_ATTENTION_MASK_CUH
