// What a warp's rows see of a tile, where warps have rows to themselves: variant `plain`.
#ifndef KVIT_ATTENTION_CAUSAL_ROWS_CUH
#define KVIT_ATTENTION_CAUSAL_ROWS_CUH

#include "attention/score.cuh"
#include "attention/seen_tokens.cuh"
#include "core/constants.cuh"
#include "core/types.h"
#include "platform/platform.cuh"
#include "schedule/work_tile.cuh"

namespace kvit {

/// WarpRows rows of a row tile, from row `first_row` on, and a tile of Tokens tokens, whose first is `first_key` of its
/// sequence: each row sees it up to an end. What such a class has:
///
///   Look(common, use)   calls use(is_masked) for what is to be computed of the tile: not at all where no row sees any,
///                       Known<false> or false where all rows see all of it. All lanes call. What follows but
///                       RowOf and WithPositions is known then
///   Find()              the same for who computes all of it
///   Seen(row)           what a row of the warp sees, all lanes for the same one
///   SeenBySome()        at least what any of the rows sees
///   OfLane(is_masked)   what this lane's rows see of its tokens
///   FirstHidden(common) the first token of the tile that some row of the row tile does not see
///   RowOf, WithPositions   as RowSoftmax::Modify has them, where scores change
template <class Scheduler, int WarpRows, int Tokens>
class CausalRows {
  static constexpr int kRowTiles = WarpRows / 16;

 public:
  using Work = typename Scheduler::Work;

  KVIT_DEVICE CausalRows(const Scheduler& scheduler, const Work& work, int first_row, int first_key)
      : scheduler_(scheduler), work_(work), first_row_(first_row), first_key_(first_key) {}

  template <class Use>
  KVIT_DEVICE void Look(const KeysFromFirst& common, Use&& use) const {
    if (first_key_ + Tokens <= common.end) {
      use(Known<false>{});
    } else {
      use(Known<true>{});
    }
  }
  KVIT_DEVICE void Find() const {}
  KVIT_DEVICE SeenFromFirst Seen(int row) const {
    return {Min(scheduler_.Visible(work_, first_row_ + row).end - first_key_, Tokens)};
  }
  KVIT_DEVICE SeenFromFirst SeenBySome() const { return {Min(scheduler_.MostEnd(work_) - first_key_, Tokens)}; }
  KVIT_DEVICE LaneSeesAll OfLane(Known<false>) const { return {}; }
  KVIT_DEVICE LaneSeesFromFirst<kRowTiles> OfLane(Known<true>) const {
    LaneSeesFromFirst<kRowTiles> seen;
    KVIT_UNROLL
    for (int i = 0; i < kRowTiles * 2; ++i) seen.row[i / 2][i % 2] = Seen(i * 8 + LaneIndex() / 4);
    return seen;
  }
  KVIT_DEVICE int FirstHidden(const KeysFromFirst& common) const { return Max(0, common.end - first_key_); }

  static KVIT_DEVICE NoFactor Factors(const PlainScore&, const Scheduler&, const Work&, int) { return {}; }

 private:
  const Scheduler& scheduler_;
  const Work& work_;
  int first_row_, first_key_;
};

}  // namespace kvit

#endif  // KVIT_ATTENTION_CAUSAL_ROWS_CUH
