// What a warp group of LatentKernel computes.
#ifndef KVIT_ENTRY_LATENT_CONSUMER_CUH
#define KVIT_ENTRY_LATENT_CONSUMER_CUH

#include <stdint.h>

#include "abi/params.h"
#include "attention/group_tile.cuh"
#include "core/constants.cuh"
#include "pipeline/work_plan.cuh"
#include "platform/platform.cuh"
#include "schedule/cta_range.cuh"

namespace kvit {

/// Computes a warp group's share of all work tiles of a CTA, in turns as PrefillTmaConsumer has them: a turn begins the
/// scores of a tile and the values of the one before. A tile is both, so that a piece of it is free when its values are
/// added, and what is beyond the values when its scores are there.
template <class Kernel>
class LatentConsumer {
  using Scheduler = typename Kernel::Scheduler;
  using Shared = typename Kernel::Shared;
  using Attention = typename Kernel::Attention;
  using Combiner = typename Kernel::Combiner;
  using Work = typename Scheduler::Work;
  static constexpr int kTileTokens = Kernel::kTileTokens, kStages = Kernel::kStages;
  static constexpr int kPieces = Kernel::Pieces::kCount;
  static constexpr int kEarlyPieces = 3;  // of a tile, whose scores are begun before values of the last are waited for

 public:
  KVIT_DEVICE LatentConsumer(const KvitDecodeParams& params, const Scheduler& scheduler, const CtaRange& range,
                             Shared& shared)
      : params_(params), scheduler_(scheduler), range_(range), shared_(shared) {}

  KVIT_DEVICE void Run() {
    Combiner combine(params_, scheduler_, range_, shared_.combine);
    Attention attention(params_.scale * 1.44269504088896341f, WarpIndex() / 4, shared_.exchange);
    while (GoOnSlowly(attention, combine)) {
      while (tile_ + 1 < are_whole_.last) GoOn(attention);
    }
    combine.Join();
  }

 private:
  KVIT_DEVICE const Assignment<Work>& Now() const { return shared_.plan.At(row_tile_); }

  // The next tile of the row tile, of which all rows see all.
  KVIT_DEVICE void GoOn(Attention& attention) {
    ++tile_;
    attention.IssueValues(LastTile());  // first, since its tile is what the next but one waits for
    IssueScores<0, kEarlyPieces>(attention);
    attention.template ValuesLanded<kEarlyPieces>();
    ReleaseValues();
    IssueScores<kEarlyPieces, kPieces>(attention);
    attention.AllLanded();
    NoteScores(attention);
    attention.Weigh(OwnRowsOf(Now().work), Known<false>{});
    attention.Settle();
    ++count_;
  }

  // The next tile, whatever it is: of which some row does not see all, or the first of a row tile, or none where there
  // is none to come; and what comes before it. Its products have ended before it is weighed. False at the end.
  KVIT_DEVICE bool GoOnSlowly(Attention& attention, Combiner& combine) {
    if (from_special_ < kTileTokens) AddSpecial(attention);
    const bool is_first = tile_ == last_;
    bool has_tile = true;
    if (is_first) {
      ++row_tile_;
      const Assignment<Work>& now = shared_.plan.Read(row_tile_);
      has_tile = now.exists && !now.IsEmpty();
      if (now.exists) WaitBarrier(&shared_.queries_full, row_tile_ & 1u);
    }
    if (has_tile && has_values_) {
      IssueScores<0, kPieces>(attention);
      attention.IssueValues(LastTile());
      attention.AllLanded();
    } else {  // each for itself: the compiler would let products wait for each other that are begun here and there
      if (has_tile) {
        IssueScores<0, kPieces>(attention);
        attention.AllLanded();
      }
      if (has_values_) {
        attention.IssueValues(LastTile());
        attention.AllLanded();
      }
    }
    if (has_values_) ReleaseValues();
    has_values_ = has_tile;
    if (is_first) {
      if (row_tile_ != 0) {
        combine.Finish(attention, shared_.plan.At(row_tile_ - 1).work);
        shared_.plan.Release(row_tile_ - 1);
      }
      const Assignment<Work>& now = Now();
      if (!now.exists) return false;
      attention.Begin();
      if (now.work.of.is_bad) attention.Poison();
      tile_ = now.visible.first - 1;
      last_ = now.visible.last - 1;
      are_whole_ = now.are_whole;
      are_whole_.last = Min(are_whole_.last, now.visible.last);
    }
    if (has_tile) {
      ++tile_;
      NoteScores(attention);
      const Work& work = Now().work;
      attention.Weigh(OwnRowsOf(work), Known<true>{});
      attention.Settle();
      from_special_ = RowsOf(work).FirstHidden(scheduler_.Common(work));
      ++count_;
    } else {
      Release(&shared_.queries_free);
      tile_ = last_ = are_whole_.last = 0;
    }
    return true;
  }

  // Of the tile that is next on the line.
  KVIT_DEVICE int Stage() const { return int(count_ % kStages); }
  template <int First, int Last>
  KVIT_DEVICE void IssueScores(Attention& attention) {
    attention.template IssueScores<First, Last>(shared_.queries, shared_.tiles.Tile(Stage(), 0), [this](int piece) {
      shared_.of_tiles.pieces[piece].WaitFull(Stage(), count_ / kStages);
    });
  }
  // Its scores are there: what is keys only is left.
  KVIT_DEVICE void NoteScores(Attention& attention) {
    if (LoadShared<int>(&shared_.of_tiles.has_faulted[Stage()]) != 0) attention.Poison();
    SyncWarp();  // before the flag is the next tile's
    Release(&shared_.of_tiles.pieces[0].free[Stage()]);
    if (tile_ == last_) Release(&shared_.queries_free);
  }
  // The tile before.
  KVIT_DEVICE int LastStage() const { return int((count_ - 1) % kStages); }
  KVIT_DEVICE char* LastTile() { return shared_.tiles.Tile(LastStage(), 0); }
  // Its values are added: the pieces that are the group's own are left. The other group has finished its scores of
  // them before, since the warps of both have exchanged the tile's weights.
  KVIT_DEVICE void ReleaseValues() {
    KVIT_UNROLL
    for (int piece = 1; piece < kPieces; piece += 2) {
      Release(&shared_.of_tiles.pieces[piece + WarpIndex() / 4].free[LastStage()]);
    }
  }

  // What is infinite or NaN of the group's channels of the tile that was weighed last, from the first token that some
  // row does not see on, is added to the rows that see it, and then made 0 for the products. Its scores are there in
  // both groups, since their warps have exchanged weights. Rare.
  KVIT_DEVICE void AddSpecial(Attention& attention) {
    char* const tile = LastTile();
    char* const own = tile + (attention.OwnChannels(tile) - tile);
    const bool has_special = Tile::HasSpecial(own, from_special_, ThreadIndex() % 128, 128);
    if (SyncGroupOr(has_special)) {
      attention.AddSpecial(RowsOf(Now().work), tile);
      SyncGroupOr(false);  // all of the group have read them
      Tile::ClearSpecial(own, from_special_, ThreadIndex() % 128, 128);
      FenceAsyncCopies();  // before the matrix unit reads them
      SyncGroupOr(false);
    }
    from_special_ = kTileTokens;
  }
  using Tile = GroupTile<typename Kernel::Element, typename Attention::OwnLayout, kTileTokens>;

  // What the calling warp's rows see of the tile that is weighed, or was last: of all its tokens, or the group's own.
  KVIT_DEVICE typename Kernel::Rows RowsOf(const Work& work) const {
    return {scheduler_, work, FirstRow(), tile_ * kTileTokens};
  }
  KVIT_DEVICE typename Kernel::OwnRows OwnRowsOf(const Work& work) const {
    return {scheduler_, work, FirstRow(), tile_ * kTileTokens + WarpIndex() / 4 * (kTileTokens / 2)};
  }
  static KVIT_DEVICE int FirstRow() { return WarpIndex() % 4 * 16; }

  // The calling warp has left what a barrier guards: all lanes have, since they have waited for products together.
  static KVIT_DEVICE void Release(uint64_t* barrier) {
    if (LaneIndex() == 0) Arrive(barrier);
  }

  const KvitDecodeParams& params_;
  const Scheduler& scheduler_;
  const CtaRange& range_;
  Shared& shared_;
  uint32_t row_tile_ = ~0u;               // the last that was begun, from 0
  int tile_ = 0, last_ = 0;               // of its tiles: the last that was begun, and the last
  decltype(Work::tiles) are_whole_ = {};  // of which all rows see all
  bool has_values_ = false;               // whether values of that tile are still to be added
  int from_special_ = kTileTokens;        // of that tile: the first token that some row does not see
  uint32_t count_ = 0;                    // tiles so far
};

}  // namespace kvit

#endif  // KVIT_ENTRY_LATENT_CONSUMER_CUH
