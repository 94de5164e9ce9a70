// Family `gather`: rows of keys and values out of their pages, decoded.
#ifndef KVIT_ENTRY_GATHER_CUH
#define KVIT_ENTRY_GATHER_CUH

#include "abi/fact.h"
#include "abi/params.h"
#include "core/types.h"
#include "quant/row_codec.cuh"
#include "quant/row_hadamard.cuh"
#include "transfer/key_smoothing.cuh"
#include "transfer/warp_rows.cuh"

namespace kvit {

/// How gather uses an SM. A warp moves Passes * 32 / (HeadDim / 16) heads of one token, K and V: all of them are loaded
/// before any is stored.
template <int Warps, int Passes, int MinCtas>
struct GatherShape {
  static constexpr int kWarps = Warps;
  static constexpr int kPasses = Passes;
  static constexpr int kMinCtas = MinCtas;
};

/// A warp per token and share of its heads. Before the grid dependency its place is looked up speculatively, and
/// fetched to L2; after it everything is loaded from there, while the place is confirmed, and then stored.
template <class T, class KeyCodec, class ValueCodec, class Dims, class Shape = GatherShape<16, 2, 2>>
struct GatherKernel {
  using Params = KvitTransferParams;
  static_assert(Dims::kKey == Dims::kValue,
                "a lane moves K and V of the same heads; one of both may have fewer channels");
  using Rows = WarpRows<Dims::kKey>;
  static constexpr int kWarps = Shape::kWarps;
  static constexpr int kPasses = Shape::kPasses;
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kSharedBytes = 0;
  static constexpr int kMinCtas = Shape::kMinCtas;
  static constexpr int kHeadsPerWarp = Rows::Lanes::kRowsPerWarp * kPasses;
  static constexpr KvitFact kFacts[] = {
      {"warps", kWarps}, {"heads_per_warp", kHeadsPerWarp}, {"takes_fewer", 1}, {"overlaps", 1}};

  KVIT_DEVICE static void Run(const Params& params, char*) {
    const HeadRange share =
        HeadRangeAt(uint32_t(BlockIndex()) * kWarps + WarpIndex(), params.cache.num_kv_heads, kHeadsPerWarp);
    if (share.token >= params.tokens.total) return;
    const Rows rows(share, 0);
    const FoundPlace early = RowFinder<true>(params.cache, params.table, params.tokens).Find(share.token);
    if (early.row.Exists()) {
      Fetch<0, KeyCodec>(params, rows, early.row);
      Fetch<1, ValueCodec>(params, rows, early.row);
    }
    GridDependencySync();
    const RowFinder<false> finder(params.cache, params.table, params.tokens);
    Stored<KeyCodec> k;
    Stored<ValueCodec> v;
    bool is_right = false;
    if (early.row.Exists()) {
      k = Load<0, KeyCodec>(params, rows, early.row);
      v = Load<1, ValueCodec>(params, rows, early.row);
      KeepLoadsAbove();
      is_right = finder.Confirms(early, share.token);
    }
    if (!is_right) {
      const FoundPlace found = finder.Find(share.token);
      if (!Good(found.row, params.fault)) {
        if (found.row.fault.kind == kNobodys) return;
        StoreNan(rows, params.k, params.cache.k_dim);
        StoreNan(rows, params.v, params.cache.v_dim);
        return;
      }
      k = Load<0, KeyCodec>(params, rows, found.row);
      v = Load<1, ValueCodec>(params, rows, found.row);
    }
    const KvitCache& cache = params.cache;
    Store<KeyCodec>(rows, params.k, k, cache.k_hadamard, {params.smoothing, cache.num_kv_heads, cache.k_dim},
                    cache.k_dim);
    Store<ValueCodec>(rows, params.v, v, cache.v_hadamard, {nullptr, 0, 0}, cache.v_dim);
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
    const int channels = Pool == 0 ? params.cache.k_dim : params.cache.v_dim;
    if (!Rows::template BeginsSectors<Data>()) return;
    KVIT_UNROLL
    for (int pass = 0; pass < kPasses; ++pass) {
      KVIT_UNROLL
      for (int vec8 = 0; vec8 < 2; ++vec8) {
        FetchToL2(rows.After(pass).template InPool<Data>(params.cache.pool[Pool], found, vec8, channels));
      }
      if constexpr (Codec::kScaled) FetchToL2(rows.After(pass).Parameters(params.cache.pool[Pool + 2], found));
    }
  }

  template <int Pool, class Codec>
  KVIT_DEVICE static Stored<Codec> Load(const Params& params, const Rows& rows, const FoundRow& found) {
    using Data = typename RowCodec<T, Codec>::Data;
    const int channels = Pool == 0 ? params.cache.k_dim : params.cache.v_dim;
    Stored<Codec> stored;
    KVIT_UNROLL
    for (int pass = 0; pass < kPasses; ++pass) {
      stored.parameters[pass] = 0;
      KVIT_UNROLL
      for (int vec8 = 0; vec8 < 2; ++vec8) {
        stored.data[pass][vec8] =
            LoadGlobal<Data>(rows.After(pass).template InPool<Data>(params.cache.pool[Pool], found, vec8, channels));
      }
      if constexpr (Codec::kScaled) {
        stored.parameters[pass] = LoadGlobal<uint32_t>(rows.After(pass).Parameters(params.cache.pool[Pool + 2], found));
      }
    }
    return stored;
  }

  template <class Codec>
  KVIT_DEVICE static void Store(const Rows& rows, const KvitRows& target, const Stored<Codec>& stored, int hadamard,
                                const KeySmoothing& smoothing, int channels) {
    KVIT_UNROLL
    for (int pass = 0; pass < kPasses; ++pass) {
      RowPart<2> part;
      KVIT_UNROLL
      for (int vec8 = 0; vec8 < 2; ++vec8) {
        part[vec8] = RowCodec<T, Codec>::Decode(stored.data[pass][vec8], stored.parameters[pass]);
      }
      if constexpr (RowCodec<T, Codec>::kWritesParameters) {
        if (hadamard != 0) part = HadamardOfRows<T>(part, Rows::Lanes::kLanesPerRow, hadamard);
      }
      if (!rows.After(pass).Has()) continue;
      KVIT_UNROLL
      for (int vec8 = 0; vec8 < 2; ++vec8) {
        if (!rows.Holds(vec8, channels)) continue;
        if (smoothing.Any()) {
          Vec8 x = Unpack<T>(part[vec8]);
          smoothing.Undo(rows.After(pass), vec8, x);
          part[vec8] = RoundTo<T>(x);
        }
        StoreGlobal(rows.After(pass).template In<PackedVec8>(target, vec8, channels), part[vec8]);
      }
    }
  }

  // A row that could not be found comes out as NaN: all bits set, in any float type.
  KVIT_DEVICE static void StoreNan(const Rows& rows, const KvitRows& target, int channels) {
    const auto nan = PackedVec8{{~0u, ~0u, ~0u, ~0u}};
    for (int pass = 0; pass < kPasses; ++pass) {
      if (!rows.After(pass).Has()) continue;
      for (int vec8 = 0; vec8 < 2; ++vec8) {
        if (!rows.Holds(vec8, channels)) continue;
        StoreGlobal(rows.After(pass).template In<PackedVec8>(target, vec8, channels), nan);
      }
    }
  }
};

}  // namespace kvit

#endif  // KVIT_ENTRY_GATHER_CUH
