// Finds the row of one token of one sequence: for kernels that touch single rows, where tile iterators are for tiles.
#ifndef KVIT_CACHE_ROW_FINDER_CUH
#define KVIT_CACHE_ROW_FINDER_CUH

#include "abi/params.h"
#include "cache/fast_divide.cuh"
#include "cache/page_place.cuh"
#include "cache/sequence_view.cuh"
#include "core/macros.h"
#include "platform/platform.cuh"

namespace kvit {

/// A token's place in the cache, or what is wrong with it.
struct FoundRow {
  PagePlace page;
  int64_t token_in_page;
  KvitFault fault;
};

class RowFinder {
 public:
  KVIT_DEVICE RowFinder(const KvitCache& cache, const KvitPageTable& table, const KvitTokens& tokens)
      : cache_(cache), table_(table), tokens_(tokens), page_of_(cache.page_size) {}

  /// Row `row` (0 <= row < tokens.total) of the call's tokens: token j of the last n of its sequence.
  KVIT_DEVICE FoundRow Find(int row) const {
    int sequence, begin, end;
    if (tokens_.indptr == nullptr) {
      sequence = row / tokens_.each;
      begin = sequence * tokens_.each;
      end = begin + tokens_.each;
    } else {
      sequence = SequenceOf(row);
      begin = LoadGlobalReadOnly<int32_t>(tokens_.indptr + sequence);
      end = LoadGlobalReadOnly<int32_t>(tokens_.indptr + sequence + 1);
      // A table that does not rise leads the search astray: then the row is not between what it found.
      if (begin < 0 || row < begin || row >= end || end > tokens_.total) {
        return {{}, 0, {KVIT_FAULT_INDPTR, sequence, sequence, begin}};
      }
    }
    const SequenceView view = ViewSequence(table_, cache_.page_size, sequence);
    if (view.fault.kind != KVIT_FAULT_NONE) return {{}, 0, view.fault};
    const int position = view.length - (end - row);
    if (position < 0) return {{}, 0, {KVIT_FAULT_LENGTH, sequence, 0, view.length}};
    const int slot = int(page_of_(uint32_t(position)));
    const auto page = LoadGlobalReadOnly<int32_t>(table_.pages + view.begin + slot);
    const FoundPage found = FindPage(cache_, page);
    if (found.fault != KVIT_FAULT_NONE) return {{}, 0, {found.fault, sequence, slot, page}};
    return {found.place, position - int64_t(slot) * cache_.page_size, {}};
  }

 private:
  // The last sequence that begins at or before `row`.
  KVIT_DEVICE int SequenceOf(int row) const {
    int low = 0, high = table_.num_sequences;
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (LoadGlobalReadOnly<int32_t>(tokens_.indptr + middle) <= row ? low : high) = middle;
    }
    return low;
  }

  const KvitCache& cache_;
  const KvitPageTable& table_;
  const KvitTokens& tokens_;
  FastDivide page_of_;
};

}  // namespace kvit

#endif  // KVIT_CACHE_ROW_FINDER_CUH
