// Streams the K and V tiles of a CTA's range into rings in shared memory through registers: for GPUs that copy no
// memory asynchronously.
#ifndef KVIT_PIPELINE_REGISTER_LOADER_CUH
#define KVIT_PIPELINE_REGISTER_LOADER_CUH

#include "cache/fast_divide.cuh"
#include "cache/fault.cuh"
#include "pipeline/tile_walk.cuh"
#include "platform/platform.cuh"

namespace kvit {

/// As CpAsyncLoader, but the newest tile is in registers: it goes to its ring slot when the next one is asked for, or
/// when it is waited for.
///
///   two slots     Prefetch(0)  Prefetch(1)             Land(0)  ...  Prefetch(0)
///   registers     tile 0       tile 1                  tile 1        tile 2
///   slots                      tile 0, -               tile 0, -     -, tile 1
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

  /// Loads the next tile, if there is one, which is for ring slot `stage`.
  KVIT_DEVICE void Prefetch(int stage) {
    Save();
    if (walk_.Done()) return;
    tiles_.Visit([&](const auto& rows) {
      k_.template Load<false>(rows, k_fragment_, 0);
      v_.template Load<false>(rows, v_fragment_, 0);
    });
    loaded_stage_ = stage;
    const bool faulted = Ballot(tiles_.faulted()) != 0;
    faulted_stages_ = (faulted_stages_ & ~(1u << stage)) | uint32_t(faulted) << stage;
    if (tiles_.faulted()) ReportFault(params_.fault, tiles_.fault());
    if (walk_.Next()) {
      tiles_.Advance();
    } else {
      Begin();
    }
  }

  /// Afterwards the tile of ring slot `stage` is there for all lanes.
  KVIT_DEVICE void Land(int stage) {
    if (loaded_stage_ == stage) Save();
    SyncWarp();
  }

  KVIT_DEVICE bool NextIsNew() const { return walk_.IsNew(); }

  /// Whether the tile in ring slot `stage` has rows that could not be found. The same in all lanes.
  KVIT_DEVICE bool Faulted(int stage) const { return faulted_stages_ >> stage & 1u; }

 private:
  KVIT_DEVICE void Save() {
    if (loaded_stage_ < 0) return;
    k_.Save(k_fragment_, loaded_stage_);
    v_.Save(v_fragment_, loaded_stage_);
    loaded_stage_ = -1;
  }

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
  int loaded_stage_ = -1;  // whose tile the fragments hold; -1: nobody's
  uint32_t faulted_stages_ = 0;
};

}  // namespace kvit

#endif  // KVIT_PIPELINE_REGISTER_LOADER_CUH
