// Which of the four pools of a cache an iterator serves.
#ifndef KVIT_CACHE_POOL_SET_CUH
#define KVIT_CACHE_POOL_SET_CUH

#include <stdint.h>

#include "abi/params.h"
#include "core/macros.h"

namespace kvit {

/// Bit i of a set of pools stands for pool i: 0 K, 1 V, 2 K parameters, 3 V parameters.
inline constexpr int kNumPools = 4;

constexpr KVIT_HD bool ContainsPool(unsigned pools, int pool) { return pools >> pool & 1; }

/// Address of a row, as an integer: lanes hand it to each other in registers. 0 stands for no row.
KVIT_HD int64_t RowAddress(const KvitPool& pool, int64_t page, int64_t token, int64_t head) {
  return reinterpret_cast<int64_t>(pool.base) + page * pool.page_stride + token * pool.token_stride +
         head * pool.head_stride;
}

/// Where a page lies: its number, and the address of its block if the cache has a table of them, else 0.
struct PagePlace {
  int64_t page, block;
};

/// Address of a row of that page: a pool of blocks has page_stride 0, and counts its base from the block's beginning.
KVIT_HD int64_t RowAddress(const KvitPool& pool, const PagePlace& place, int64_t token, int64_t head) {
  return place.block + RowAddress(pool, place.page, token, head);
}

}  // namespace kvit

#endif  // KVIT_CACHE_POOL_SET_CUH
