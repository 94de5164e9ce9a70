// One sequence's part of a page table, with its length and offsets checked.
#ifndef KVIT_CACHE_SEQUENCE_VIEW_CUH
#define KVIT_CACHE_SEQUENCE_VIEW_CUH

#include <stdint.h>

#include "abi/params.h"
#include "core/macros.h"
#include "platform/platform.cuh"

namespace kvit {

/// Every slot of a token below `length` lies inside the table, whatever the table says.
struct SequenceView {
  int64_t begin;   // first entry of the sequence in table.pages
  int32_t length;  // tokens; 0 where the offsets are bad, clamped to what the slots hold where the length is
  KvitFault fault;
};

/// A number that other launches write. A guess is read before this launch's turn: it may be old.
template <bool IsGuess>
KVIT_DEVICE int32_t LoadNumber(const int32_t* p) {
  return IsGuess ? LoadGuess(p) : LoadGlobal<int32_t>(p);
}

/// Reads `sequence` (0 <= sequence < num_sequences). Schedulers and iterators both go through here, so they agree on
/// lengths.
template <bool IsGuess = false>
KVIT_DEVICE SequenceView ViewSequence(const KvitPageTable& table, int32_t page_size, int32_t sequence) {
  SequenceView view = {sequence * table.row_stride, 0, {KVIT_FAULT_NONE, sequence, 0, 0}};
  int32_t slots = table.max_pages;
  if (table.indptr != nullptr) {
    const int32_t begin = LoadNumber<IsGuess>(table.indptr + sequence);
    const int32_t end = LoadNumber<IsGuess>(table.indptr + sequence + 1);
    if (begin < 0 || begin > table.max_pages) {
      view.fault = {KVIT_FAULT_INDPTR, sequence, sequence, begin};
      return view;
    }
    if (end < begin || end > table.max_pages) {
      view.fault = {KVIT_FAULT_INDPTR, sequence, sequence + 1, end};
      return view;
    }
    view.begin = begin;
    slots = end - begin;
  }
  const int32_t length = LoadNumber<IsGuess>(table.lengths + sequence);
  const int64_t capacity = int64_t(slots) * page_size;
  view.length = length < 0 ? 0 : length > capacity ? int32_t(capacity) : length;
  if (view.length != length) view.fault = {KVIT_FAULT_LENGTH, sequence, 0, length};
  return view;
}

}  // namespace kvit

#endif  // KVIT_CACHE_SEQUENCE_VIEW_CUH
