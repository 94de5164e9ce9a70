// What a warp group of PrefillTmaKernel computes.
#ifndef KVIT_ENTRY_PREFILL_TMA_CONSUMER_CUH
#define KVIT_ENTRY_PREFILL_TMA_CONSUMER_CUH

#include <stdint.h>

#include "abi/params.h"
#include "attention/group_tile.cuh"
#include "core/constants.cuh"
#include "pipeline/work_plan.cuh"
#include "platform/platform.cuh"
#include "schedule/cta_range.cuh"

namespace kvit {

/// Computes the rows of a warp group of all work tiles of a CTA. Kernel says the types, and what lies where in shared
/// memory.
///
/// The tiles of all row tiles are one line: a turn begins the scores of a tile and the values of the one before, also
/// where that was the last of another row tile, which then ends. Most turns hide nothing and go the short way; the
/// others share one long way, since code that is seldom run is slow to come.
template <class Kernel>
class PrefillTmaConsumer {
  using Scheduler = typename Kernel::Scheduler;
  using Shared = typename Kernel::Shared;
  using Attention = typename Kernel::Attention;
  using Combiner = typename Kernel::Combiner;
  using Score = typename Kernel::Score;
  using Work = typename Scheduler::Work;
  using Rows = typename Kernel::Rows;
  static constexpr int kTileTokens = Kernel::kTileTokens, kStages = Kernel::kStages, kQuerySlots = Kernel::kQuerySlots;

 public:
  KVIT_DEVICE PrefillTmaConsumer(const KvitDecodeParams& params, const Scheduler& scheduler, const CtaRange& range,
                                 Shared& shared)
      : params_(params), scheduler_(scheduler), range_(range), shared_(InRegister(shared)), group_(WarpIndex() / 4) {}

  KVIT_DEVICE void Run() {
    Combiner combine(params_, scheduler_, range_, shared_.combine);
    Attention attention(params_.scale * 1.44269504088896341f, Score(params_), params_.cache.v_hadamard);
    while (GoOnSlowly(attention, combine)) {
      if constexpr (Score::kIsIdentity) {
        while (NextIsWhole() && GoOn(attention, Known<false>{})) continue;
      } else if (attention.ChangesScores()) {  // a loop of its own: the other stays short
        while (NextIsWhole() && GoOn(attention, Known<true>{})) continue;
      } else {
        while (NextIsWhole() && GoOn(attention, Known<false>{})) continue;
      }
    }
    combine.Join();
  }

 private:
  KVIT_DEVICE const Assignment<Work>& Now() const { return shared_.plan.At(row_tile_); }

  // Whether there is a next tile of the row tile, and all rows see all of it.
  KVIT_DEVICE bool NextIsWhole() const {
    if constexpr (Scheduler::kHasBegin) {
      if (tile_ + 1 < are_whole_.first) return false;
    }
    return tile_ + 1 < are_whole_.last;
  }

  // The next tile of the row tile, of which all rows see all. False where the warp has yet to weigh it. changes_scores,
  // a Known: whether score modifiers do.
  template <class ChangesScores>
  KVIT_DEVICE bool GoOn(Attention& attention, ChangesScores changes_scores) {
    ++tile_;
    shared_.ping_pong.Wait(group_, turn_);
    IssueScores(attention);
    IssueValues(attention);
    Pass();
    attention.template ScoresLanded<1>();
    ReleaseKeys(attention);
    const auto& tokens = Kernel::Feed::TokensOf(shared_, count_);
    if constexpr (Attention::kIsBold) {
      is_weighed_ = attention.WeighBoldly(RowsOf(Now().work), tokens, changes_scores, [&] { ReleaseValues(); });
      if (!is_weighed_) return false;
    } else {
      attention.Weigh(RowsOf(Now().work), Known<false>{}, tokens, false, changes_scores);
      attention.AllLanded();
      ReleaseValues();
      attention.Settle();
    }
    ++count_;
    return true;
  }

  // What GoOn has left to weigh; or the next tile, whatever it is: of which some row does not see all, or the first of
  // a row tile, or none where there is none to come; and what comes before it. Its products have ended before it is
  // weighed. False at the end.
  KVIT_DEVICE bool GoOnSlowly(Attention& attention, Combiner& combine) {
    const bool is_again = !is_weighed_;
    if (!is_again) {
      if (!BeginNext(attention, combine)) return false;
      if (!has_values_) {
        ReleaseQueries();
        tile_ = last_ = are_whole_.last = 0;
        return true;
      }
      ++tile_;
      ReleaseKeys(attention);
    }
    is_weighed_ = true;
    const Work& work = Now().work;
    Rows rows = RowsOf(work);
    rows.Find();
    const auto& tokens = Kernel::Feed::TokensOf(shared_, count_);
    attention.Weigh(rows, Known<true>{}, tokens, is_again, attention.ChangesScores());
    attention.Settle();
    if constexpr (!Attention::kIsFinite) from_special_ = rows.FirstHidden(scheduler_.Common(work));
    ++count_;
    return true;
  }

  // Makes the scores of the next tile, if there is one in its row tile, and adds the values of the one before. Where
  // that was the last of a row tile, this ends, and the next begins. False if there is none.
  KVIT_DEVICE bool BeginNext(Attention& attention, Combiner& combine) {
    if constexpr (!Attention::kIsFinite) {
      if (from_special_ < kTileTokens) AddSpecial(attention);
    }
    const bool is_first = tile_ == last_;
    bool has_tile = true;
    if (is_first) {
      ++row_tile_;
      const Assignment<Work>& now = shared_.plan.Read(row_tile_);
      has_tile = now.exists && !now.IsEmpty();
      if (now.exists) shared_.of_queries[group_].WaitFull(row_tile_);
      if (has_tile) Kernel::Feed::PrepareQueries(params_, shared_, int(row_tile_ % kQuerySlots), group_);
    }
    shared_.ping_pong.Wait(group_, turn_);
    if (has_tile && has_values_) {
      IssueScores(attention);
      IssueValues(attention);
      Pass();
      attention.AllLanded();
    } else {  // each for itself: the compiler would let products wait for each other that are begun here and there
      if (has_tile) {
        IssueScores(attention);
        attention.AllLanded();
      }
      if (has_values_) {
        IssueValues(attention);
        attention.AllLanded();
      }
      Pass();
    }
    if (has_values_) ReleaseValues();
    has_values_ = has_tile;
    if (!is_first) return true;
    if (row_tile_ != 0) {
      combine.Finish(attention, shared_.plan.At(row_tile_ - 1).work);
      shared_.plan.Release(row_tile_ - 1);
    }
    const Assignment<Work>& now = Now();
    if (!now.exists) return false;
    attention.Begin(Rows::Factors(Score(params_), scheduler_, now.work, WarpIndex() * 16),
                    Kernel::Feed::QueriesOf(shared_, row_tile_ % kQuerySlots, group_));
    if (now.work.of.is_bad) attention.Poison();
    tile_ = now.visible.first - 1;
    last_ = now.visible.last - 1;
    are_whole_ = now.are_whole;
    are_whole_.last = Min(are_whole_.last, now.visible.last);
    return true;
  }

  KVIT_DEVICE void Pass() {
    shared_.ping_pong.Pass(group_);
    ++turn_;
  }

  // Of the tile that is next on the line.
  KVIT_DEVICE void IssueScores(Attention& attention) {
    const int stage = int(count_ % kStages);
    shared_.of_keys.barriers.WaitFull(stage, count_ / kStages);
    attention.IssueScores(shared_.queries[row_tile_ % kQuerySlots][group_], shared_.keys.Tile(stage, 0));
  }
  KVIT_DEVICE void ReleaseKeys(Attention& attention) {
    const int stage = int(count_ % kStages);
    if (LoadShared<int>(&shared_.of_keys.has_faulted[stage]) != 0) attention.Poison();
    Release(&shared_.of_keys.barriers.free[stage]);
    if (tile_ == last_) ReleaseQueries();
  }
  // Of the tile before.
  KVIT_DEVICE int ValuesStage() const { return int((count_ - 1) % kStages); }
  KVIT_DEVICE void WaitForValues() { shared_.of_values.barriers.WaitFull(ValuesStage(), (count_ - 1) / kStages); }
  KVIT_DEVICE void IssueValues(Attention& attention) {
    WaitForValues();
    attention.IssueValues(shared_.values.Tile(ValuesStage(), 0));
  }
  KVIT_DEVICE void ReleaseValues() { Release(&shared_.of_values.barriers.free[ValuesStage()]); }

  // What is infinite or NaN of the values of the tile that was weighed last, from the first token that some row does
  // not see on, is added to the rows that see it, and then made 0 for the products. Both groups see the same tile and
  // decide alike. Rare.
  KVIT_DEVICE void AddSpecial(Attention& attention) {
    WaitForValues();
    char* const tile = shared_.values.Tile(ValuesStage(), 0);
    const bool has_special = Tile::HasSpecial(tile, from_special_, ThreadIndex() % 128, 128);
    if (SyncGroupOr(has_special)) {
      Rows rows = RowsOf(Now().work);
      rows.Find();
      attention.AddSpecial(rows, tile);
      Meet();  // both groups have read them
      Tile::ClearSpecial(tile, from_special_, ThreadIndex(), Kernel::kConsumers * 32);
      FenceAsyncCopies();  // before the matrix unit reads them
      Meet();
    }
    from_special_ = kTileTokens;
  }
  using Tile = GroupTile<typename Attention::Operand, typename Kernel::ValueRing::Layout, kTileTokens>;

  // What the calling warp's rows see of the tile that is weighed, or was last.
  KVIT_DEVICE Rows RowsOf(const Work& work) const { return {scheduler_, work, WarpIndex() * 16, tile_ * kTileTokens}; }

  KVIT_DEVICE void Meet() {
    Release(&shared_.met);
    WaitBarrier(&shared_.met, meetings_++ & 1u);
  }
  // All lanes of the calling warp have left what a barrier guards.
  static KVIT_DEVICE void Release(uint64_t* barrier) {
    SyncWarp();
    if (LaneIndex() == 0) Arrive(barrier);
  }
  KVIT_DEVICE void ReleaseQueries() {
    if (LaneIndex() == 0) shared_.of_queries[group_].Release(row_tile_);
  }

  const KvitDecodeParams& params_;
  const Scheduler& scheduler_;
  const CtaRange& range_;
  Shared& shared_;
  int group_;
  uint32_t row_tile_ = ~0u;               // the last that was begun, from 0
  int tile_ = 0, last_ = 0;               // of its tiles: the last that was begun, and the last
  decltype(Work::tiles) are_whole_ = {};  // of which all rows see all
  bool is_weighed_ = true;                // whether that tile has been weighed
  bool has_values_ = false;               // whether values of that tile are still to be added
  int from_special_ = kTileTokens;        // of that tile: the first token that some row does not see
  uint32_t count_ = 0;                    // tiles so far
  uint32_t turn_ = 0;                     // turns so far
  uint32_t meetings_ = 0;                 // of the two groups so far
};

}  // namespace kvit

#endif  // KVIT_ENTRY_PREFILL_TMA_CONSUMER_CUH
