// Streams the K and V tiles of a CTA's range into rings in shared memory by the tensor memory accelerator (TMA), ahead
// of whoever computes on them.
#ifndef KVIT_PIPELINE_TMA_LOADER_CUH
#define KVIT_PIPELINE_TMA_LOADER_CUH

#include <stdint.h>

#include "abi/params.h"
#include "cache/fast_divide.cuh"
#include "cache/fault.cuh"
#include "cache/pool_set.cuh"
#include "iterator/sm90.cuh"
#include "pipeline/tile_walk.cuh"
#include "platform/platform.cuh"

namespace kvit {

/// One warp's share of the loading: its band of every tile. A lane looks after some tokens of the band, one or two
/// neighbours at a time: it looks up their page one tile ahead, copies their parameters, and where a box begins with
/// them, begins the box's copy.
///
///   band of 32 tokens, boxes of 8     lane  0        8        16       24
///                                     box   0 ------ 1 ------ 2 ------ 3 ------
template <class Scheduler, class KeyRing, class ValueRing, int Tokens, int Stages, int Neighbours>
class TmaLoader {
 public:
  /// Barriers that count the bytes of a tile. Keys are asked for first: there is work to do with them while values are
  /// on their way.
  struct Landed {
    uint64_t keys, values;
  };
  static constexpr bool kHasParameters = KeyRing::kHasParameters || ValueRing::kHasParameters;

  /// landed  [Stages], this band's
  KVIT_DEVICE TmaLoader(const KvitDecodeParams& params, const Scheduler& scheduler,
                        const WorkIterator<Scheduler>& works, KeyRing& keys, ValueRing& values, Landed* landed,
                        int band = WarpIndex(), int lane = LaneIndex())
      : params_(params),
        cache_(params.cache),
        keys_(keys),
        values_(values),
        landed_(landed),
        band_(band),
        lane_(lane),
        walk_(scheduler, works, band),
        page_of_(params.page_size) {
    Begin();
  }

  /// Makes a band's barriers. All lanes of a warp call, before anything else.
  static KVIT_DEVICE void Init(const KvitDecodeParams& params, Landed* landed) {
    if (ThreadIndex() == 0) {
      PrefetchTensorMap(params.k_map);
      PrefetchTensorMap(params.v_map);
    }
    if (LaneIndex() == 0) {
      KVIT_UNROLL
      for (int stage = 0; stage < Stages; ++stage) {
        InitBarrier(&landed[stage].keys, 1);
        InitBarrier(&landed[stage].values, 1);
      }
      FenceBarrierInit();
    }
    SyncWarp();
  }

  /// Begins to copy the next tile, if there is one, into ring slot `stage`, which all lanes have left.
  KVIT_DEVICE void Prefetch(int stage) {
    if (!walk_.Done()) {
      if (lane_ == 0) {
        ArriveExpecting(&landed_[stage].keys, KeyRing::Layout::kBytes);
        ArriveExpecting(&landed_[stage].values, ValueRing::Layout::kBytes);
      }
      bool is_bad = false;
      KVIT_UNROLL
      for (int r = 0; r < kRounds; ++r) {
        const int row = Row(r), live = Live(r);
        const bool found = live > 0 && uint32_t(page_[r]) < uint32_t(cache_.num_pages);
        const bool has_boxes = (r * kRoundTokens & (params_.box_tokens - 1)) == 0;  // this round, for any lane
        if (has_boxes && row < Tokens && (Row(0) & (params_.box_tokens - 1)) == 0) {
          const Box box = {found ? page_[r] : -1, int(token_in_page_[r]), walk_.work().head};
          KeyRing::Iterator::Prefetch(params_.k_map, box, keys_.Tile(stage, band_), row, &landed_[stage].keys);
          ValueRing::Iterator::Prefetch(params_.v_map, box, values_.Tile(stage, band_), row, &landed_[stage].values);
        }
        CopyParameters<2>(keys_, stage, r, found ? live : 0);
        CopyParameters<3>(values_, stage, r, found ? live : 0);
        if (live > 0 && !found) {
          const auto slot = int32_t(page_of_(Token(r)));
          ReportFault(params_.fault, {KVIT_FAULT_PAGE, walk_.work().sequence, slot, page_[r]});
          is_bad = true;
        }
      }
      faulted_stages_ = (faulted_stages_ & ~(1u << stage)) | uint32_t(Ballot(is_bad) != 0) << stage;
      if (walk_.Next()) {
        ReadPages();
      } else {
        Begin();
      }
    }
    if (kHasParameters) CopyAsyncCommit();
  }

  KVIT_DEVICE bool Done() const { return walk_.Done(); }
  KVIT_DEVICE bool NextIsNew() const { return walk_.IsNew(); }

  /// Waits until the keys in ring slot `stage`, and all parameters, are there for all lanes.
  KVIT_DEVICE void WaitForKeys(int stage) {
    WaitBarrier(&landed_[stage].keys, phases_ >> stage & 1u);
    if (kHasParameters) {
      CopyAsyncWait<Stages - 1>();
      SyncWarp();
    }
  }
  /// After WaitForKeys: waits for the values.
  KVIT_DEVICE void WaitForValues(int stage) { WaitBarrier(&landed_[stage].values, phases_ >> stage & 1u); }
  /// All lanes have read the tile in ring slot `stage`, or will have before the warp meets.
  KVIT_DEVICE void Release(int stage) { phases_ ^= 1u << stage; }

  /// Whether the tile in ring slot `stage` has rows that could not be found. The same in all lanes.
  KVIT_DEVICE bool Faulted(int stage) const { return faulted_stages_ >> stage & 1u; }

  /// Zeroes the values of a tile from token s of the band on: a box reads whole pages, and whatever stands behind the
  /// sequence must not meet a weight of zero.
  KVIT_DEVICE void ClearValues(int stage, int s) { ValueRing::Iterator::Clear(values_.Tile(stage, band_), s); }

 private:
  static constexpr int kRoundTokens = 32 * Neighbours, kRounds = CeilDiv(Tokens, kRoundTokens);

  // Of this lane's tokens of a round: the first one's row in the band, and its place in the sequence.
  KVIT_DEVICE int Row(int r) const { return r * kRoundTokens + lane_ * Neighbours; }
  KVIT_DEVICE uint32_t Token(int r) const { return walk_.BandBegin() + uint32_t(Row(r)); }
  // How many of them the sequence has, and somebody may see.
  KVIT_DEVICE int Live(int r) const {
    if constexpr (Scheduler::kHasBegin) {
      if (Token(r) < uint32_t(begin_)) return 0;
    }
    const int left = int(uint32_t(length_) - Token(r));
    return Row(r) < Tokens ? Max(0, Min(left, Neighbours)) : 0;
  }

  KVIT_DEVICE void ReadPages() {
    KVIT_UNROLL
    for (int r = 0; r < kRounds; ++r) {
      const uint32_t token = Token(r), slot = page_of_(token);
      token_in_page_[r] = token - slot * uint32_t(cache_.page_size);
      if (Live(r) > 0) page_[r] = LoadGlobal<int32_t>(pages_ + slot);
    }
  }

  // Of the first `found` of this lane's tokens of a round, zeros of the others: the address may be of nothing there.
  // Two tokens' are one access where they lie side by side, as integers' do wherever there are neighbours.
  template <int Pool, class Ring>
  KVIT_DEVICE void CopyParameters(Ring& ring, int stage, int r, int found) const {
    if constexpr (Ring::kHasParameters) {
      const KvitPool& pool = cache_.pool[Pool];
      const int64_t address = parameters_[Pool - 2] + int64_t(uint32_t(page_[r])) * pool.page_stride +
                              int64_t(token_in_page_[r]) * pool.token_stride;
      uint32_t* const to = ring.Parameters(stage, band_, Row(r));
      if (Row(r) >= Tokens) return;
      if constexpr (Neighbours == 2 && Ring::kHasZero) {
        CopyAsyncPart<8>(to, reinterpret_cast<const char*>(address), found * 4);
      } else {
        KVIT_UNROLL
        for (int i = 0; i < Neighbours; ++i) {
          CopyAsync<4>(to + i, reinterpret_cast<const char*>(address + i * pool.token_stride), i < found);
        }
      }
    }
  }

  KVIT_DEVICE void Begin() {
    if (walk_.Done()) return;
    const auto& work = walk_.work();
    pages_ = params_.table.pages + work.of.pages;
    length_ = work.of.length;
    if constexpr (Scheduler::kHasBegin) begin_ = walk_.FirstKey() & -params_.box_tokens;  // boxes are read whole
    KVIT_UNROLL
    for (int i = 0; i < 2; ++i) parameters_[i] = RowAddress(cache_.pool[2 + i], 0, 0, work.head);
    ReadPages();
  }

  const KvitDecodeParams& params_;
  const KvitCache& cache_;
  KeyRing& keys_;
  ValueRing& values_;
  Landed* landed_;
  int band_, lane_;
  TileWalk<Scheduler, Tokens> walk_;
  FastDivide page_of_;
  const int32_t* pages_ = nullptr;
  int length_ = 0, begin_ = 0;
  int64_t parameters_[2] = {};  // where those of K and of V of the work tile's head begin, in page 0
  // Of this lane's tokens of the next tile.
  int32_t page_[kRounds] = {};
  uint32_t token_in_page_[kRounds] = {};
  uint32_t phases_ = 0, faulted_stages_ = 0;
};

}  // namespace kvit

#endif  // KVIT_PIPELINE_TMA_LOADER_CUH
