// Family `copy_pages`: whole pages within one cache, for fork, copy-on-write and defragmentation.
#ifndef KVIT_ENTRY_COPY_PAGES_CUH
#define KVIT_ENTRY_COPY_PAGES_CUH

#include "abi/fact.h"
#include "abi/params.h"
#include "cache/fault.cuh"
#include "cache/page_place.cuh"
#include "core/types.h"
#include "platform/platform.cuh"

namespace kvit {

/// Pairs (source, target) of pages. The pairs of a chain are copied in order, so a chain may shift pages along, and one
/// whose last source is its first target turns them around; chains share no page that either writes.
///
///   chain   7 -> 2, 4 -> 7, 2 -> 4        page 2 is kept in registers until 4 needs it
///
/// A thread owns the same bytes of every page of its chain, so nobody waits for anybody, and no memory is needed on the
/// side. A CTA for each (chain, head); Access bytes per thread at a time.
template <int Access>
struct CopyPagesKernel {
  using Params = KvitCopyPagesParams;
  using Vector = Words<Access>;
  static constexpr int kThreads = 256;
  static constexpr int kSharedBytes = 0;
  static constexpr int kMinCtas = 3;
  static constexpr int kBatch = 4;  // accesses that a thread has under way
  static constexpr KvitFact kFacts[] = {{"access_bytes", Access}};

  KVIT_DEVICE static void Run(const Params& params, char*) {
    const int index = BlockIndex() / params.cache.num_kv_heads;
    const int head = BlockIndex() - index * params.cache.num_kv_heads;
    const Chain chain = ReadChain(params, index);
    if (!IsWhole(params, index, chain)) return;
    for (int pool = 0; pool < kNumPools; ++pool) {
      if (params.row_bytes[pool] != 0) Copy(params, chain, pool, head);
    }
  }

 private:
  struct Chain {
    int begin, end;  // of its pairs
  };
  struct Batch {
    int64_t place[kBatch];  // of this thread's vectors, from the beginning of any page
    bool exists[kBatch];
  };

  KVIT_DEVICE static Chain ReadChain(const Params& params, int index) {
    if (params.chains == nullptr) return {index, index + 1};
    return {LoadGlobalReadOnly<int32_t>(params.chains + index), LoadGlobalReadOnly<int32_t>(params.chains + index + 1)};
  }

  // Whether every page of the chain exists. All threads of the CTA call together, and get the same answer.
  KVIT_DEVICE static bool IsWhole(const Params& params, int index, const Chain& chain) {
    if (chain.begin < 0 || chain.end < chain.begin || chain.end > params.count) {
      if (ThreadIndex() == 0) ReportFault(params.fault, {KVIT_FAULT_INDPTR, -1, index, chain.begin});
      return false;
    }
    bool is_bad = false;
    for (int pair = chain.begin + ThreadIndex(); pair < chain.end; pair += kThreads) {
      for (const int32_t* pages : {params.source, params.target}) {
        const auto page = LoadGlobalReadOnly<int32_t>(pages + pair);
        const FoundPage found = FindPage(params.cache, page);
        if (found.fault == KVIT_FAULT_NONE) continue;
        ReportFault(params.fault, {found.fault, -1, pair, page});
        is_bad = true;
      }
    }
    return !SyncThreadsOr(is_bad);
  }

  KVIT_DEVICE static void Copy(const Params& params, const Chain& chain, int pool, int head) {
    const int vectors = int(params.row_bytes[pool]) / Access;
    const int64_t items = int64_t(params.cache.page_size) * vectors;
    for (int64_t first = ThreadIndex(); first < items; first += kThreads * kBatch) {
      Batch batch;
      KVIT_UNROLL
      for (int i = 0; i < kBatch; ++i) {
        const int64_t item = first + i * kThreads, token = item / vectors;
        batch.exists[i] = item < items;
        batch.place[i] =
            RowAddress(params.cache.pool[pool], int64_t(0), token, head) + (item - token * vectors) * Access;
      }
      Walk(params, chain, pool, batch);
    }
  }

  KVIT_DEVICE static void Walk(const Params& params, const Chain& chain, int pool, const Batch& batch) {
    const int64_t page_stride = params.cache.pool[pool].page_stride;
    const auto page_at = [&](const int32_t* pages, int pair) {
      const PagePlace place = FindListedPage(params.cache, pages, pair).place;
      return place.block + place.page * page_stride;
    };
    const auto load = [&](Vector(&vectors)[kBatch], int64_t page) {
      KVIT_UNROLL
      for (int i = 0; i < kBatch; ++i) {
        if (batch.exists[i]) vectors[i] = LoadGlobal<Vector>(reinterpret_cast<const char*>(batch.place[i] + page));
      }
    };
    const bool is_cycle = chain.end - chain.begin > 1 && LoadGlobalReadOnly<int32_t>(params.source + chain.end - 1) ==
                                                             LoadGlobalReadOnly<int32_t>(params.target + chain.begin);
    Vector kept[kBatch] = {};
    if (is_cycle) load(kept, page_at(params.target, chain.begin));
    for (int pair = chain.begin; pair < chain.end; ++pair) {
      Vector moved[kBatch] = {};
      const bool closes = is_cycle && pair == chain.end - 1;
      if (!closes) load(moved, page_at(params.source, pair));
      const int64_t target = page_at(params.target, pair);
      KVIT_UNROLL
      for (int i = 0; i < kBatch; ++i) {
        if (batch.exists[i]) StoreGlobal(reinterpret_cast<char*>(batch.place[i] + target), closes ? kept[i] : moved[i]);
      }
    }
  }
};

}  // namespace kvit

#endif  // KVIT_ENTRY_COPY_PAGES_CUH
