// Finds the row of one token of one sequence: for kernels that touch single rows, where tile iterators are for tiles.
#ifndef KVIT_TRANSFER_ROW_FINDER_CUH
#define KVIT_TRANSFER_ROW_FINDER_CUH

#include "abi/params.h"
#include "cache/page_place.cuh"
#include "cache/sequence_view.cuh"
#include "core/macros.h"
#include "core/types.h"
#include "platform/platform.cuh"

namespace kvit {

/// The kind of fault of a row that no sequence has: none at all, it is skipped.
inline constexpr int kNobodys = -1;

/// Whose token a row is, or what is wrong with it.
struct FoundToken {
  int64_t begin;  // first entry of its sequence in table.pages
  int32_t sequence, position;
  KvitFault fault;

  KVIT_DEVICE bool Exists() const { return fault.kind == KVIT_FAULT_NONE; }
};

/// An entry of a sequence's row of the page table.
struct TokenSlot {
  int32_t slot, page;
};

/// Where in the cache a token is, or what is wrong with its page.
struct FoundRow {
  PagePlace page;
  int32_t token_in_page;
  KvitFault fault;

  KVIT_DEVICE bool Exists() const { return fault.kind == KVIT_FAULT_NONE; }
};

/// All of it, step by step. The row has the fault of any step.
struct FoundPlace {
  FoundToken token;
  TokenSlot slot;
  FoundRow row;
};

/// A warp looks for one token at a time: its lanes call together, with the same arguments. A speculative one looks
/// before the grid dependency; where it finds a row, that is a row of the cache, right or wrong.
template <bool IsSpeculative>
class RowFinder {
 public:
  KVIT_DEVICE RowFinder(const KvitCache& cache, const KvitPageTable& table, const KvitTokens& tokens)
      : cache_(cache), table_(table), tokens_(tokens) {}

  /// Row `row` (0 <= row < tokens.total) of the call's tokens: token j of the last n of its sequence.
  KVIT_DEVICE FoundToken FindToken(int row) const {
    const int sequence = tokens_.indptr == nullptr ? int(uint32_t(row) / uint32_t(tokens_.each)) : SequenceOf(row);
    const TokenRange rows = TokensOf<IsSpeculative>(tokens_, sequence);
    const SequenceView view = ViewSequence<IsSpeculative>(table_, cache_.page_size, sequence);
    FoundToken found = {view.begin, sequence, view.length - (rows.end - row), view.fault};
    if (rows.fault.kind != KVIT_FAULT_NONE) {
      found.fault = rows.fault;
    } else if (!rows.Has(row)) {
      // Rows before the first offset and from the last one on are nobody's. Offsets that do not rise lead the search
      // astray: then the row is not between what it found.
      const bool is_padding = sequence == 0 ? row < rows.begin : false;
      const bool is_behind = sequence == table_.num_sequences - 1 && row >= rows.end;
      found.fault = {is_padding || is_behind ? kNobodys : KVIT_FAULT_INDPTR, sequence, sequence, rows.begin};
    } else if (found.Exists() && found.position < 0) {
      found.fault = {KVIT_FAULT_LENGTH, sequence, 0, view.length};
    }
    return found;
  }

  /// Where a token that exists has its page in the table, and that page, as the table has it.
  KVIT_DEVICE TokenSlot FindSlot(const FoundToken& token) const {
    const auto position = uint32_t(token.position), page_size = uint32_t(cache_.page_size);
    // Most pages hold a power of two, and a shift takes a tenth of the time of a division.
    const uint32_t slot = (page_size & (page_size - 1)) == 0 ? position >> HighestBit(page_size) : position / page_size;
    return {int32_t(slot), LoadNumber<IsSpeculative>(table_.pages + token.begin + slot)};
  }

  /// The place of a token that exists.
  KVIT_DEVICE FoundRow FindRow(const FoundToken& token, const TokenSlot& at) const {
    // An address that may be old is no address.
    const bool is_unknown = IsSpeculative && cache_.blocks != nullptr;
    const FoundPage found = is_unknown ? FoundPage{{}, KVIT_FAULT_BLOCK} : FindPage(cache_, at.page);
    if (found.fault != KVIT_FAULT_NONE) return {{}, 0, {found.fault, token.sequence, at.slot, at.page}};
    return {found.place, token.position - at.slot * cache_.page_size, {}};
  }

  KVIT_DEVICE FoundPlace Find(int row) const {
    if (IsSpeculative && !kLaunchesOverlap)
      return {{}, {}, {{}, 0, {KVIT_FAULT_PAGE, 0, 0, 0}}};  // it would gain nothing
    FoundPlace found = {FindToken(row), {}, {}};
    found.row.fault = found.token.fault;
    if (found.token.Exists()) {
      found.slot = FindSlot(found.token);
      found.row = FindRow(found.token, found.slot);
    }
    return found;
  }

  /// The same where it has been looked up speculatively before.
  KVIT_DEVICE FoundPlace Find(int row, const FoundPlace& early) const {
    return early.row.Exists() && Confirms(early, row) ? early : Find(row);
  }

  /// Whether a speculative look that has found a row for `row` was right: as strict as Find. No load waits for another.
  KVIT_DEVICE bool Confirms(const FoundPlace& early, int row) const {
    const FoundToken& token = early.token;
    const int page = LoadNumber<IsSpeculative>(table_.pages + token.begin + early.slot.slot);
    const int length = LoadNumber<IsSpeculative>(table_.lengths + token.sequence);
    const TokenRange rows = TokensOf<IsSpeculative>(tokens_, token.sequence);
    int64_t begin = token.begin, slots = table_.max_pages;
    bool has_range = true;
    if (table_.indptr != nullptr) {
      begin = LoadNumber<IsSpeculative>(table_.indptr + token.sequence);
      const int64_t end = LoadNumber<IsSpeculative>(table_.indptr + token.sequence + 1);
      slots = end - begin;
      has_range = begin >= 0 && begin <= end && end <= table_.max_pages;
    }
    const bool has_length = length >= 0 && length <= slots * cache_.page_size;
    return page == early.slot.page && int64_t(length) - (rows.end - row) == token.position && rows.Has(row) &&
           rows.fault.kind == KVIT_FAULT_NONE && begin == token.begin && has_range && has_length &&
           early.slot.slot < slots;
  }

 private:
  // The last sequence that begins at or before `row`: every lane asks one of 32, as often as there are powers of 32.
  KVIT_DEVICE int SequenceOf(int row) const {
    int low = 0, high = table_.num_sequences;
    while (high - low > 1) {
      const int step = CeilDiv(high - low, 32);
      const uint32_t asked = uint32_t(low) + uint32_t(LaneIndex()) * uint32_t(step);  // at most 31 beyond `high`
      const bool begun = asked < uint32_t(high) && LoadNumber<IsSpeculative>(tokens_.indptr + asked) <= row;
      const uint32_t lanes = Ballot(begun);
      low += (lanes == 0 ? 0 : HighestBit(lanes)) * step;
      high = Min(high, low + step);
    }
    return low;
  }

  // Position of the highest set bit of a number that has one: the exponent of a float, once no run of ones can round
  // up.
  static KVIT_DEVICE int HighestBit(uint32_t x) { return int(BitCast<uint32_t>(float(x & ~(x >> 1))) >> 23) - 127; }

  const KvitCache& cache_;
  const KvitPageTable& table_;
  const KvitTokens& tokens_;
};

}  // namespace kvit

#endif  // KVIT_TRANSFER_ROW_FINDER_CUH
