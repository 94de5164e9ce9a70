// The rows of a sequence that lies in pages, tile by tile.
#ifndef KVIT_CACHE_PAGED_ITERATOR_CUH
#define KVIT_CACHE_PAGED_ITERATOR_CUH

#include <stdint.h>

#include "abi/params.h"
#include "cache/fast_divide.cuh"
#include "cache/page_place.cuh"
#include "cache/pool_set.cuh"
#include "cache/sequence_view.cuh"
#include "core/macros.h"
#include "core/types.h"
#include "layout/raked_thread_map.cuh"
#include "platform/platform.cuh"

namespace kvit {

/// Finds the rows of a warp's band (Map::kFootprintS tokens of every Map::kDimS). Lane i looks up token i of the band,
/// so a tile may cross any number of pages of any size; OffsetPtr hands the row to the lanes that copy it.
///
///   page_size = 3   band   token 0 1 2 3 4 5 ...     lane 0 1 2 3 4 5    one load of the page table per lane and tile
///                          page  7 7 7 2 2 2                             serves all pools
///
/// Where the page size is a multiple of the band, a band lies in one page: all lanes look up its first token, the other
/// rows follow at the token stride, and nobody needs to hand anything to anybody.
///
/// Page ids are read one tile ahead, so that their latency hides behind the copies of the tile in between. Keeps
/// references to cache and table: a kernel's parameters, read where they lie.
///
/// HasBegin: SetBegin may say that a sequence's first tokens are not wanted. Those have no rows, and nobody looks at
/// their pages, unless a band in one page has others.
template <unsigned Pools, class Map, bool HasBegin = false>
class PagedIterator {
 public:
  static constexpr int kRows = CeilDiv(Map::kFootprintS, 32);  // rows that a lane looks up
  static_assert(32 % Map::kDeltaS == 0, "the rows of one warp access must come from one round of lookups");

  /// page_of: division by cache.page_size.
  KVIT_DEVICE PagedIterator(const KvitCache& cache, const KvitPageTable& table, FastDivide page_of,
                            int warp = WarpIndex(), int lane = LaneIndex())
      : cache_(cache),
        table_(table),
        page_of_(page_of),
        is_dense_(!Map::kPartialS && cache.page_size % Map::kFootprintS == 0),
        band_(Map::BandBegin(warp)),
        lane_(is_dense_ ? 0 : lane) {}

  KVIT_DEVICE PagedIterator(const KvitCache& cache, const KvitPageTable& table, int warp = WarpIndex(),
                            int lane = LaneIndex())
      : PagedIterator(cache, table, FastDivide(cache.page_size), warp, lane) {}

  /// Reads the sequence's length and forgets faults of the one before. Call SetTile next.
  KVIT_DEVICE void SetSequence(int sequence, int head) {
    const SequenceView view = ViewSequence(table_, cache_.page_size, sequence);
    pages_ = table_.pages + view.begin;
    length_ = view.length;
    fault_ = view.fault;
    head_ = head;
  }

  /// After SetSequence, where HasBegin: tokens before this one are not wanted.
  KVIT_DEVICE void SetBegin(int begin) { begin_ = begin; }

  /// Moves to tokens [tile * Map::kDimS, (tile + 1) * Map::kDimS).
  KVIT_DEVICE void SetTile(int tile) {
    tile_ = tile;
    ReadPages(tile);
    FindRows();
    ReadPages(tile + 1);
  }

  /// Moves to the next tile.
  KVIT_DEVICE void Advance() {
    ++tile_;
    FindRows();
    ReadPages(tile_ + 1);
  }

  /// Byte `byte` of the row of token s of the tile, in pool Index; null where there is no token or no such page.
  /// All lanes of the warp call together, each for a token of the warp's band and of the same warp access.
  template <int Index>
  KVIT_DEVICE const char* OffsetPtr(int s, int byte) const {
    return is_dense_ ? DenseRow<Index>(s, byte) : ScatteredRow<Index>(s, byte);
  }

  /// Calls body(rows), where rows.OffsetPtr is OffsetPtr above, with its one question asked once.
  template <class Body>
  KVIT_DEVICE void Visit(Body&& body) const {
    if (is_dense_) {
      body(DenseRows{*this});
    } else {
      body(ScatteredRows{*this});
    }
  }

  /// Tokens of the sequence, never more than its pages hold.
  KVIT_DEVICE int length() const { return length_; }

  /// Whether this lane met something wrong since SetSequence; fault() is the first such thing.
  KVIT_DEVICE bool faulted() const { return fault_.kind != KVIT_FAULT_NONE; }
  KVIT_DEVICE KvitFault fault() const { return fault_; }

 private:
  struct DenseRows {
    const PagedIterator& tiles;
    template <int Index>
    KVIT_DEVICE const char* OffsetPtr(int s, int byte) const {
      return tiles.template DenseRow<Index>(s, byte);
    }
  };
  struct ScatteredRows {
    const PagedIterator& tiles;
    template <int Index>
    KVIT_DEVICE const char* OffsetPtr(int s, int byte) const {
      return tiles.template ScatteredRow<Index>(s, byte);
    }
  };

  template <int Index>
  KVIT_DEVICE const char* DenseRow(int s, int byte) const {
    static_assert(ContainsPool(Pools, Index), "this tile iterator was made without the pool that the copy asks for");
    const uint32_t row = uint32_t(s - band_);
    const int64_t first = address_[Index][0];
    if (first == 0 || Token(tile_, 0) + row >= uint32_t(length_)) return nullptr;
    if (HasBegin && Token(tile_, 0) + row < uint32_t(begin_)) return nullptr;
    return reinterpret_cast<const char*>(first + int64_t(row) * cache_.pool[Index].token_stride) + byte;
  }

  template <int Index>
  KVIT_DEVICE const char* ScatteredRow(int s, int byte) const {
    static_assert(ContainsPool(Pools, Index), "this tile iterator was made without the pool that the copy asks for");
    const int row = s - band_;
    int64_t address = address_[Index][0];
    KVIT_UNROLL
    for (int r = 1; r < kRows; ++r) {
      if (row / 32 == r) address = address_[Index][r];
    }
    address = Shuffle(address, row % 32);
    return address == 0 ? nullptr : reinterpret_cast<const char*>(address) + byte;
  }

  KVIT_DEVICE uint32_t Token(int tile, int r) const { return uint32_t(tile) * Map::kDimS + uint32_t(RowInTile(r)); }
  KVIT_DEVICE int RowInTile(int r) const { return band_ + r * 32 + lane_; }
  // Whether this lane's r-th row belongs to the band, the tile and the sequence, and is wanted.
  KVIT_DEVICE bool Holds(int tile, int r) const {
    if constexpr (HasBegin) {
      const uint32_t last = Token(tile, r) + (is_dense_ ? Map::kFootprintS - 1 : 0);  // that this lane's page has
      if (last < uint32_t(begin_)) return false;
    }
    return r * 32 + lane_ < Map::kFootprintS && RowInTile(r) < Map::kDimS && Token(tile, r) < uint32_t(length_);
  }

  KVIT_DEVICE void ReadPages(int tile) {
    KVIT_UNROLL
    for (int r = 0; r < kRows; ++r) {
      if (Holds(tile, r)) page_[r] = LoadGlobal<int32_t>(pages_ + page_of_(Token(tile, r)));
    }
  }

  KVIT_DEVICE void FindRows() {
    KVIT_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const bool holds = Holds(tile_, r);
      bool found = holds && uint32_t(page_[r]) < uint32_t(cache_.num_pages);
      int64_t block = 0;
      int32_t what = KVIT_FAULT_PAGE;
      if (cache_.blocks != nullptr && found) {  // the first is the same for all threads of a launch
        block = LoadGlobal<int64_t>(cache_.blocks + page_[r]);
        found = IsBlock(block);
        what = KVIT_FAULT_BLOCK;
      }
      const uint32_t token = Token(tile_, r);
      const uint32_t slot = page_of_(token);
      KVIT_UNROLL
      for (int pool = 0; pool < kNumPools; ++pool) {
        if (!ContainsPool(Pools, pool)) continue;
        // Computed whether found or not, from numbers that the compiler sees to be 32 bits wide: no branch, short
        // products.
        const uint32_t token_in_page = token - slot * uint32_t(cache_.page_size);
        const int64_t address = RowAddress(cache_.pool[pool], uint32_t(page_[r]), token_in_page, uint32_t(head_));
        address_[pool][r] = found ? block + address : 0;
      }
      if (holds && !found && !faulted()) fault_ = {what, fault_.sequence, int32_t(slot), page_[r]};
    }
  }

  const KvitCache& cache_;
  const KvitPageTable& table_;
  FastDivide page_of_;
  bool is_dense_;
  int band_, lane_;  // lane_: which row of every 32 this lane looks up
  const int32_t* pages_ = nullptr;
  int length_ = 0, head_ = 0, tile_ = 0, begin_ = 0;
  int32_t page_[kRows] = {};                // of the next tile to find
  int64_t address_[kNumPools][kRows] = {};  // of this lane's rows; 0: none
  KvitFault fault_ = {};
};

}  // namespace kvit

#endif  // KVIT_CACHE_PAGED_ITERATOR_CUH
