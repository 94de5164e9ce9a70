// Families `append` and `gather`: rows of new keys and values into pages, and back. One is the other with the arrow turned.
#ifndef KVIT_ENTRY_TRANSFER_CUH
#define KVIT_ENTRY_TRANSFER_CUH

#include "abi/fact.h"
#include "abi/params.h"
#include "cache/fault.cuh"
#include "cache/pool_set.cuh"
#include "cache/row_finder.cuh"
#include "core/array.cuh"
#include "platform/platform.cuh"
#include "quant/row_codec.cuh"

namespace kvit {

enum class Transfer { kIntoPages, kOutOfPages };

/// A (token, head) row is moved by HeadDim / 8 neighbouring lanes, an octet of channels each, K and V together: encoded into
/// pages, decoded out of them.
///
///   HeadDim = 64      lanes 0..7 -> row 0, lanes 8..15 -> row 1, ...      row = token * num_kv_heads + head
template <class T, class KeyCodec, class ValueCodec, int HeadDim, Transfer Direction>
struct TransferKernel {
  using Params = KvitTransferParams;
  using Elements = Array<T, 8>;
  static constexpr int kThreads = 128;
  static constexpr int kSharedBytes = 0;
  static constexpr int kMinCtas = 8;
  static constexpr int kLanesPerRow = HeadDim / 8;
  static constexpr int kRowsPerPass = kThreads / kLanesPerRow;
  static constexpr int kPasses = 4;
  static constexpr KvitFact kFacts[] = {{"rows_per_cta", kRowsPerPass * kPasses}};
  static_assert(32 % kLanesPerRow == 0, "a row must be moved by one warp");

  KVIT_DEVICE static void Run(const Params& params, char*) {
    const RowFinder finder(params.cache, params.table, params.tokens);
    const int heads = params.cache.num_kv_heads;
    const int64_t num_rows = int64_t(params.tokens.total) * heads;
    for (int pass = 0; pass < kPasses; ++pass) {
      const int64_t row = (int64_t(BlockIndex()) * kPasses + pass) * kRowsPerPass + ThreadIndex() / kLanesPerRow;
      const bool exists = row < num_rows;  // lanes without a row go along: rows are encoded by whole warps
      const int token = exists ? int(row / heads) : 0, head = exists ? int(row - int64_t(token) * heads) : 0;
      const FoundRow found = finder.Find(token);
      const bool good = found.fault.kind == KVIT_FAULT_NONE;
      if (exists && !good) ReportFault(params.fault, found.fault);
      Move<0, KeyCodec>(params, found, good, exists, params.k, token, head);
      Move<1, ValueCodec>(params, found, good, exists, params.v, token, head);
    }
  }

 private:
  template <int Pool, class Codec>
  KVIT_DEVICE static void Move(const Params& params, const FoundRow& found, bool good, bool exists, const KvitRows& rows,
                               int token, int head) {
    using Row = RowCodec<T, Codec>;
    const int octet = ThreadIndex() % kLanesPerRow;
    char* row = static_cast<char*>(rows.base) + token * rows.token_stride + head * rows.head_stride +
                octet * int(sizeof(Elements));
    const auto in_pool = [&](int pool) {
      return reinterpret_cast<char*>(RowAddress(params.cache.pool[pool], found.page, found.token_in_page, head));
    };
    char* data = good ? in_pool(Pool) + octet * int(sizeof(typename Row::Data)) : nullptr;
    const bool reads_parameters = Codec::kScaled && !(Row::kWritesParameters && Direction == Transfer::kIntoPages);
    uint32_t parameters = reads_parameters && good ? LoadGlobal<uint32_t>(in_pool(Pool + 2)) : 0u;

    if constexpr (Direction == Transfer::kIntoPages) {
      const auto elements = exists && good ? LoadGlobalReadOnly<Elements>(row) : Elements{};
      const auto encoded = Row::Encode(elements, kLanesPerRow, parameters);
      if (!exists || !good) return;
      StoreGlobal(data, encoded);
      if (Row::kWritesParameters && octet == 0) StoreGlobal(in_pool(Pool + 2), parameters);
    } else {
      if (!exists) return;
      // A row that could not be found comes out as NaN: all bits set, in any float type.
      auto elements = BitCast<Elements>(Words<16>{{~0u, ~0u, ~0u, ~0u}});
      if (good) elements = Row::Decode(LoadGlobal<typename Row::Data>(data), parameters);
      StoreGlobal(row, elements);
    }
  }
};

template <class T, class KeyCodec, class ValueCodec, int HeadDim>
using AppendKernel = TransferKernel<T, KeyCodec, ValueCodec, HeadDim, Transfer::kIntoPages>;

template <class T, class KeyCodec, class ValueCodec, int HeadDim>
using GatherKernel = TransferKernel<T, KeyCodec, ValueCodec, HeadDim, Transfer::kOutOfPages>;

}  // namespace kvit

#endif  // KVIT_ENTRY_TRANSFER_CUH
