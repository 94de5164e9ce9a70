// Brings the tiles of one ring, of K or of V, by the tensor memory accelerator (TMA), for warps that do nothing else.
#ifndef KVIT_PIPELINE_BOX_LOADER_CUH
#define KVIT_PIPELINE_BOX_LOADER_CUH

#include <stdint.h>

#include <type_traits>

#include "abi/params.h"
#include "cache/fast_divide.cuh"
#include "cache/fault.cuh"
#include "iterator/sm90.cuh"
#include "pipeline/stage_barriers.cuh"
#include "platform/platform.cuh"
#include "schedule/work_tile.cuh"

namespace kvit {

/// What the warps that load a ring and those that use it share besides its tiles.
template <int Stages>
struct BoxSlots {
  StageBarriers<Stages> barriers;
  int has_faulted[Stages];  // whether the tile has rows that could not be found
};

/// How a tile's boxes are asked for, all at once. Iterator begins the copies: Ring::Iterator, or where rows come as
/// codes, CodesInPlace.
template <class Ring, class Iterator, int Stages>
struct WholeTiles {
  const KvitTensorMap& map;
  Ring& ring;
  BoxSlots<Stages>& slots;
  StageBarriers<Stages>& landed;  // whose `full` barriers say that a tile is there: those of the slots or others

  /// All lanes call, for the tile behind `tiles` others. Whether it has rows that cannot be found; whether the lane
  /// begins a box of its rows from `row` on, and which.
  KVIT_DEVICE void Fill(uint32_t tiles, bool has_lost, bool begins, const Box& box, int row) const {
    const auto stage = int(tiles % Stages);
    slots.barriers.WaitFree(stage, tiles / Stages);
    if (LaneIndex() == 0) {
      StoreShared(&slots.has_faulted[stage], int(has_lost));
      landed.Expect(stage, Iterator::kBytes);
    }
    if (begins) Iterator::template Prefetch<false>(map, box, ring.Tile(stage, 0), row, &landed.full[stage]);
  }
};

/// One warp, which asks for tile after tile as soon as a slot is free. A lane looks after KVIT_LEAST_BOX_TOKENS tokens,
/// which are in one page: it looks up which one tile ahead, and where a box begins with them, begins the box's copy.
/// Tiles are kept in L2, since other CTAs want them too.
///
///   tile of 128 tokens, boxes of 64     lane   0               8               16 to 31
///                                       box    tokens 0 to 63  tokens 64 ...   -
template <class Filler, int Tokens>
class BoxLoader {
 public:
  KVIT_DEVICE BoxLoader(const KvitDecodeParams& params, const Filler& filler)
      : params_(params), filler_(filler), page_of_(params.page_size) {}

  /// Loads the tiles of all work of a plan. sync() is called once, when the first tile comes that has any of the call's
  /// new tokens, or never. Whether reports_faults, pages that the cache does not have are said to whoever asks for
  /// them.
  template <class Plan, class Scheduler, class Sync>
  KVIT_DEVICE void Run(Plan& plan, const Scheduler& scheduler, bool reports_faults, Sync&& sync) {
    bool is_synced = false;
    uint32_t tiles = 0;  // so far
    for (uint32_t count = 0;; ++count) {
      const auto& now = plan.Read(count);
      if (!now.exists) return;
      const auto& work = now.work;
      const int32_t* const pages = params_.table.pages + work.of.pages;
      const int last = now.visible.last, head = work.head, old = work.of.OldTokens();
      const auto keys = KeysOf(scheduler, work);
      Place place = Find(pages, now.visible.first, keys);
      for (int tile = now.visible.first; tile < last; ++tile, ++tiles) {
        if (!is_synced && (tile + 1) * Tokens > old) {
          sync();
          is_synced = true;
        }
        const Place next = tile + 1 < last ? Find(pages, tile + 1, keys) : place;
        const bool is_lost = place.is_live && uint32_t(place.page) >= uint32_t(params_.cache.num_pages);
        const uint32_t lost = Ballot(is_lost);
        const bool begins = Row() < Tokens && (Row() & (params_.box_tokens - 1)) == 0;
        filler_.Fill(tiles, lost != 0, begins, {place.is_live && !is_lost ? place.page : -1, place.token, head}, Row());
        if (reports_faults && is_lost) {
          const auto slot = int32_t(page_of_(uint32_t(tile * Tokens + Row())));
          ReportFault(params_.fault, {KVIT_FAULT_PAGE, work.sequence, slot, place.page});
        }
        place = next;
      }
      plan.Release(count);
    }
  }

 private:
  static constexpr int kLaneTokens = KVIT_LEAST_BOX_TOKENS;
  static_assert(Tokens <= 32 * kLaneTokens, "lanes look after all of a tile");

  /// Where this lane's first token of a tile is, if the sequence has it.
  struct Place {
    bool is_live;
    int32_t page;
    int token;  // in its page
  };

  static KVIT_DEVICE int Row() { return LaneIndex() * kLaneTokens; }

  // Boxes outside of these need not be there. A box is read whole.
  template <class Scheduler, class Work>
  KVIT_DEVICE auto KeysOf(const Scheduler& scheduler, const Work& work) const {
    if constexpr (Scheduler::kHasBegin) {
      return KeyRange{scheduler.FirstKey(work) & -params_.box_tokens, work.of.length};
    } else {
      return KeysFromFirst{work.of.length};
    }
  }

  template <class Keys>
  KVIT_DEVICE Place Find(const int32_t* pages, int tile, const Keys& keys) const {
    const int token = tile * Tokens + Row();
    bool is_live = Row() < Tokens && token < keys.end;
    if constexpr (!std::is_same_v<Keys, KeysFromFirst>) is_live = is_live && token >= keys.begin;
    const auto slot = int32_t(page_of_(uint32_t(token)));
    return {is_live, is_live ? LoadGlobal<int32_t>(pages + slot) : -1, token - slot * params_.cache.page_size};
  }

  const KvitDecodeParams& params_;
  Filler filler_;
  FastDivide page_of_;
};

}  // namespace kvit

#endif  // KVIT_PIPELINE_BOX_LOADER_CUH
