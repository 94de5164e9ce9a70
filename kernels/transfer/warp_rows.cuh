// What append and gather share: which token and heads a warp moves, and where the vec8s of its rows lie.
#ifndef KVIT_TRANSFER_WARP_ROWS_CUH
#define KVIT_TRANSFER_WARP_ROWS_CUH

#include "abi/params.h"
#include "cache/fault.cuh"
#include "cache/pool_set.cuh"
#include "core/array.cuh"
#include "core/types.h"
#include "platform/platform.cuh"
#include "transfer/row_finder.cuh"
#include "transfer/row_lanes.cuh"

namespace kvit {

/// Part of a token's heads, [first_head, end_head).
struct HeadRange {
  int token, first_head, end_head;
};

/// CtaRange `index` of all tokens, `heads_per_share` heads each.
KVIT_DEVICE HeadRange HeadRangeAt(uint32_t index, int heads, int heads_per_share) {
  if (heads <= heads_per_share) return {int(index), 0, heads};
  const auto shares = uint32_t(CeilDiv(heads, heads_per_share));
  const uint32_t token = index / shares;
  const int first_head = int(index - token * shares) * heads_per_share;
  return {int(token), first_head, Min(first_head + heads_per_share, heads)};
}

/// The rows of one token that the lanes of a warp move at a time: of as many heads as lanes have room for, HeadDim
/// channels each. Rows may have fewer `channels`, a multiple of 8, as each call says: then a lane without a vec8 of its
/// own goes along with the first of its row, and stores nothing.
template <int HeadDim>
class WarpRows {
 public:
  using Lanes = RowLanes<HeadDim>;

  /// The first heads of a share. `rotary_vec8s`: rotary_dim / 16 of the rows
  KVIT_DEVICE WarpRows(const HeadRange& share, int rotary_vec8s)
      : token_(share.token),
        first_head_(share.first_head),
        end_head_(share.end_head),
        vec8s_(Lanes::Vec8s(Lanes::LaneOfRow(LaneIndex()), rotary_vec8s)) {}

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
  /// Whether vec8 0 or 1 of this lane is one of a row of so many channels.
  KVIT_DEVICE bool Holds(int vec8, int channels) const { return Index(vec8) < channels / 8; }

  /// Gives vec8s that a row does not have the values of one that it has, where they would count: the ends of a row that
  /// is encoded are looked for in all of them. All lanes of the warp call together.
  template <class Part>
  KVIT_DEVICE void Complete(Part& part, int channels) const {
    if (channels == HeadDim) return;
    const bool holds[2] = {Holds(0, channels), Holds(1, channels)};
    const int first_lane = LaneIndex() - Lanes::LaneOfRow(LaneIndex());  // has the row's first vec8, as its first
    KVIT_UNROLL
    for (int i = 0; i < 4; ++i) {
      const uint32_t word = Shuffle(part[0].word[i], first_lane);
      KVIT_UNROLL
      for (int vec8 = 0; vec8 < 2; ++vec8) {
        if (!holds[vec8]) part[vec8].word[i] = word;
      }
    }
  }

  /// The same rows as if no channel rotated: lane l of a row holds vec8s l and kLanesPerRow + l.
  KVIT_DEVICE WarpRows InOrder() const {
    WarpRows rows = *this;
    rows.vec8s_ = Lanes::Vec8s(Lanes::LaneOfRow(LaneIndex()), 0);
    return rows;
  }

  /// A part of rows of which `from` vec8s rotate, as lanes have it where `to` do. All lanes of the warp call together.
  template <class Part>
  static KVIT_DEVICE Part Dealt(const Part& part, int from, int to) {
    if (from % Lanes::kLanesPerRow == to % Lanes::kLanesPerRow) return part;
    const int first_lane = LaneIndex() - Lanes::LaneOfRow(LaneIndex());
    const Vec8Pair wanted = Lanes::Vec8s(Lanes::LaneOfRow(LaneIndex()), to);
    Part dealt;
    KVIT_UNROLL
    for (int vec8 = 0; vec8 < 2; ++vec8) {
      const Vec8Place place = Lanes::PlaceOf(vec8 == 0 ? wanted.first : wanted.second, from);
      KVIT_UNROLL
      for (int i = 0; i < 4; ++i) {
        const uint32_t first = Shuffle(part[0].word[i], first_lane + place.lane);
        const uint32_t second = Shuffle(part[1].word[i], first_lane + place.lane);
        dealt[vec8].word[i] = place.which == 0 ? first : second;
      }
    }
    return dealt;
  }

  /// Whether a lane's vec8s begin sectors of 32 bytes, which are fetched at once.
  template <class Vec8>
  static KVIT_DEVICE bool BeginsSectors() {
    return LaneIndex() % (32 / int(sizeof(Vec8))) == 0;
  }

  /// Vec8 0 or 1 of this lane, in rows of all tokens.
  template <class Vec8>
  KVIT_DEVICE char* In(const KvitRows& rows, int vec8, int channels) const {
    return static_cast<char*>(rows.base) + token_ * rows.token_stride + Head() * rows.head_stride +
           Offset<Vec8>(vec8, channels);
  }
  /// The same in a dense row of each head, or of each group of so many heads.
  template <class Vec8>
  KVIT_DEVICE const char* InHeads(const void* heads, int vec8, int channels, int group = 1) const {
    return static_cast<const char*>(heads) + Head() / group * int64_t(channels / 8 * sizeof(Vec8)) +
           Offset<Vec8>(vec8, channels);
  }
  /// The same in a dense row that all heads share.
  template <class Vec8>
  KVIT_DEVICE const char* InRow(const void* row, int vec8, int channels) const {
    return static_cast<const char*>(row) + Offset<Vec8>(vec8, channels);
  }
  /// The same in the cache.
  template <class Vec8>
  KVIT_DEVICE char* InPool(const KvitPool& pool, const FoundRow& found, int vec8, int channels) const {
    return Parameters(pool, found) + Offset<Vec8>(vec8, channels);
  }
  /// What all lanes of a row share.
  KVIT_DEVICE char* Parameters(const KvitPool& pool, const FoundRow& found) const {
    return reinterpret_cast<char*>(RowAddress(pool, found.page, found.token_in_page, Head()));
  }

 private:
  KVIT_DEVICE int LanesHead() const { return first_head_ + Lanes::Row(LaneIndex()); }
  KVIT_DEVICE int Head() const { return Min(LanesHead(), end_head_ - 1); }
  KVIT_DEVICE int Index(int vec8) const { return vec8 == 0 ? vec8s_.first : vec8s_.second; }
  template <class Vec8>
  KVIT_DEVICE int Offset(int vec8, int channels) const {
    return (Holds(vec8, channels) ? Index(vec8) : 0) * int(sizeof(Vec8));
  }

  int token_, first_head_, end_head_;
  Vec8Pair vec8s_;
};

/// Tells what is wrong with a token or its place, if anything is; returns whether it is there. A row that no sequence
/// has is not, and nothing is wrong with it.
template <class Found>
KVIT_DEVICE bool Good(const Found& found, KvitFault* report) {
  if (!found.Exists() && found.fault.kind != kNobodys && LaneIndex() == 0) ReportFault(report, found.fault);
  return found.Exists();
}

}  // namespace kvit

#endif  // KVIT_TRANSFER_WARP_ROWS_CUH
