// Which tokens of a step count: for a row, and in an operand of V.
#ifndef KVIT_ATTENTION_SEEN_TOKENS_CUH
#define KVIT_ATTENTION_SEEN_TOKENS_CUH

#include <stdint.h>

#include "core/macros.h"
#include "platform/platform.cuh"
#include "schedule/row_tiles.cuh"

namespace kvit {

/// All tokens count.
struct AllTokens {
  KVIT_DEVICE void Hide(uint32_t (&)[4]) const {}
};

/// Of a block of 16 tokens, those of a range count. Register i of an operand of V has two tokens of the first eight, or
/// of the last, the first of them in its lower half.
class SomeTokens {
 public:
  KVIT_DEVICE SomeTokens(const KeyRange& seen, int block) {
    KVIT_UNROLL
    for (int t = 0; t < 2; ++t) {
      const int token = block * 16 + t * 8 + LaneIndex() % 4 * 2;
      const bool first = seen.begin <= token && token < seen.end,
                 next = seen.begin <= token + 1 && token + 1 < seen.end;
      mask_[t] = (first ? 0xffffu : 0u) | (next ? 0xffff0000u : 0u);
    }
  }
  KVIT_DEVICE void Hide(uint32_t (&v)[4]) const {
    KVIT_UNROLL
    for (int i = 0; i < 4; ++i) v[i] &= mask_[i / 2];
  }

 private:
  uint32_t mask_[2];
};

/// What a lane's rows see of a step: all of it, or where something is hidden, a range each.
template <bool kIsMasked, int RowTiles>
struct SeenKeys {
  KVIT_DEVICE bool Has(int, int, int) const { return true; }
};
template <int RowTiles>
struct SeenKeys<true, RowTiles> {
  KeyRange range[RowTiles][2];
  KVIT_DEVICE bool Has(int m, int h, int token) const { return range[m][h].begin <= token && token < range[m][h].end; }
};

}  // namespace kvit

#endif  // KVIT_ATTENTION_SEEN_TOKENS_CUH
