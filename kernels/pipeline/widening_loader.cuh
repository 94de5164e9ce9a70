// Brings the tiles of one ring, of K or of V, as codes by TMA, and widens them for a matrix unit that reads 16 bits.
#ifndef KVIT_PIPELINE_WIDENING_LOADER_CUH
#define KVIT_PIPELINE_WIDENING_LOADER_CUH

#include <stdint.h>

#include "abi/params.h"
#include "cache/fast_divide.cuh"
#include "cache/fault.cuh"
#include "iterator/sm90.cuh"
#include "pipeline/box_loader.cuh"
#include "platform/platform.cuh"
#include "quant/widening.cuh"

namespace kvit {

/// Codes on their way: granules of 32 tokens, which is what lanes of a warp look after, one each.
template <class T, class Codec, int Dim, int Slots>
struct CodeSlots {
  static constexpr int kTokens = 32, kSlots = Slots;
  using Iterator = Sm90GmemIterator<typename Codec::template Element<T>, Dim, kTokens>;
  using Layout = typename Iterator::Layout;

  alignas(1024) char data[Slots][Layout::kBytes];

  /// Of each slot, whose codes are there; apart from these, which lie in steps of 1024 bytes.
  struct Barriers {
    uint64_t full[Slots];

    /// One thread calls, before a barrier of all.
    KVIT_DEVICE void Init() {
      for (uint64_t& barrier : full) InitBarrier(&barrier, 1);
    }
  };
};

/// One warp, which asks for granule after granule, some ahead of those that it widens into the ring's tiles as soon as
/// their slots are free.
///
///   asked for       | granule 0 | 1 | 2 | 3 | 4 ...        TMA, into CodeSlots
///   widened                             | 0 | 1 | 2 ...    this warp, into a tile of four of them
template <class Codec, int Dim, class Ring, int Tokens, int Stages, class Codes>
class WideningLoader {
  static constexpr int kGranule = Codes::kTokens, kGranules = Tokens / kGranule;  // of a tile
  using RawLayout = typename Codes::Layout;
  using Wide = Widening<Codec>;

 public:
  KVIT_DEVICE WideningLoader(const KvitDecodeParams& params, const KvitTensorMap& map, Codes& codes,
                             typename Codes::Barriers& barriers, Ring& ring, BoxSlots<Stages>& slots)
      : params_(params),
        map_(map),
        codes_(codes),
        barriers_(barriers),
        ring_(ring),
        slots_(slots),
        page_of_(params.page_size) {}

  /// As BoxLoader::Run.
  template <class Plan, class Scheduler, class Sync>
  KVIT_DEVICE void Run(Plan& plan, const Scheduler& scheduler, bool reports_faults, Sync&& sync) {
    bool is_synced = false;
    for (uint32_t count = 0;; ++count) {
      WidenAll();  // what is to come may wait for what has come
      const auto& now = plan.Read(count);
      if (!now.exists) return;
      const auto& work = now.work;
      const int32_t* const pages = params_.table.pages + work.of.pages;
      const int old = work.of.OldTokens(), end = work.of.length, begin = FirstKey(scheduler, work);
      const int last = now.visible.last * kGranules;
      int granule = now.visible.first * kGranules;
      Place place = granule < last ? Find(pages, granule, begin, end) : Place{};
      for (; granule < last; ++granule) {
        if (!is_synced && (granule + 1) * kGranule > old) {
          sync();
          is_synced = true;
        }
        const Place next = granule + 1 < last ? Find(pages, granule + 1, begin, end) : place;
        if (asked_ - widened_ == uint32_t(Codes::kSlots)) Widen();
        const bool is_lost = place.is_live && uint32_t(place.page) >= uint32_t(params_.cache.num_pages);
        Ask(place, is_lost, work.head);
        if (reports_faults && is_lost) {
          const auto slot = int32_t(page_of_(uint32_t(granule * kGranule + LaneIndex())));
          ReportFault(params_.fault, {KVIT_FAULT_PAGE, work.sequence, slot, place.page});
        }
        place = next;
      }
      plan.Release(count);
    }
  }

 private:
  /// Where this lane's token of a granule is, if the sequence has it and somebody may see it.
  struct Place {
    bool is_live;
    int32_t page;
    int token;  // in its page
  };

  template <class Scheduler, class Work>
  KVIT_DEVICE int FirstKey(const Scheduler& scheduler, const Work& work) const {
    if constexpr (Scheduler::kHasBegin) {
      return scheduler.FirstKey(work) & -params_.box_tokens;  // boxes are read whole
    } else {
      return 0;
    }
  }

  KVIT_DEVICE Place Find(const int32_t* pages, int granule, int begin, int end) const {
    const int token = granule * kGranule + LaneIndex();
    const bool is_live = begin <= token && token < end;
    const auto slot = int32_t(page_of_(uint32_t(token)));
    return {is_live, is_live ? LoadGlobal<int32_t>(pages + slot) : -1, token - slot * params_.cache.page_size};
  }

  KVIT_DEVICE void Ask(const Place& place, bool is_lost, int head) {
    const auto slot = int(asked_ % Codes::kSlots);
    const bool is_found = place.is_live && !is_lost;
    has_lost_ |= uint32_t(Ballot(is_lost) != 0u) << slot;
    if (LaneIndex() == 0) ArriveExpecting(&barriers_.full[slot], RawLayout::kBytes);
    SyncWarp();
    if ((LaneIndex() & (params_.box_tokens - 1)) == 0) {
      const Box box = {is_found ? place.page : -1, place.token, head};
      Codes::Iterator::template Prefetch<false>(map_, box, codes_.data[slot], LaneIndex(), &barriers_.full[slot]);
    }
    ++asked_;
  }

  KVIT_DEVICE void WidenAll() {
    while (asked_ != widened_) Widen();
  }

  // The granule that was asked for longest ago.
  KVIT_DEVICE void Widen() {
    const auto slot = int(widened_ % Codes::kSlots), part = int(widened_ % kGranules);
    const uint32_t tile = widened_ / kGranules;
    const auto stage = int(tile % Stages);
    if (part == 0) slots_.barriers.WaitFree(stage, tile / Stages);
    WaitBarrier(&barriers_.full[slot], widened_ / Codes::kSlots & 1u);
    WidenRows(codes_.data[slot], ring_.Tile(stage, 0) + part * kGranule * Ring::Layout::kSpan);
    // The matrix unit reads them as such a copy would. Once a tile: a fence waits for all that is under way.
    if (part == kGranules - 1) FenceAsyncCopies();
    SyncWarp();  // the slot may be asked for again
    was_lost_ |= has_lost_ >> slot & 1u;
    has_lost_ &= ~(1u << slot);
    if (part == kGranules - 1) {
      if (LaneIndex() == 0) {
        StoreShared(&slots_.has_faulted[stage], int(was_lost_));
        Arrive(&slots_.barriers.full[stage]);
      }
      was_lost_ = 0;
    }
    ++widened_;
  }

  // Eight channels of a row a lane and turn, some turns together: loads do not wait for the stores before them.
  static KVIT_DEVICE void WidenRows(const char* from, char* to) {
    constexpr int kVectors = Dim / 8, kRows = 32 / kVectors;    // of a row; of a turn
    constexpr int kPattern = Max(8 / kRows, 1), kTogether = 4;  // turns after which swizzles are the same again
    const int first = LaneIndex() / kVectors, vector = LaneIndex() % kVectors;
    int from_offset[kPattern], to_offset[kPattern];
    KVIT_UNROLL
    for (int i = 0; i < kPattern; ++i) {
      from_offset[i] = RawLayout::Offset(i * kRows + first, vector * int(sizeof(typename Wide::Bytes)));
      to_offset[i] = Ring::Layout::Offset(i * kRows + first, vector * 16);
    }
    KVIT_UNROLL
    for (int turn = 0; turn < kGranule / kRows; turn += kTogether) {
      typename Wide::Bytes codes[kTogether];
      const auto row = [&](int i) { return (turn + i) / kPattern * kPattern * kRows; };
      KVIT_UNROLL
      for (int i = 0; i < kTogether; ++i) {
        codes[i] = LoadShared<typename Wide::Bytes>(from + from_offset[i % kPattern] + row(i) * RawLayout::kSpan);
      }
      KVIT_UNROLL
      for (int i = 0; i < kTogether; ++i) {
        StoreShared(to + to_offset[i % kPattern] + row(i) * Ring::Layout::kSpan, Wide::Of(codes[i]));
      }
    }
  }

  const KvitDecodeParams& params_;
  const KvitTensorMap& map_;
  Codes& codes_;
  typename Codes::Barriers& barriers_;
  Ring& ring_;
  BoxSlots<Stages>& slots_;
  FastDivide page_of_;
  uint32_t asked_ = 0, widened_ = 0;  // granules so far
  uint32_t has_lost_ = 0;             // a bit for each slot: whether its granule has rows that could not be found
  uint32_t was_lost_ = 0;             // whether an earlier granule of the tile had such
};

}  // namespace kvit

#endif  // KVIT_PIPELINE_WIDENING_LOADER_CUH
