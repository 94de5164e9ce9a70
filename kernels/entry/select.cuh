// Family `select`: the entries of a sequence that a query has chosen become a page table of its own, for attention that
// reads those alone.
#ifndef KVIT_ENTRY_SELECT_CUH
#define KVIT_ENTRY_SELECT_CUH

#include "abi/fact.h"
#include "abi/params.h"
#include "cache/fault.cuh"
#include "core/bits.h"
#include "core/types.h"
#include "platform/platform.cuh"
#include "transfer/row_finder.cuh"

namespace kvit {

/// A warp for each row of the call and each of its choosers: all KV heads together, or one of them. An entry is
/// entry_tokens of a sequence, and those tokens are `pages_per_entry` pages of the view that attention reads. Entries
/// that the query sees whole come first, in the order in which they were chosen; then the tokens that it sees of the
/// entry that its position, or the end of the sequence, is in. Entries behind that, and -1, are left out.
///
///   entry_tokens = 4, position 9     indices   2 -1 0 5      entry 0, tokens 8 and 9 of entry 2      length 6
///
/// A row of no sequence gets a length of 0, one that the table describes wrongly a length that is a fault.
template <int Warps>
struct SelectKernel {
  using Params = KvitSelectParams;
  static constexpr int kThreads = Warps * 32;
  static constexpr int kSharedBytes = 0;
  static constexpr int kMinCtas = 2;
  static constexpr KvitFact kFacts[] = {{"warps", Warps}};

  KVIT_DEVICE static void Run(const Params& params, char*) {
    const int64_t index = int64_t(BlockIndex()) * Warps + WarpIndex();
    if (index >= int64_t(params.tokens.total) * params.choosers) return;
    const int row = int(index / params.choosers), chooser = int(index - int64_t(row) * params.choosers);
    KvitCache cache = {};
    cache.num_pages = params.num_pages;
    cache.page_size = params.page_size;
    const FoundToken token = RowFinder<false>(cache, params.table, params.tokens).FindToken(row);
    if (!token.Exists()) {
      const bool is_nobodys = token.fault.kind == kNobodys;
      if (LaneIndex() == 0) {
        if (!is_nobodys) ReportFault(params.fault, token.fault);
        StoreGlobal(params.lengths + index, is_nobodys ? 0 : -1);
      }
      return;
    }
    Selection selection = {params, token, chooser, params.pages + index * params.entries * params.pages_per_entry};
    const int length = LoadGlobal<int32_t>(params.table.lengths + token.sequence);
    const int end = params.is_causal ? token.position + 1 : length;
    const int32_t* const chosen = params.indices + index * params.entries;
    int last = -1;  // the entry of which the query sees a part
    for (int first = 0; first < params.entries; first += 32) {
      const int at = first + LaneIndex();
      const int entry = at < params.entries ? LoadGlobal<int32_t>(chosen + at) : -1;
      const int64_t begin = int64_t(entry) * params.entry_tokens;
      const bool is_seen = entry >= 0 && begin < end;
      const bool is_whole = is_seen && begin + params.entry_tokens <= end;
      const uint32_t wholes = Ballot(is_whole), parts = Ballot(is_seen && !is_whole);
      const int before = CountBits(wholes & ((1u << LaneIndex()) - 1u));
      if (is_whole) selection.Write(selection.count + before, entry, params.entry_tokens);
      selection.count += CountBits(wholes);
      if (parts != 0u) last = Shuffle(entry, LowestBit(parts));
    }
    int visible = selection.count * params.entry_tokens;
    if (last >= 0) {
      const int tokens = end - last * params.entry_tokens;
      if (LaneIndex() == 0) selection.Write(selection.count, last, tokens);
      visible += tokens;
    }
    if (LaneIndex() == 0) StoreGlobal(params.lengths + index, visible);
  }

 private:
  struct Selection {
    const Params& params;
    const FoundToken& token;
    int chooser;
    int32_t* pages;
    int count = 0;  // entries that were written

    /// The pages of the first `tokens` tokens of an entry. A lane calls for itself.
    KVIT_DEVICE void Write(int place, int entry, int tokens) {
      const int part_tokens = params.entry_tokens / params.pages_per_entry;
      for (int i = 0; i * part_tokens < tokens; ++i) {
        const int position = entry * params.entry_tokens + i * part_tokens;
        const int slot = position / params.page_size, in_page = position - slot * params.page_size;
        const int page = LoadGlobal<int32_t>(params.table.pages + token.begin + slot);
        const bool exists = uint32_t(page) < uint32_t(params.num_pages);
        if (!exists) ReportFault(params.fault, {KVIT_FAULT_PAGE, token.sequence, slot, page});
        const int found =
            page * params.page_step + in_page / part_tokens * params.part_step + chooser * params.head_step;
        StoreGlobal(pages + place * params.pages_per_entry + i, exists ? found : -1);
      }
    }
  };
};

}  // namespace kvit

#endif  // KVIT_ENTRY_SELECT_CUH
