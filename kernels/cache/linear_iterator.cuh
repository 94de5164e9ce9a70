// The rows of a sequence that lies in one work_tile, tile by tile.
#ifndef KVIT_CACHE_LINEAR_ITERATOR_CUH
#define KVIT_CACHE_LINEAR_ITERATOR_CUH

#include <stdint.h>

#include "abi/params.h"
#include "cache/pool_set.cuh"
#include "cache/sequence_view.cuh"
#include "core/macros.h"
#include "platform/platform.cuh"

namespace kvit {

/// Contiguous tokens: the page table's offsets alone say where a sequence begins, counted in tokens; there are no page
/// ids.
///
///   dense    sequence s begins at token s * row_stride and holds at most max_pages tokens
///   ragged   sequence s is tokens [indptr[s], indptr[s + 1]) of max_pages
///
/// Of a pool, base, token_stride and head_stride count. Same verbs as PagedIterator; nothing here is collective.
template <unsigned Pools, class Map>
class LinearIterator {
 public:
  KVIT_DEVICE LinearIterator(const KvitCache& cache, const KvitPageTable& table, int /*warp*/ = 0, int /*lane*/ = 0)
      : cache_(cache), table_(table) {}

  /// Reads the sequence's length and forgets faults of the one before. Call SetTile next.
  KVIT_DEVICE void SetSequence(int sequence, int head) {
    const SequenceView view = ViewSequence(table_, 1, sequence);
    length_ = view.length;
    fault_ = view.fault;
    KVIT_UNROLL
    for (int pool = 0; pool < kNumPools; ++pool) {
      if (ContainsPool(Pools, pool)) base_[pool] = RowAddress(cache_.pool[pool], 0, view.begin, head);
    }
  }

  /// Moves to tokens [tile * Map::kDimS, (tile + 1) * Map::kDimS).
  KVIT_DEVICE void SetTile(int tile) { begin_ = uint32_t(tile) * Map::kDimS; }

  /// Moves to the next tile.
  KVIT_DEVICE void Advance() { begin_ += Map::kDimS; }

  /// Byte `byte` of the row of token s of the tile, in pool Index; null where there is no token.
  template <int Index>
  KVIT_DEVICE const char* OffsetPtr(int s, int byte) const {
    static_assert(ContainsPool(Pools, Index), "this tile iterator was made without the pool that the copy asks for");
    const uint32_t token = begin_ + uint32_t(s);
    if (token >= uint32_t(length_)) return nullptr;
    return reinterpret_cast<const char*>(base_[Index] + token * cache_.pool[Index].token_stride + byte);
  }

  /// Tokens of the sequence, never more than the table gives it.
  KVIT_DEVICE int length() const { return length_; }

  /// Whether something was wrong with the sequence; fault() says what.
  KVIT_DEVICE bool faulted() const { return fault_.kind != KVIT_FAULT_NONE; }
  KVIT_DEVICE KvitFault fault() const { return fault_; }

 private:
  const KvitCache& cache_;
  const KvitPageTable& table_;
  int length_ = 0;
  uint32_t begin_ = 0;            // first token of the tile
  int64_t base_[kNumPools] = {};  // of the sequence's first row of this head
  KvitFault fault_ = {};
};

}  // namespace kvit

#endif  // KVIT_CACHE_LINEAR_ITERATOR_CUH
