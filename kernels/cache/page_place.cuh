// Finds a page of a cache, at its stride or through the cache's table of blocks.
#ifndef KVIT_CACHE_PAGE_PLACE_CUH
#define KVIT_CACHE_PAGE_PLACE_CUH

#include <stdint.h>

#include "abi/params.h"
#include "cache/fault.cuh"
#include "cache/pool_set.cuh"
#include "core/macros.h"
#include "platform/platform.cuh"

namespace kvit {

/// Rows are moved in vectors of 16 bytes, and pools keep that alignment relative to their block.
KVIT_DEVICE bool IsBlock(int64_t address) { return address != 0 && address % 16 == 0; }

/// A page, or why there is none.
struct FoundPage {
  PagePlace place;
  int32_t fault;  // enum KvitFaultKind
};

/// Looks a page id up, whatever it is.
KVIT_DEVICE FoundPage FindPage(const KvitCache& cache, int32_t page) {
  if (uint32_t(page) >= uint32_t(cache.num_pages)) return {{}, KVIT_FAULT_PAGE};
  if (cache.blocks == nullptr) return {{page, 0}, KVIT_FAULT_NONE};
  const auto block = LoadGlobal<int64_t>(cache.blocks + page);
  return {{page, block}, IsBlock(block) ? KVIT_FAULT_NONE : KVIT_FAULT_BLOCK};
}

/// The same for entry `index` of a list of page ids, or for page `index` where there is no list.
KVIT_DEVICE FoundPage FindListedPage(const KvitCache& cache, const int32_t* pages, int index) {
  return FindPage(cache, pages == nullptr ? index : LoadGlobal<int32_t>(pages + index));
}

/// Entry `pair` of a launch's lists of pages.
struct PagePair {
  PagePlace source, target;
  bool exists;
};

/// Looks both pages up. What is wrong with them is reported once for the CTA: all its threads call.
template <class Params>
KVIT_DEVICE PagePair FindPagePair(const Params& params, int pair) {
  const FoundPage source = FindListedPage(params.source, params.source_pages, pair);
  const FoundPage target = FindListedPage(params.target, params.target_pages, pair);
  const int32_t fault = source.fault != KVIT_FAULT_NONE ? source.fault : target.fault;
  if (fault != KVIT_FAULT_NONE && ThreadIndex() == 0) {
    const int32_t* pages = source.fault != KVIT_FAULT_NONE ? params.source_pages : params.target_pages;
    const int32_t page = pages == nullptr ? pair : LoadGlobal<int32_t>(pages + pair);
    ReportFault(params.fault, {fault, -1, pair, page});
  }
  return {source.place, target.place, fault == KVIT_FAULT_NONE};
}

}  // namespace kvit

#endif  // KVIT_CACHE_PAGE_PLACE_CUH
