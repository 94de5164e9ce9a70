// What all tile loaders share: whose elements a thread moves, and where they go.
#ifndef KVIT_ITERATOR_BASE_CUH
#define KVIT_ITERATOR_BASE_CUH

#include "core/array.cuh"
#include "core/macros.h"
#include "core/sub_byte.cuh"
#include "layout/raked_thread_map.cuh"
#include "layout/smem_accessor.cuh"
#include "platform/platform.cuh"

namespace kvit {

/// One thread's share of the copying of [Map::kDimS, Map::kDimC] tiles of T from global to shared memory. Thread
/// coordinates are arguments, so that a plain C++ test can ask for any thread.
template <class T, class Map, class SmemLayout>
class BaseGmemIterator {
 public:
  using ElementType = T;
  using ThreadMap = Map;
  using Layout = SmemLayout;
  using AccessType = Array<T, Map::kAccessC>;
  using Pointer = PointerTo<T>;
  static constexpr int kIterCount = Map::kIterS * Map::kIterC;
  /// Whether SetDim says how many channels a row has.
  static constexpr bool kTakesDim = false;
  /// A thread's elements of a tile in registers: access (i, j) as Map deals them.
  using Fragment = AccessType[Map::kIterS][Map::kIterC];

  static_assert(Map::kDimS == SmemLayout::kS && Map::kDimC == SmemLayout::kC,
                "thread map and shared-memory layout must describe the same tile");
  static_assert(Map::kAccessC * kBitsOf<T> % 8 == 0 && sizeof(AccessType) <= 16 &&
                    LowBit(sizeof(AccessType)) == sizeof(AccessType),
                "an access must be 1, 2, 4, 8 or 16 bytes");
  static_assert(SmemLayout::KeepsRuns(Map::kAccessC),
                "this swizzle or atom splits or misaligns the accesses of the thread map: Base must be at least "
                "log2(elements per access)");

  KVIT_DEVICE explicit BaseGmemIterator(int warp = WarpIndex(), int lane = LaneIndex())
      : offset_(Map::Offset(warp, lane)) {}

  /// Binds the iterator to a ring of tiles, aligned to 16 bytes.
  KVIT_DEVICE void SetSmem(Pointer smem) { smem_ = SmemAccessor<T, SmemLayout>(smem); }

  /// Zeroes this thread's elements of the tile in ring slot `pipe_iter`.
  KVIT_DEVICE void ClearSmem(int pipe_iter = 0) {
    KVIT_UNROLL
    for (int i = 0; i < Map::kIterS; ++i) {
      KVIT_UNROLL
      for (int j = 0; j < Map::kIterC; ++j) {
        const Coord at = At(i, j);
        if (Map::Covers(at)) smem_.Store(at.s, at.c, AccessType{}, pipe_iter * SmemLayout::kSize);
      }
    }
  }

  /// Where this thread's access (i, j) lies in the tile.
  KVIT_DEVICE Coord At(int i, int j) const { return {offset_.s + i * Map::kDeltaS, offset_.c + j * Map::kDeltaC}; }

 protected:
  Coord offset_;
  SmemAccessor<T, SmemLayout> smem_;
};

/// Reads a tile back from shared memory.
template <class T, class SmemLayout>
class BaseSmemIterator {
 public:
  using ElementType = T;
  using Layout = SmemLayout;
  using Pointer = PointerTo<T>;

  BaseSmemIterator() = default;
  KVIT_DEVICE explicit BaseSmemIterator(Pointer smem) : smem_(smem) {}

  KVIT_DEVICE void SetSmem(Pointer smem) { smem_ = SmemAccessor<T, SmemLayout>(smem); }

  /// N channels of token s from c on (a multiple of N), of the tile in ring slot `pipe_iter`.
  template <int N>
  KVIT_DEVICE Array<T, N> Load(int s, int c, int pipe_iter = 0) const {
    return smem_.template Load<N>(s, c, pipe_iter * SmemLayout::kSize);
  }

 protected:
  SmemAccessor<T, SmemLayout> smem_;
};

}  // namespace kvit

#endif  // KVIT_ITERATOR_BASE_CUH
