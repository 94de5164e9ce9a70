// What a warp's rows see of a tile, where warps have rows to themselves, whatever each of them sees: variant `general`.
#ifndef KVIT_ATTENTION_GENERAL_ROWS_CUH
#define KVIT_ATTENTION_GENERAL_ROWS_CUH

#include <stdint.h>

#include "attention/general_mask.cuh"
#include "attention/general_score.cuh"
#include "attention/seen_tokens.cuh"
#include "core/types.h"
#include "platform/platform.cuh"

namespace kvit {

/// As CausalRows. A lane looks at one row, lane % WarpRows, and has a bit for each token that it sees; who needs to
/// know of another row asks its lane.
///
///   lane       0       1      ...            LaneSeesBits of lane 5: of rows 1, 9, 17, 25 its own tokens,
///   row        0       1      ... 31         2, 3, 10, 11, 18, ..., a bit each
///   bits       tokens  tokens
template <class Scheduler, int WarpRows, int Tokens>
class GeneralRows {
  static constexpr int kRowTiles = WarpRows / 16;
  using Bits = SeenBits<Tokens>;

 public:
  using Work = typename Scheduler::Work;

  KVIT_DEVICE GeneralRows(const Scheduler& scheduler, const Work& work, int first_row, int first_key)
      : scheduler_(scheduler), work_(work), row_(first_row + LaneIndex() % WarpRows), first_key_(first_key) {}

  template <class Use>
  KVIT_DEVICE void Look(const KeyRange& common, Use&& use) {
    bool is_masked = first_key_ < common.begin || first_key_ + Tokens > common.end;
    if (is_masked) {
      Find();
      if (Ballot(!mine_.IsEmpty()) == 0u) return;
      is_masked = Ballot(!mine_.IsWhole()) != 0u;
    }
    use(is_masked);
  }
  /// The same for who computes all of the tile.
  KVIT_DEVICE void Find() {
    const KeySet set = scheduler_.mask().Set(work_.of, TokenOf(scheduler_, work_, row_));
    KVIT_UNROLL
    for (int i = 0; i < Bits::kWords; ++i) mine_.word[i] = set.Word(first_key_ + i * 32);
    position_ = set.PositionFrom(first_key_);
    has_branches_ = true;
  }
  KVIT_DEVICE Bits Seen(int row) const {
    Bits seen;
    KVIT_UNROLL
    for (int i = 0; i < Bits::kWords; ++i) seen.word[i] = Shuffle(mine_.word[i], row);
    return seen;
  }
  KVIT_DEVICE Bits SeenBySome() const {
    Bits seen = mine_;
    KVIT_UNROLL
    for (int i = 0; i < Bits::kWords; ++i) {
      KVIT_UNROLL
      for (int mask = 1; mask < WarpRows; mask *= 2) seen.word[i] |= ShuffleXor(seen.word[i], mask);
    }
    return seen;
  }
  KVIT_DEVICE LaneSeesBits<kRowTiles> OfLane(bool is_masked) const {
    LaneSeesBits<kRowTiles> seen;
    KVIT_UNROLL
    for (int i = 0; i < kRowTiles * 2; ++i) {
      uint32_t& bits = seen.row[i / 2][i % 2];
      bits = ~0u;
      if (is_masked) bits = LaneBits(Seen(i * 8 + LaneIndex() / 4));
    }
    return seen;
  }
  KVIT_DEVICE int FirstHidden(const KeyRange& common) const {
    return common.begin > first_key_ ? 0 : Max(0, common.end - first_key_);
  }

  KVIT_DEVICE GeneralScore::Row RowOf(const GeneralScore& score) const {
    const int token = TokenOf(scheduler_, work_, row_), group = scheduler_.group();
    const int head = work_.row_tile * Scheduler::kRows + row_ - token * group;  // of the group's
    return score.RowOf(work_.head * group + Min(head, group - 1), scheduler_.mask().PositionOf(work_.of, token));
  }
  template <class Use>
  KVIT_DEVICE void WithPositions(Use&& use) const {
    if (has_branches_) {
      use([&](int row) {
        const Bits seen = Seen(row);
        const int first = Shuffle(position_, row);
        return [=](int token) { return first + seen.CountBefore(token); };
      });
    } else {
      use([&](int) { return [&](int token) { return first_key_ + token; }; });
    }
  }

  /// (row) -> the factor of its scores, of the rows from `first_row` on.
  static KVIT_DEVICE auto Factors(const GeneralScore& score, const Scheduler& scheduler, const Work& work,
                                  int first_row) {
    return [&score, &scheduler, &work, first_row](int row) {
      const int token = TokenOf(scheduler, work, first_row + row);
      return score.Factor(scheduler.mask().PositionOf(work.of, token));
    };
  }

 private:
  // The query token of a row, that of the last one for rows that do not exist.
  static KVIT_DEVICE int TokenOf(const Scheduler& scheduler, const Work& work, int row) {
    return Min(scheduler.TokenOfRow(work, row), work.of.new_tokens - 1);
  }
  // Of every eight bits the two of this lane's tokens.
  static KVIT_DEVICE uint32_t LaneBits(const Bits& seen) {
    uint32_t bits = 0u;
    KVIT_UNROLL
    for (int i = 0; i < Bits::kWords; ++i) {
      const uint32_t pairs = seen.word[i] >> LaneIndex() % 4 * 2 & 0x03030303u;
      bits |= ((pairs | pairs >> 6 | pairs >> 12 | pairs >> 18) & 0xffu) << i * 8;
    }
    return bits;
  }

  const Scheduler& scheduler_;
  const Work& work_;
  int row_, first_key_;        // of this lane, in the row tile
  Bits mine_ = {};             // what it sees,
  int position_ = 0;           // and where the first key stands that it sees, as it has it: the others follow
  bool has_branches_ = false;  // whether keys may stand elsewhere than in the sequence
};

}  // namespace kvit

#endif  // KVIT_ATTENTION_GENERAL_ROWS_CUH
