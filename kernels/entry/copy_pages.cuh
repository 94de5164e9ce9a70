// Family `copy_pages`: whole pages within one cache, for fork and copy-on-write.
#ifndef KVIT_ENTRY_COPY_PAGES_CUH
#define KVIT_ENTRY_COPY_PAGES_CUH

#include "abi/fact.h"
#include "abi/params.h"
#include "cache/fault.cuh"
#include "cache/pool_set.cuh"
#include "core/types.h"
#include "platform/platform.cuh"

namespace kvit {

/// One CTA per pair of pages; Access bytes per thread at a time. A page never overlaps another, but targets must
/// differ.
template <int Access>
struct CopyPagesKernel {
  using Params = KvitCopyPagesParams;
  using Vector = Words<Access>;
  static constexpr int kThreads = 256;
  static constexpr int kSharedBytes = 0;
  static constexpr int kMinCtas = 4;
  static constexpr KvitFact kFacts[] = {{"access_bytes", Access}};

  KVIT_DEVICE static void Run(const Params& params, char*) {
    const auto source = LoadGlobalReadOnly<int32_t>(params.source + BlockIndex());
    const auto target = LoadGlobalReadOnly<int32_t>(params.target + BlockIndex());
    for (const int32_t page : {source, target}) {
      if (uint32_t(page) < uint32_t(params.cache.num_pages)) continue;
      if (ThreadIndex() == 0) ReportFault(params.fault, {KVIT_FAULT_PAGE, -1, BlockIndex(), page});
      return;
    }
    for (int pool = 0; pool < 4; ++pool) {
      if (params.row_bytes[pool] != 0)
        Copy(params, params.cache.pool[pool], int(params.row_bytes[pool]), source, target);
    }
  }

 private:
  KVIT_DEVICE static void Copy(const Params& params, const KvitPool& pool, int row_bytes, int source, int target) {
    const int heads = params.cache.num_kv_heads, vectors = row_bytes / Access;
    const int64_t items = int64_t(params.cache.page_size) * heads * vectors;
    for (int64_t item = ThreadIndex(); item < items; item += kThreads) {
      const int64_t row = item / vectors, token = row / heads;
      const int64_t byte = (item - row * vectors) * Access, head = row - token * heads;
      const auto* from = reinterpret_cast<const char*>(RowAddress(pool, source, token, head)) + byte;
      StoreGlobal(reinterpret_cast<char*>(RowAddress(pool, target, token, head)) + byte, LoadGlobal<Vector>(from));
    }
  }
};

}  // namespace kvit

#endif  // KVIT_ENTRY_COPY_PAGES_CUH
