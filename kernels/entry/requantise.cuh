// Family `requantise`: K or V of pages of one cache into pages of another that stores them with another codec.
#ifndef KVIT_ENTRY_REQUANTISE_CUH
#define KVIT_ENTRY_REQUANTISE_CUH

#include "abi/fact.h"
#include "abi/params.h"
#include "cache/page_place.cuh"
#include "core/array.cuh"
#include "platform/platform.cuh"
#include "quant/row_codec.cuh"
#include "quant/row_hadamard.cuh"

namespace kvit {

/// Rows are decoded to T and encoded again, a row by channels / 8 neighbouring lanes. That is a power of two up
/// to 32, known at run time only: what it decides is which lanes share a row, and no more.
///
/// In order: one CTA takes a page, its rows in the order of the source's addresses, and reads each batch of rows before
/// it writes any of them. So a page's new rows may lie where its old ones were, each ending no further than the old one
/// did. The new parameters wait in shared memory until the whole page is read: they may lie anywhere in the old page.
///
///   16-bit page   [ row 0 | row 1 | row 2 | row 3 | ...                       ]
///   int8 in it    [ r0| r1| r2| r3| ...           |parameters|  free          ]
template <class T, class From, class To>
struct RequantiseKernel {
  using Params = KvitRequantiseParams;
  using Source = RowCodec<T, From>;
  using Target = RowCodec<T, To>;
  static constexpr int kThreads = 256;
  static constexpr int kMostRows = 8192;  // of a page, in order
  static constexpr int kSharedBytes = Target::kWritesParameters ? kMostRows * 4 : 0;
  static constexpr int kMinCtas = 4;
  static constexpr int kPasses = 4;
  static constexpr KvitFact kFacts[] = {{"passes", kPasses}, {"most_rows_in_order", kMostRows}};

  KVIT_DEVICE static void Run(const Params& params, char* shared) {
    const int pair = BlockIndex() / params.parts, part = BlockIndex() - pair * params.parts;
    const PagePair places = FindPagePair(params, pair);
    if (!places.exists) return;
    const KvitPool& old = params.source.pool[params.side];
    const Page page = {params, places.source, places.target, old.token_stride >= old.head_stride};
    const int dim = params.side == 0 ? params.source.k_dim : params.source.v_dim;
    const int lanes = dim / 8, batch = kThreads / lanes * kPasses;
    for (int first = part * batch; first < page.NumRows(); first += params.parts * batch) {
      Convert(page, first, lanes, shared);
    }
    if (params.in_order && Target::kWritesParameters) {
      SyncThreads();
      for (int row = ThreadIndex(); row < page.NumRows(); row += kThreads) {
        StoreGlobal(page.New(2, row), LoadShared<uint32_t>(shared + row * 4));
      }
    }
  }

 private:
  struct Page {
    const Params& params;
    PagePlace source, target;
    bool is_token_major;  // of two tokens' rows, all of the first come before the second's

    KVIT_DEVICE int NumRows() const { return params.source.page_size * params.source.num_kv_heads; }
    KVIT_DEVICE int OldHadamard() const { return Hadamard(params.source); }
    KVIT_DEVICE int NewHadamard() const { return Hadamard(params.target); }
    /// Row `row` of the page in the order of addresses: data (parameters = 0) or parameters (2).
    KVIT_DEVICE const char* Old(int parameters, int row) const {
      return Address(params.source.pool[params.side + parameters], source, row);
    }
    KVIT_DEVICE char* New(int parameters, int row) const {
      return Address(params.target.pool[params.side + parameters], target, row);
    }

   private:
    KVIT_DEVICE int Hadamard(const KvitCache& cache) const {
      return params.side == 0 ? cache.k_hadamard : cache.v_hadamard;
    }
    KVIT_DEVICE char* Address(const KvitPool& pool, const PagePlace& place, int row) const {
      const int inner = is_token_major ? params.source.num_kv_heads : params.source.page_size;
      const int outer = row / inner, rest = row - outer * inner;
      return reinterpret_cast<char*>(
          RowAddress(pool, place, is_token_major ? outer : rest, is_token_major ? rest : outer));
    }
  };

  KVIT_DEVICE static void Convert(const Page& page, int first, int lanes, char* shared) {
    using Data = typename Source::Data;
    const int lane = ThreadIndex() % lanes;
    const auto row_of = [&](int pass) { return first + (pass * kThreads + ThreadIndex()) / lanes; };
    Data data[kPasses];
    uint32_t old_parameters[kPasses], parameters[kPasses];
    KVIT_UNROLL
    for (int pass = 0; pass < kPasses; ++pass) {
      data[pass] = {};
      old_parameters[pass] = parameters[pass] = 0;
      const int row = row_of(pass);
      if (row >= page.NumRows()) continue;
      data[pass] = LoadGlobal<Data>(page.Old(0, row) + lane * int(sizeof(Data)));
      if constexpr (From::kScaled) old_parameters[pass] = LoadGlobal<uint32_t>(page.Old(2, row));
      if constexpr (To::kScaled && !Target::kWritesParameters) {
        parameters[pass] = LoadGlobal<uint32_t>(page.New(2, row));
      }
    }
    if (page.params.in_order) SyncThreads();
    KVIT_UNROLL
    for (int pass = 0; pass < kPasses; ++pass) {
      // Lanes without a row go along: rows are encoded by whole warps.
      RowPart<1> vec8 = {Source::Decode(data[pass], old_parameters[pass])};
      if constexpr (Source::kWritesParameters) {
        if (page.OldHadamard() != 0) vec8 = HadamardOfRows<T>(vec8, lanes, page.OldHadamard());
      }
      if constexpr (Target::kWritesParameters) {
        if (page.NewHadamard() != 0) vec8 = HadamardOfRows<T>(vec8, lanes, page.NewHadamard());
      }
      const auto encoded = Target::Encode(vec8, lanes, parameters[pass])[0];
      const int row = row_of(pass);
      if (row >= page.NumRows()) continue;
      StoreGlobal(page.New(0, row) + lane * int(sizeof(encoded)), encoded);
      if constexpr (Target::kWritesParameters) {
        if (lane != 0) continue;
        if (page.params.in_order) {
          StoreShared(shared + row * 4, parameters[pass]);
        } else {
          StoreGlobal(page.New(2, row), parameters[pass]);
        }
      }
    }
  }
};

}  // namespace kvit

#endif  // KVIT_ENTRY_REQUANTISE_CUH
