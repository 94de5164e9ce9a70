// Families `append` and `gather`: rows of new keys and values into pages, and back. One is the other with the arrow
// turned.
#ifndef KVIT_ENTRY_TRANSFER_CUH
#define KVIT_ENTRY_TRANSFER_CUH

#include <type_traits>

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

/// A (token, head) row is moved by HeadDim / 8 neighbouring lanes, an octet of channels each, K and V together: encoded
/// into pages, decoded out of them.
///
///   HeadDim = 64      lanes 0..7 -> row 0, lanes 8..15 -> row 1, ...      row = token * num_kv_heads + head
template <class T, class KeyCodec, class ValueCodec, int HeadDim, Transfer Direction>
struct TransferKernel {
  using Params = KvitTransferParams;
  using Elements = Array<T, 8>;
  static constexpr int kThreads = 128;
  static constexpr int kSharedBytes = 0;
  static constexpr int kMinCtas = 4;
  static constexpr int kLanesPerRow = HeadDim / 8;
  static constexpr int kRowsPerPass = kThreads / kLanesPerRow;
  static constexpr int kPasses = 4;
  static constexpr KvitFact kFacts[] = {{"rows_per_cta", kRowsPerPass * kPasses}};
  static_assert(32 % kLanesPerRow == 0, "a row must be moved by one warp");

  KVIT_DEVICE static void Run(const Params& params, char*) {
    const RowFinder finder(params.cache, params.table, params.tokens);
    const int heads = params.cache.num_kv_heads;
    const int64_t num_rows = int64_t(params.tokens.total) * heads;
    Place places[kPasses];
    KVIT_UNROLL
    for (int pass = 0; pass < kPasses; ++pass) {
      const int64_t row = (int64_t(BlockIndex()) * kPasses + pass) * kRowsPerPass + ThreadIndex() / kLanesPerRow;
      Place& place = places[pass];
      place.exists = row < num_rows;  // lanes without a row go along: rows are encoded by whole warps
      place.token = place.exists ? int(row / heads) : 0;
      place.head = place.exists ? int(row - int64_t(place.token) * heads) : 0;
      place.found = finder.Find(place.token);
      if (place.exists && !place.Good()) ReportFault(params.fault, place.found.fault);
    }
    Move<0, KeyCodec>(params, places, params.k);
    Move<1, ValueCodec>(params, places, params.v);
  }

 private:
  struct Place {
    int token, head;
    bool exists;
    FoundRow found;

    KVIT_DEVICE bool Good() const { return found.fault.kind == KVIT_FAULT_NONE; }
  };

  // All passes load before any stores: their latencies overlap.
  template <int Pool, class Codec>
  KVIT_DEVICE static void Move(const Params& params, const Place (&places)[kPasses], const KvitRows& rows) {
    using Row = RowCodec<T, Codec>;
    using Source = std::conditional_t<Direction == Transfer::kIntoPages, Elements, typename Row::Data>;
    constexpr bool kReadsParameters = Codec::kScaled && !(Row::kWritesParameters && Direction == Transfer::kIntoPages);
    const int octet = ThreadIndex() % kLanesPerRow;
    const auto in_pool = [&](const Place& place, int pool) {
      const FoundRow& found = place.found;
      return reinterpret_cast<char*>(RowAddress(params.cache.pool[pool], found.page, found.token_in_page, place.head));
    };
    const auto in_rows = [&](const Place& place) {
      return static_cast<char*>(rows.base) + place.token * rows.token_stride + place.head * rows.head_stride +
             octet * int(sizeof(Elements));
    };

    Source source[kPasses];
    uint32_t parameters[kPasses];
    KVIT_UNROLL
    for (int pass = 0; pass < kPasses; ++pass) {
      const Place& place = places[pass];
      source[pass] = {};
      parameters[pass] = 0;
      if (!place.exists || !place.Good()) continue;
      const char* from = in_rows(place);
      if (Direction == Transfer::kOutOfPages) from = in_pool(place, Pool) + octet * int(sizeof(Source));
      source[pass] = LoadGlobal<Source>(from);
      if (kReadsParameters) parameters[pass] = LoadGlobal<uint32_t>(in_pool(place, Pool + 2));
    }
    KVIT_UNROLL
    for (int pass = 0; pass < kPasses; ++pass) {
      const Place& place = places[pass];
      if constexpr (Direction == Transfer::kIntoPages) {
        const auto encoded = Row::Encode(source[pass], kLanesPerRow, parameters[pass]);
        if (!place.exists || !place.Good()) continue;
        StoreGlobal(in_pool(place, Pool) + octet * int(sizeof(encoded)), encoded);
        if (Row::kWritesParameters && octet == 0) StoreGlobal(in_pool(place, Pool + 2), parameters[pass]);
      } else if (place.exists) {
        // A row that could not be found comes out as NaN: all bits set, in any float type.
        const auto nan = BitCast<Elements>(Words<16>{{~0u, ~0u, ~0u, ~0u}});
        StoreGlobal(in_rows(place), place.Good() ? Row::Decode(source[pass], parameters[pass]) : nan);
      }
    }
  }
};

template <class T, class KeyCodec, class ValueCodec, int HeadDim>
using AppendKernel = TransferKernel<T, KeyCodec, ValueCodec, HeadDim, Transfer::kIntoPages>;

template <class T, class KeyCodec, class ValueCodec, int HeadDim>
using GatherKernel = TransferKernel<T, KeyCodec, ValueCodec, HeadDim, Transfer::kOutOfPages>;

}  // namespace kvit

#endif  // KVIT_ENTRY_TRANSFER_CUH
