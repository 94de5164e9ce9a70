// What append and gather share: which token and heads a warp moves, and where the octets of its rows lie.
#ifndef KVIT_CACHE_WARP_ROWS_CUH
#define KVIT_CACHE_WARP_ROWS_CUH

#include "abi/params.h"
#include "cache/fault.cuh"
#include "cache/pool_set.cuh"
#include "cache/row_finder.cuh"
#include "core/array.cuh"
#include "core/types.h"
#include "layout/row_lanes.cuh"
#include "platform/platform.cuh"

namespace kvit {

/// Part of a token's heads, [first_head, end_head).
struct HeadShare {
  int token, first_head, end_head;
};

/// Share `index` of all tokens, `heads_per_share` heads each.
KVIT_DEVICE HeadShare ShareAt(uint32_t index, int heads, int heads_per_share) {
  if (heads <= heads_per_share) return {int(index), 0, heads};
  const auto shares = uint32_t(CeilDiv(heads, heads_per_share));
  const uint32_t token = index / shares;
  const int first_head = int(index - token * shares) * heads_per_share;
  return {int(token), first_head, Min(first_head + heads_per_share, heads)};
}

/// The rows of one token that the lanes of a warp move at a time: of as many heads as lanes have room for.
template <int HeadDim>
class WarpRows {
 public:
  using Lanes = RowLanes<HeadDim>;

  /// The first heads of a share. `rotary_octets`: rotary_dim / 16 of the rows
  KVIT_DEVICE WarpRows(const HeadShare& share, int rotary_octets)
      : token_(share.token),
        first_head_(share.first_head),
        end_head_(share.end_head),
        octets_(Lanes::Octets(Lanes::LaneOfRow(LaneIndex()), rotary_octets)) {}

  /// Whether the share has any of these heads.
  KVIT_DEVICE bool Any() const { return first_head_ < end_head_; }

  /// The heads that are moved so many times later.
  KVIT_DEVICE WarpRows After(int passes) const {
    WarpRows later = *this;
    later.first_head_ += passes * Lanes::kRowsPerWarp;
    return later;
  }

  /// Whether this lane has a row of its own. Lanes without one go along with the last head's, and store nothing: rows
  /// are encoded by whole warps.
  KVIT_DEVICE bool Has() const { return LanesHead() < end_head_; }

  /// Whether a lane's octets begin sectors of 32 bytes, which are fetched at once.
  template <class Octet>
  static KVIT_DEVICE bool BeginsSectors() {
    return LaneIndex() % (32 / int(sizeof(Octet))) == 0;
  }

  /// Octet 0 or 1 of this lane, in rows of all tokens.
  template <class Octet>
  KVIT_DEVICE char* In(const KvitRows& rows, int octet) const {
    return static_cast<char*>(rows.base) + token_ * rows.token_stride + Head() * rows.head_stride +
           Offset<Octet>(octet);
  }
  /// The same in a dense row of each head.
  template <class Octet>
  KVIT_DEVICE const char* InHeads(const void* heads, int octet) const {
    return static_cast<const char*>(heads) + Head() * int64_t(HeadDim / 8 * sizeof(Octet)) + Offset<Octet>(octet);
  }
  /// The same in the cache.
  template <class Octet>
  KVIT_DEVICE char* InPool(const KvitPool& pool, const FoundRow& found, int octet) const {
    return Parameters(pool, found) + Offset<Octet>(octet);
  }
  /// What all lanes of a row share.
  KVIT_DEVICE char* Parameters(const KvitPool& pool, const FoundRow& found) const {
    return reinterpret_cast<char*>(RowAddress(pool, found.page, found.token_in_page, Head()));
  }

 private:
  KVIT_DEVICE int LanesHead() const { return first_head_ + Lanes::Row(LaneIndex()); }
  KVIT_DEVICE int Head() const { return Min(LanesHead(), end_head_ - 1); }
  template <class Octet>
  KVIT_DEVICE int Offset(int octet) const {
    return (octet == 0 ? octets_.first : octets_.second) * int(sizeof(Octet));
  }

  int token_, first_head_, end_head_;
  OctetPair octets_;
};

/// Tells what is wrong with a token or its place, if anything is; returns whether nothing is.
template <class Found>
KVIT_DEVICE bool Good(const Found& found, KvitFault* report) {
  if (!found.Exists() && LaneIndex() == 0) ReportFault(report, found.fault);
  return found.Exists();
}

}  // namespace kvit

#endif  // KVIT_CACHE_WARP_ROWS_CUH
