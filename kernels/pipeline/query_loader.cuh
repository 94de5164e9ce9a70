// Brings the query rows of a warp group into shared memory, as its matrix unit reads them.
#ifndef KVIT_PIPELINE_QUERY_LOADER_CUH
#define KVIT_PIPELINE_QUERY_LOADER_CUH

#include <stdint.h>

#include "core/types.h"
#include "layout/group_queries.cuh"
#include "pipeline/stage_barriers.cuh"
#include "platform/platform.cuh"

namespace kvit {

/// Barriers around a warp group's queries, which one warp loads while the group computes: of Slots row tiles.
template <int Slots>
struct QueryBarriers {
  StageBarriers<Slots> barriers;

  /// One thread calls, before a barrier of all. consumers: warps that release.
  KVIT_DEVICE void Init(int consumers) { barriers.Init(consumers); }
  /// Of row tile `count` of those that the group computes, from 0.
  KVIT_DEVICE void WaitFree(uint32_t count) { barriers.WaitFree(int(count % Slots), count / Slots); }
  KVIT_DEVICE void WaitFull(uint32_t count) { barriers.WaitFull(int(count % Slots), count / Slots); }
  /// One thread calls.
  KVIT_DEVICE void Fill(uint32_t count) { Arrive(&barriers.full[count % Slots]); }
  KVIT_DEVICE void Release(uint32_t count) { barriers.Release(int(count % Slots)); }
};

/// Begins to load. All lanes of a warp call. `walk` is at the first row, of which there are `rows`; the others become
/// zeros.
template <class T, int HeadDim, class QueryWalk>
KVIT_DEVICE void LoadQueries(GroupQueries<T, HeadDim>& queries, QueryWalk walk, int rows) {
  using Queries = GroupQueries<T, HeadDim>;
  constexpr int kRowsAtOnce = 32 / Queries::kVectors, kTurns = Queries::kRows / kRowsAtOnce;
  const int vector = LaneIndex() % Queries::kVectors, first = LaneIndex() / Queries::kVectors;
  walk.Advance(first);
  constexpr int kPattern = Max(8 / kRowsAtOnce, 1);  // turns after which the swizzle is the same again
  KVIT_ROLLED
  for (int turn = 0; turn < kTurns; turn += kPattern) {
    KVIT_UNROLL
    for (int i = 0; i < kPattern; ++i) {
      const int row = (turn + i) * kRowsAtOnce + first;
      CopyAsync<16>(queries.Vector(row, vector), walk.address + vector * 16, row < rows);
      walk.Advance(kRowsAtOnce);
    }
  }
  CopyAsyncCommit();
}

/// The same of rows that have more vectors than a warp has lanes: every `step`-th row from row `first` on, where `walk`
/// is.
template <class T, int HeadDim, class QueryWalk>
KVIT_DEVICE void LoadWideQueries(GroupQueries<T, HeadDim>& queries, QueryWalk walk, int rows, int first, int step) {
  using Queries = GroupQueries<T, HeadDim>;
  KVIT_ROLLED
  for (int row = first; row < Queries::kRows; row += step) {
    KVIT_UNROLL
    for (int i = 0; i < CeilDiv(Queries::kVectors, 32); ++i) {
      const int vector = i * 32 + LaneIndex();
      if (vector < Queries::kVectors) {
        CopyAsync<16>(queries.Vector(row, vector), walk.address + vector * 16, row < rows);
      }
    }
    walk.Advance(step);
  }
  CopyAsyncCommit();
}

/// One warp brings the queries of a warp group, whose first row in a row tile is `first`, of a row tile that is the
/// count-th of its work: load(slot, walk, rows) does, and returns when they are there.
template <int Slots, class Work, class Scheduler, class Load>
KVIT_DEVICE void BringQueries(QueryBarriers<Slots>& barriers, int first, const Work& work, uint32_t count,
                              const Scheduler& scheduler, Load&& load) {
  barriers.WaitFree(count);
  load(int(count % Slots), scheduler.QueriesFrom(work, first), scheduler.NumRows(work) - first);
  FenceAsyncCopies();  // the matrix unit reads them as such a copy would
  SyncWarp();
  if (LaneIndex() == 0) barriers.Fill(count);
}

}  // namespace kvit

#endif  // KVIT_PIPELINE_QUERY_LOADER_CUH
