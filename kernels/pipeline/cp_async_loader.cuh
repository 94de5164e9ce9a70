// Streams the K and V tiles of a CTA's range into rings in shared memory by asynchronous copies (cp.async).
#ifndef KVIT_PIPELINE_CP_ASYNC_LOADER_CUH
#define KVIT_PIPELINE_CP_ASYNC_LOADER_CUH

#include "cache/fast_divide.cuh"
#include "cache/fault.cuh"
#include "pipeline/tile_walk.cuh"
#include "platform/platform.cuh"

namespace kvit {

/// One warp's share of the loading: its band of every tile.
template <class Scheduler, class TileIter, class KeyRing, class ValueRing>
class CpAsyncLoader {
 public:
  KVIT_DEVICE CpAsyncLoader(const KvitDecodeParams& params, const Scheduler& scheduler,
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

  /// Begins to copy the next tile, if there is one, into ring slot `stage`; one group of copies either way.
  KVIT_DEVICE void Prefetch(int stage) {
    if (!walk_.Done()) {
      tiles_.Visit([&](const auto& rows) {
        k_.Prefetch(rows, KeyRing::Map::kDimS, stage);
        v_.Prefetch(rows, ValueRing::Map::kDimS, stage);
      });
      const bool faulted = Ballot(tiles_.faulted()) != 0;
      faulted_stages_ = (faulted_stages_ & ~(1u << stage)) | uint32_t(faulted) << stage;
      if (tiles_.faulted()) ReportFault(params_.fault, tiles_.fault());
      if (walk_.Next()) {
        tiles_.Advance();
      } else {
        Begin();
      }
    }
    CopyAsyncCommit();
  }

  KVIT_DEVICE bool NextIsNew() const { return walk_.IsNew(); }

  /// Whether the tile in ring slot `stage` has rows that could not be found. The same in all lanes.
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
  uint32_t faulted_stages_ = 0;
};

}  // namespace kvit

#endif  // KVIT_PIPELINE_CP_ASYNC_LOADER_CUH
