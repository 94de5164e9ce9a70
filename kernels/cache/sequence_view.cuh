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

/// A number that other launches write. Read speculatively, before the grid dependency, it may be old.
template <bool IsSpeculative>
KVIT_DEVICE int32_t LoadNumber(const int32_t* p) {
  return IsSpeculative ? LoadSpeculative(p) : LoadGlobal<int32_t>(p);
}

/// Reads `sequence` (0 <= sequence < num_sequences). Schedulers and iterators both go through here, so they agree on
/// lengths.
template <bool IsSpeculative = false>
KVIT_DEVICE SequenceView ViewSequence(const KvitPageTable& table, int32_t page_size, int32_t sequence) {
  SequenceView view = {sequence * table.row_stride, 0, {KVIT_FAULT_NONE, sequence, 0, 0}};
  int32_t slots = table.max_pages;
  if (table.indptr != nullptr) {
    const int32_t begin = LoadNumber<IsSpeculative>(table.indptr + sequence);
    const int32_t end = LoadNumber<IsSpeculative>(table.indptr + sequence + 1);
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
  const int32_t length = LoadNumber<IsSpeculative>(table.lengths + sequence);
  const int64_t capacity = int64_t(slots) * page_size;
  view.length = length < 0 ? 0 : length > capacity ? int32_t(capacity) : length;
  if (view.length != length) view.fault = {KVIT_FAULT_LENGTH, sequence, 0, length};
  return view;
}

/// Rows [begin, end) of the call's tokens that a sequence has. Where its offsets are wrong, those of them that exist:
/// none where they fall.
struct TokenRange {
  int32_t begin, end;
  KvitFault fault;

  KVIT_DEVICE bool Has(int row) const { return begin <= row && row < end; }
};

template <bool IsSpeculative = false>
KVIT_DEVICE TokenRange TokensOf(const KvitTokens& tokens, int32_t sequence) {
  if (tokens.indptr == nullptr) return {sequence * tokens.each, (sequence + 1) * tokens.each, {}};
  const int32_t begin = LoadNumber<IsSpeculative>(tokens.indptr + sequence);
  const int32_t end = LoadNumber<IsSpeculative>(tokens.indptr + sequence + 1);
  if (begin < 0 || begin > tokens.total) return {0, 0, {KVIT_FAULT_INDPTR, sequence, sequence, begin}};
  if (end < begin) return {begin, begin, {KVIT_FAULT_INDPTR, sequence, sequence + 1, end}};
  if (end > tokens.total) return {begin, tokens.total, {KVIT_FAULT_INDPTR, sequence, sequence + 1, end}};
  return {begin, end, {}};
}

}  // namespace kvit

#endif  // KVIT_CACHE_SEQUENCE_VIEW_CUH
