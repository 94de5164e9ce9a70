// Family `gather`: rows of keys and values out of their pages, decoded.
#ifndef KVIT_ENTRY_GATHER_CUH
#define KVIT_ENTRY_GATHER_CUH

#include "abi/fact.h"
#include "abi/params.h"
#include "cache/warp_rows.cuh"
#include "quant/row_codec.cuh"

namespace kvit {

/// How gather uses an SM. A warp moves Passes * 32 / (HeadDim / 16) heads of one token, K and V: all of them are loaded
/// before any is stored.
template <int Warps, int Passes, int MinCtas>
struct GatherTuning {
  static constexpr int kWarps = Warps;
  static constexpr int kPasses = Passes;
  static constexpr int kMinCtas = MinCtas;
};

/// A warp per token and share of its heads. Before this launch's turn its place is guessed, and fetched to L2; after it
/// everything is loaded from there, while the guess is confirmed, and then stored.
template <class T, class KeyCodec, class ValueCodec, int HeadDim, class Tuning = GatherTuning<16, 2, 2>>
struct GatherKernel {
  using Params = KvitTransferParams;
  using Rows = WarpRows<HeadDim>;
  static constexpr int kWarps = Tuning::kWarps;
  static constexpr int kPasses = Tuning::kPasses;
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kSharedBytes = 0;
  static constexpr int kMinCtas = Tuning::kMinCtas;
  static constexpr int kHeadsPerWarp = Rows::Lanes::kRowsPerWarp * kPasses;
  static constexpr KvitFact kFacts[] = {{"warps", kWarps}, {"heads_per_warp", kHeadsPerWarp}, {"overlaps", 1}};

  KVIT_DEVICE static void Run(const Params& params, char*) {
    const HeadShare share =
        ShareAt(uint32_t(BlockIndex()) * kWarps + WarpIndex(), params.cache.num_kv_heads, kHeadsPerWarp);
    if (share.token >= params.tokens.total) return;
    const Rows rows(share, 0);
    const FoundPlace guess = RowFinder<true>(params.cache, params.table, params.tokens).Find(share.token);
    if (guess.row.Exists()) {
      Fetch<0, KeyCodec>(params, rows, guess.row);
      Fetch<1, ValueCodec>(params, rows, guess.row);
    }
    TakeTurn();
    const RowFinder<false> finder(params.cache, params.table, params.tokens);
    Stored<KeyCodec> k;
    Stored<ValueCodec> v;
    bool is_right = false;
    if (guess.row.Exists()) {
      k = Load<0, KeyCodec>(params, rows, guess.row);
      v = Load<1, ValueCodec>(params, rows, guess.row);
      KeepLoadsAbove();
      is_right = finder.Confirms(guess, share.token);
    }
    if (!is_right) {
      const FoundPlace found = finder.Find(share.token);
      if (!Good(found.row, params.fault)) {
        StoreNan(rows, params.k);
        StoreNan(rows, params.v);
        return;
      }
      k = Load<0, KeyCodec>(params, rows, found.row);
      v = Load<1, ValueCodec>(params, rows, found.row);
    }
    Store<KeyCodec>(rows, params.k, k);
    Store<ValueCodec>(rows, params.v, v);
  }

 private:
  template <class Codec>
  struct Stored {
    typename RowCodec<T, Codec>::Data data[kPasses][2];
    uint32_t parameters[kPasses];
  };

  template <int Pool, class Codec>
  KVIT_DEVICE static void Fetch(const Params& params, const Rows& rows, const FoundRow& found) {
    using Data = typename RowCodec<T, Codec>::Data;
    if (!Rows::template BeginsSectors<Data>()) return;
    KVIT_UNROLL
    for (int pass = 0; pass < kPasses; ++pass) {
      KVIT_UNROLL
      for (int octet = 0; octet < 2; ++octet) {
        FetchToL2(rows.After(pass).template InPool<Data>(params.cache.pool[Pool], found, octet));
      }
      if constexpr (Codec::kScaled) FetchToL2(rows.After(pass).Parameters(params.cache.pool[Pool + 2], found));
    }
  }

  template <int Pool, class Codec>
  KVIT_DEVICE static Stored<Codec> Load(const Params& params, const Rows& rows, const FoundRow& found) {
    using Data = typename RowCodec<T, Codec>::Data;
    Stored<Codec> stored;
    KVIT_UNROLL
    for (int pass = 0; pass < kPasses; ++pass) {
      stored.parameters[pass] = 0;
      KVIT_UNROLL
      for (int octet = 0; octet < 2; ++octet) {
        stored.data[pass][octet] =
            LoadGlobal<Data>(rows.After(pass).template InPool<Data>(params.cache.pool[Pool], found, octet));
      }
      if constexpr (Codec::kScaled) {
        stored.parameters[pass] = LoadGlobal<uint32_t>(rows.After(pass).Parameters(params.cache.pool[Pool + 2], found));
      }
    }
    return stored;
  }

  template <class Codec>
  KVIT_DEVICE static void Store(const Rows& rows, const KvitRows& target, const Stored<Codec>& stored) {
    KVIT_UNROLL
    for (int pass = 0; pass < kPasses; ++pass) {
      if (!rows.After(pass).Has()) continue;
      KVIT_UNROLL
      for (int octet = 0; octet < 2; ++octet) {
        const PackedOctet elements = RowCodec<T, Codec>::Decode(stored.data[pass][octet], stored.parameters[pass]);
        StoreGlobal(rows.After(pass).template In<PackedOctet>(target, octet), elements);
      }
    }
  }

  // A row that could not be found comes out as NaN: all bits set, in any float type.
  KVIT_DEVICE static void StoreNan(const Rows& rows, const KvitRows& target) {
    const auto nan = PackedOctet{{~0u, ~0u, ~0u, ~0u}};
    for (int pass = 0; pass < kPasses; ++pass) {
      if (!rows.After(pass).Has()) continue;
      for (int octet = 0; octet < 2; ++octet)
        StoreGlobal(rows.After(pass).template In<PackedOctet>(target, octet), nan);
    }
  }
};

}  // namespace kvit

#endif  // KVIT_ENTRY_GATHER_CUH
