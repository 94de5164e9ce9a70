// What a query sees of its sequence's keys. One object answers for scheduler, loaders and products alike.
#ifndef KVIT_ATTENTION_MASK_CUH
#define KVIT_ATTENTION_MASK_CUH

#include "abi/params.h"
#include "core/types.h"
#include "schedule/row_tiles.cuh"

namespace kvit {

/// Causal, or full: the mask of variant `plain`. What a mask has:
///
///   Visible(length, new_tokens, token)   the keys that query token `token` sees, of the last `new_tokens` of `length`
///   Ends(length, new_tokens)             the ends of these ranges as a line over tokens, for the scheduler
///   LastEnd(length, new_tokens)          that of the last token, at once
///   Key ranges of later tokens end later, or where those of earlier ones do.
class CausalMask {
 public:
  KVIT_HD explicit CausalMask(const KvitDecodeParams& params) : params_(params) {}

  KVIT_HD KeyEnds Ends(int length, int new_tokens) const {
    return params_.causal == 0 || new_tokens == 1 ? KeyEnds{length, 0} : KeyEnds{length - new_tokens + 1, 1};
  }
  KVIT_HD int LastEnd(int length, int) const { return length; }
  KVIT_HD KeyRange Visible(int length, int new_tokens, int token) const {
    if (params_.causal == 0 || new_tokens == 1) return {0, length};
    return {0, Min(length - new_tokens + 1 + token, length)};
  }

 private:
  const KvitDecodeParams& params_;  // a kernel's parameters, read where they lie
};

}  // namespace kvit

#endif  // KVIT_ATTENTION_MASK_CUH
