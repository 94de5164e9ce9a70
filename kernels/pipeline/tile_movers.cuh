// Ways for the threads of a CTA to bring a tile of K and V, whose rows are known, into ring slots that all of them
// read.
#ifndef KVIT_PIPELINE_TILE_MOVERS_CUH
#define KVIT_PIPELINE_TILE_MOVERS_CUH

#include "abi/params.h"
#include "platform/platform.cuh"

namespace kvit {

/// By cp.async. All threads call, once a tile and in this order:
///
///   Await()              this thread's part of the tile under way is there
///   a barrier            all parts are, and all threads have left the slot before
///   Land()               now all threads may read the tile
///   Load(rows, stage)    begins the next tile, that of stage `stage`
///   Skip()               in place of it, where there is no next tile
template <class KeyRing, class ValueRing>
class CpAsyncMover {
 public:
  static constexpr int kSlots = 2;  // of the rings

  KVIT_DEVICE CpAsyncMover(const KvitCache& cache, KeyRing& keys, ValueRing& values)
      : cache_(cache), keys_(keys), values_(values) {}

  static KVIT_DEVICE void Await() { CopyAsyncWait<0>(); }
  static KVIT_DEVICE void Land() {}
  template <class Rows>
  KVIT_DEVICE void Load(const Rows& rows, int stage) {
    typename KeyRing::Iterator k(WarpIndex(), LaneIndex());
    typename ValueRing::Iterator v(WarpIndex(), LaneIndex());
    keys_.Bind(k, cache_.k_dim);
    values_.Bind(v, cache_.v_dim);
    k.Prefetch(rows, KeyRing::Map::kDimS, stage);
    v.Prefetch(rows, ValueRing::Map::kDimS, stage);
    CopyAsyncCommit();
  }
  static KVIT_DEVICE void Skip() { CopyAsyncCommit(); }

 private:
  const KvitCache& cache_;
  KeyRing& keys_;
  ValueRing& values_;
};

/// The same through registers, where a tile waits until all threads have left the one before: one slot is enough.
template <class KeyRing, class ValueRing>
class RegisterMover {
 public:
  static constexpr int kSlots = 1;

  KVIT_DEVICE RegisterMover(const KvitCache& cache, KeyRing& keys, ValueRing& values)
      : cache_(cache), keys_(keys), values_(values) {}

  static KVIT_DEVICE void Await() {}
  KVIT_DEVICE void Land() {
    typename KeyRing::Iterator k(WarpIndex(), LaneIndex());
    typename ValueRing::Iterator v(WarpIndex(), LaneIndex());
    keys_.Bind(k, cache_.k_dim);
    values_.Bind(v, cache_.v_dim);
    k.Save(k_fragment_);
    v.Save(v_fragment_);
    SyncThreads();
  }
  template <class Rows>
  KVIT_DEVICE void Load(const Rows& rows, int) {
    typename KeyRing::Iterator(WarpIndex(), LaneIndex()).template Load<false>(rows, k_fragment_, 0);
    typename ValueRing::Iterator(WarpIndex(), LaneIndex()).template Load<false>(rows, v_fragment_, 0);
  }
  static KVIT_DEVICE void Skip() {}

 private:
  const KvitCache& cache_;
  KeyRing& keys_;
  ValueRing& values_;
  typename KeyRing::Iterator::Fragment k_fragment_;
  typename ValueRing::Iterator::Fragment v_fragment_;
};

}  // namespace kvit

#endif  // KVIT_PIPELINE_TILE_MOVERS_CUH
