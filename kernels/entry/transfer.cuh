// Families `append` and `gather`: rows of new keys and values into pages, and back. One is the other with the arrow
// turned.
#ifndef KVIT_ENTRY_TRANSFER_CUH
#define KVIT_ENTRY_TRANSFER_CUH

#include "abi/fact.h"
#include "abi/params.h"
#include "cache/fault.cuh"
#include "cache/pool_set.cuh"
#include "cache/row_finder.cuh"
#include "core/types.h"
#include "platform/platform.cuh"

namespace kvit {

enum class Transfer { kIntoPages, kOutOfPages };

/// A (token, head) row is moved by HeadDim * sizeof(T) / 16 neighbouring lanes, 16 bytes each, K and V together.
///
///   HeadDim = 64, 16 bits      lanes 0..7 -> row 0, lanes 8..15 -> row 1, ...      row = token * num_kv_heads + head
template <class T, int HeadDim, Transfer Direction>
struct TransferKernel {
  using Params = KvitTransferParams;
  using Vector = Words<16>;
  static constexpr int kThreads = 128;
  static constexpr int kSharedBytes = 0;
  static constexpr int kMinCtas = 8;
  static constexpr int kLanesPerRow = HeadDim * int(sizeof(T)) / int(sizeof(Vector));
  static constexpr int kRowsPerPass = kThreads / kLanesPerRow;
  static constexpr int kPasses = 4;
  static constexpr KvitFact kFacts[] = {{"rows_per_cta", kRowsPerPass * kPasses}};
  static_assert(32 % kLanesPerRow == 0, "a row must be moved by one warp");

  KVIT_DEVICE static void Run(const Params& params, char*) {
    const RowFinder finder(params.cache, params.table, params.tokens);
    const int heads = params.cache.num_kv_heads;
    const int byte = ThreadIndex() % kLanesPerRow * int(sizeof(Vector));
    const int64_t num_rows = int64_t(params.tokens.total) * heads;
    KVIT_UNROLL
    for (int pass = 0; pass < kPasses; ++pass) {
      const int64_t row = (int64_t(BlockIndex()) * kPasses + pass) * kRowsPerPass + ThreadIndex() / kLanesPerRow;
      if (row >= num_rows) return;
      const int token = int(row / heads), head = int(row - int64_t(token) * heads);
      const FoundRow found = finder.Find(token);
      if (found.fault.kind != KVIT_FAULT_NONE) ReportFault(params.fault, found.fault);
      Move(params.cache.pool[0], found, params.k, token, head, byte);
      Move(params.cache.pool[1], found, params.v, token, head, byte);
    }
  }

 private:
  KVIT_DEVICE static void Move(const KvitPool& pool, const FoundRow& found, const KvitRows& rows, int token, int head,
                               int byte) {
    char* row = static_cast<char*>(rows.base) + token * rows.token_stride + head * rows.head_stride + byte;
    const bool good = found.fault.kind == KVIT_FAULT_NONE;
    char* in_page = reinterpret_cast<char*>(RowAddress(pool, found.page, found.token_in_page, head)) + byte;
    if constexpr (Direction == Transfer::kIntoPages) {
      if (good) StoreGlobal(in_page, LoadGlobalReadOnly<Vector>(row));
    } else {
      // A row that could not be found comes out as NaN: all bits set, in any float type.
      const Vector nan = {{~0u, ~0u, ~0u, ~0u}};
      StoreGlobal(row, good ? LoadGlobalReadOnly<Vector>(in_page) : nan);
    }
  }
};

template <class T, int HeadDim>
using AppendKernel = TransferKernel<T, HeadDim, Transfer::kIntoPages>;

template <class T, int HeadDim>
using GatherKernel = TransferKernel<T, HeadDim, Transfer::kOutOfPages>;

}  // namespace kvit

#endif  // KVIT_ENTRY_TRANSFER_CUH
