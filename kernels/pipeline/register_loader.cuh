// Streams the K and V tiles of a CTA's range into shared memory through registers: for GPUs that copy no memory
// asynchronously.
#ifndef KVIT_PIPELINE_REGISTER_LOADER_CUH
#define KVIT_PIPELINE_REGISTER_LOADER_CUH

#include "cache/fast_divide.cuh"
#include "cache/fault.cuh"
#include "pipeline/tile_walk.cuh"
#include "platform/platform.cuh"

namespace kvit {

/// As CpAsyncLoader with two stages, but the newest tile is in registers, and goes to shared memory when the next one
/// is asked for: then the one before has been consumed, so that one slot is enough.
///
///   calls         Prefetch(0)  Prefetch(1)   tile 0 is   Prefetch(0)   tile 1 is
///   registers     tile 0       tile 1        consumed    tile 2        consumed
///   the slot                   tile 0                    tile 1
template <class Scheduler, class TileIter, class KeyRing, class ValueRing>
class RegisterLoader {
 public:
  KVIT_DEVICE RegisterLoader(const KvitDecodeParams& params, const Scheduler& scheduler,
                             const WorkIterator<Scheduler>& works, KeyRing& keys, ValueRing& values,
                             int band = WarpIndex(), int lane = LaneIndex())
      : params_(params),
        walk_(scheduler, works, band),
        tiles_(params.cache, params.table, FastDivide(params.page_size), band, lane),
        k_(band, lane),
        v_(band, lane) {
    keys.Bind(k_, params.cache.k_dim);
    values.Bind(v_, params.cache.v_dim);
    Begin();
  }

  /// Brings the tile before into the slot, and begins to load the next one, if there is one: that of stage `stage`.
  KVIT_DEVICE void Prefetch(int stage) {
    if (is_loaded_) {
      k_.Save(k_fragment_);
      v_.Save(v_fragment_);
      is_loaded_ = false;
    }
    if (walk_.Done()) return;
    tiles_.Visit([&](const auto& rows) {
      k_.template Load<false>(rows, k_fragment_, 0);
      v_.template Load<false>(rows, v_fragment_, 0);
    });
    is_loaded_ = true;
    const bool faulted = Ballot(tiles_.faulted()) != 0;
    faulted_stages_ = (faulted_stages_ & ~(1u << stage)) | uint32_t(faulted) << stage;
    if (tiles_.faulted()) ReportFault(params_.fault, tiles_.fault());
    if (walk_.Next()) {
      tiles_.Advance();
    } else {
      Begin();
    }
  }

  KVIT_DEVICE bool NextIsNew() const { return walk_.IsNew(); }

  /// Whether the tile of stage `stage` has rows that could not be found. The same in all lanes.
  KVIT_DEVICE bool Faulted(int stage) const { return faulted_stages_ >> stage & 1u; }

 private:
  KVIT_DEVICE void Begin() {
    if (walk_.Done()) return;
    tiles_.SetSequence(walk_.work().sequence, walk_.work().head);
    if constexpr (Scheduler::kHasBegin) tiles_.SetBegin(walk_.FirstKey());
    tiles_.SetTile(walk_.tile());
  }

  const KvitDecodeParams& params_;
  TileWalk<Scheduler, KeyRing::Map::kFootprintS> walk_;
  TileIter tiles_;
  typename KeyRing::Iterator k_;
  typename ValueRing::Iterator v_;
  typename KeyRing::Iterator::Fragment k_fragment_;
  typename ValueRing::Iterator::Fragment v_fragment_;
  bool is_loaded_ = false;  // whether the fragments hold a tile
  uint32_t faulted_stages_ = 0;
};

}  // namespace kvit

#endif  // KVIT_PIPELINE_REGISTER_LOADER_CUH
