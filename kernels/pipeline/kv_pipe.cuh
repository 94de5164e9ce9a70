// How the K and V tiles of a CTA's range come into shared memory, and where a warp finds its tokens of them.
#ifndef KVIT_PIPELINE_KV_PIPE_CUH
#define KVIT_PIPELINE_KV_PIPE_CUH

#include <stdint.h>

#include <type_traits>

#include "abi/params.h"
#include "cache/paged_iterator.cuh"
#include "iterator/sm70.cuh"
#include "iterator/sm80.cuh"
#include "iterator/sm80_most.cuh"
#include "pipeline/cp_async_loader.cuh"
#include "pipeline/register_loader.cuh"
#include "pipeline/tile_ring.cuh"
#include "pipeline/tma_loader.cuh"
#include "pipeline/tma_ring.cuh"
#include "platform/platform.cuh"
#include "quant/codec.cuh"
#include "quant/scaled_half.cuh"

namespace kvit {

/// Whether the GPUs that K and V come so on have matrix instructions on bfloat16, and Form: the codec that tiles are
/// consumed in. Here what is stored.
struct StoredTiles {
  static constexpr bool kMultipliesBfloat16 = true;
  template <class T, class Codec>
  using Form = Codec;
};

/// Through registers: any page size, any place of a row, and by what compute capability 7.5 has. kTakesFewer: of rows
/// with fewer channels than the kernel has room for, too.
struct RegisterCopies {
  static constexpr bool kMultipliesBfloat16 = false;
  template <class T, class Codec>
  using Form = std::conditional_t<std::is_same_v<T, Bfloat16> && std::is_same_v<Codec, Plain>, ScaledHalf, Codec>;
  static constexpr int kPageMultiple = 1;
  static constexpr bool kTakesFewer = false;
  static constexpr bool kIsPacked = false;
};
/// By cp.async: 16 bytes a lane, any page size, any place of a row.
struct CpAsyncCopies : StoredTiles {
  static constexpr int kPageMultiple = 1;
  static constexpr bool kTakesFewer = true;
  static constexpr bool kIsPacked = false;
};
/// By TMA: a box of rows at a time, from pools that a tensor map describes, whose rows are those of tokens or, packed,
/// lines of 128 bytes with the rows of several tokens; then the parameters of neighbours lie side by side too.
template <bool IsPacked>
struct TmaCopiesOf : StoredTiles {
  static constexpr bool kTakesFewer = false;
  static constexpr int kPageMultiple = KVIT_LEAST_BOX_TOKENS;
  static constexpr bool kIsPacked = IsPacked;
};
using TmaCopies = TmaCopiesOf<false>;
using TmaPackedCopies = TmaCopiesOf<true>;

/// Every pipe has Shared, and for one band of the tiles, that of the calling warp: NextIsNew(), whether some of the
/// next tile's tokens are the call's own; Prefetch(stage), which begins that tile's copies; WaitForKeys(stage), for all
/// parameters too, and after it WaitForValues(stage); Key, Value (stage, token of the band, channel) and their
/// parameters (stage, token) in shared memory; Faulted(stage); Release(stage), when all has been read; End(), when the
/// last tile has been: no copy is under way any more.
/// HideValues(stage, token) and HideParameters(stage, token) zero values, or their parameters, from that token on: what
/// nobody sees must not meet a weight of zero.
template <class Copies, class T, class KeyCodec, class ValueCodec, class Dims, class Scheduler, class Shape>
class KvPipe;

/// By the threads of the CTA: rings of Slots tiles, each warp's band a part of them.
template <template <class, class, class, int> class GmemIterator,
          template <class, class, class, class> class TileLoader, int Slots, class T, class KeyCodec, class ValueCodec,
          class Dims, class Scheduler, class Shape>
class TileKvPipe {
 protected:
  static constexpr int kTokens = Shape::kWarpTokens;
  using KeyRing = TileRing<GmemIterator, T, KeyCodec, Dims::kKey, Scheduler::kTileTokens, Shape::kWarps, Slots, 0>;
  using OwnValueRing =
      TileRing<GmemIterator, T, ValueCodec, Dims::kValue, Scheduler::kTileTokens, Shape::kWarps, Slots, 1>;
  using ValueRing = std::conditional_t<Dims::kSharesKv, RingOfKeys<KeyRing>, OwnValueRing>;
  using TileIter = PagedIterator<KeyRing::kPools | ValueRing::kPools, typename KeyRing::Map, Scheduler::kHasBegin>;
  using Loader = TileLoader<Scheduler, TileIter, KeyRing, ValueRing>;
  static_assert(KeyRing::Map::kFootprintS == kTokens && ValueRing::Map::kFootprintS == kTokens,
                "a warp loads the tokens that it consumes in a step");

 public:
  struct Shared {
    KeyRing keys;
    ValueRing values;
  };

  static KVIT_DEVICE void Init(const KvitDecodeParams&, Shared&) {}
  KVIT_DEVICE TileKvPipe(const KvitDecodeParams& params, const Scheduler& scheduler,
                         const WorkIterator<Scheduler>& works, Shared& shared, int band = WarpIndex())
      : shared_(shared), band_(band), loader_(params, scheduler, works, shared.keys, shared.values, band) {}

  KVIT_DEVICE bool NextIsNew() const { return loader_.NextIsNew(); }
  KVIT_DEVICE void Prefetch(int stage) { loader_.Prefetch(stage); }
  KVIT_DEVICE void WaitForValues(int) {}  // they came with the keys
  KVIT_DEVICE void Release(int) {}
  KVIT_DEVICE bool Faulted(int stage) const { return loader_.Faulted(stage); }

  KVIT_DEVICE void HideValues(int stage, int s) {
    constexpr int kVector = 128 / kBitsOf<typename ValueRing::Element>, kVectors = Dims::kValue / kVector;
    for (int i = s * kVectors + LaneIndex(); i < kTokens * kVectors; i += 32) {
      StoreShared(const_cast<char*>(Value(stage, i / kVectors, i % kVectors * kVector)), Words<16>{});
    }
    SyncWarp();
  }
  KVIT_DEVICE void HideParameters(int stage, int s) {
    if constexpr (ValueCodec::kScaled) {
      for (int i = s + LaneIndex(); i < kTokens; i += 32)
        StoreShared(&shared_.values.parameters[Slot(stage)][Row(i)], 0u);
      SyncWarp();
    }
  }

  KVIT_DEVICE const char* Key(int stage, int s, int c) const { return shared_.keys.Address(Slot(stage), Row(s), c); }
  KVIT_DEVICE const char* Value(int stage, int s, int c) const {
    if constexpr (Dims::kSharesKv) {
      return Key(stage, s, c);
    } else {
      return shared_.values.Address(Slot(stage), Row(s), c);
    }
  }
  KVIT_DEVICE auto KeyParameters(int stage, int s) const { return shared_.keys.Parameters(Slot(stage), Row(s)); }
  KVIT_DEVICE auto ValueParameters(int stage, int s) const { return shared_.values.Parameters(Slot(stage), Row(s)); }

 private:
  KVIT_DEVICE int Row(int s) const { return band_ * kTokens + s; }  // of the tile
  static KVIT_DEVICE int Slot(int stage) { return Slots == 1 ? 0 : stage; }

  Shared& shared_;
  int band_;

 protected:
  Loader loader_;
};

template <template <class, class, class, int> class GmemIterator, class T, class KeyCodec, class ValueCodec, class Dims,
          class Scheduler, class Shape>
class CpAsyncKvPipe
    : public TileKvPipe<GmemIterator, CpAsyncLoader, Shape::kStages, T, KeyCodec, ValueCodec, Dims, Scheduler, Shape> {
 public:
  using Base = TileKvPipe<GmemIterator, CpAsyncLoader, Shape::kStages, T, KeyCodec, ValueCodec, Dims, Scheduler, Shape>;
  using Base::Base;

  KVIT_DEVICE void WaitForKeys(int) {
    CopyAsyncWait<Shape::kStages - 1>();
    SyncWarp();
  }
  static KVIT_DEVICE void End() { CopyAsyncWait<0>(); }
};

template <class T, class KeyCodec, class ValueCodec, class Dims, class Scheduler, class Shape>
class KvPipe<CpAsyncCopies, T, KeyCodec, ValueCodec, Dims, Scheduler, Shape>
    : public CpAsyncKvPipe<Sm80GmemIterator, T, KeyCodec, ValueCodec, Dims, Scheduler, Shape> {
 public:
  using Base = CpAsyncKvPipe<Sm80GmemIterator, T, KeyCodec, ValueCodec, Dims, Scheduler, Shape>;
  using Base::Base;
};

template <class T, class KeyCodec, class ValueCodec, class D, class Scheduler, class Shape>
class KvPipe<CpAsyncCopies, T, KeyCodec, ValueCodec, AtMost<D>, Scheduler, Shape>
    : public CpAsyncKvPipe<Sm80MostGmemIterator, T, KeyCodec, ValueCodec, AtMost<D>, Scheduler, Shape> {
 public:
  using Base = CpAsyncKvPipe<Sm80MostGmemIterator, T, KeyCodec, ValueCodec, AtMost<D>, Scheduler, Shape>;
  using Base::Base;
};

template <class T, class KeyCodec, class ValueCodec, class Dims, class Scheduler, class Shape>
class KvPipe<RegisterCopies, T, KeyCodec, ValueCodec, Dims, Scheduler, Shape>
    : public TileKvPipe<Sm70GmemIterator, RegisterLoader, 1, T, KeyCodec, ValueCodec, Dims, Scheduler, Shape> {
 public:
  using Base = TileKvPipe<Sm70GmemIterator, RegisterLoader, 1, T, KeyCodec, ValueCodec, Dims, Scheduler, Shape>;
  using Base::Base;
  static_assert(Shape::kStages == 2, "one tile is in shared memory while the next one is in registers");

  static KVIT_DEVICE void WaitForKeys(int) { SyncWarp(); }
  static KVIT_DEVICE void End() {}
};

template <bool IsPacked, class T, class KeyCodec, class ValueCodec, class Dims, class Scheduler, class Shape>
class KvPipe<TmaCopiesOf<IsPacked>, T, KeyCodec, ValueCodec, Dims, Scheduler, Shape> {
  static constexpr int kWarps = Shape::kWarps, kStages = Shape::kStages, kTokens = Shape::kWarpTokens;
  using KeyRing = TmaRing<T, KeyCodec, Dims::kKey, kTokens, kWarps, kStages, IsPacked>;
  using ValueRing = TmaRing<T, ValueCodec, Dims::kValue, kTokens, kWarps, kStages, IsPacked>;
  using Loader = TmaLoader<Scheduler, KeyRing, ValueRing, kTokens, kStages, IsPacked ? 2 : 1>;

 public:
  struct Shared {
    KeyRing keys;
    ValueRing values;
    typename Loader::Landed landed[kWarps][kStages];
  };

  static KVIT_DEVICE void Init(const KvitDecodeParams& params, Shared& shared) {
    Loader::Init(params, shared.landed[WarpIndex()]);
  }
  KVIT_DEVICE KvPipe(const KvitDecodeParams& params, const Scheduler& scheduler, const WorkIterator<Scheduler>& works,
                     Shared& shared, int band = WarpIndex())
      : shared_(shared),
        band_(band),
        loader_(params, scheduler, works, shared.keys, shared.values, shared.landed[band], band) {}

  KVIT_DEVICE bool NextIsNew() const { return loader_.NextIsNew(); }
  KVIT_DEVICE void Prefetch(int stage) { loader_.Prefetch(stage); }
  KVIT_DEVICE void WaitForKeys(int stage) { loader_.WaitForKeys(stage); }
  KVIT_DEVICE void WaitForValues(int stage) { loader_.WaitForValues(stage); }
  KVIT_DEVICE void Release(int stage) { loader_.Release(stage); }
  static KVIT_DEVICE void End() { CopyAsyncWait<0>(); }
  KVIT_DEVICE bool Faulted(int stage) const { return loader_.Faulted(stage); }

  KVIT_DEVICE void HideValues(int stage, int s) { ValueRing::Iterator::Clear(shared_.values.Tile(stage, band_), s); }
  KVIT_DEVICE void HideParameters(int stage, int s) {
    if constexpr (ValueRing::kHasParameters) {
      for (int i = s + LaneIndex(); i < kTokens; i += 32) StoreShared(shared_.values.Parameters(stage, band_, i), 0u);
      SyncWarp();
    }
  }

  KVIT_DEVICE const char* Key(int stage, int s, int c) const { return shared_.keys.Address(stage, band_, s, c); }
  KVIT_DEVICE const char* Value(int stage, int s, int c) const { return shared_.values.Address(stage, band_, s, c); }
  KVIT_DEVICE auto KeyParameters(int stage, int s) const {
    return static_cast<const KeyRing&>(shared_.keys).Parameters(stage, band_, s);
  }
  KVIT_DEVICE auto ValueParameters(int stage, int s) const {
    return static_cast<const ValueRing&>(shared_.values).Parameters(stage, band_, s);
  }

 private:
  Shared& shared_;
  int band_;
  Loader loader_;
};

}  // namespace kvit

#endif  // KVIT_PIPELINE_KV_PIPE_CUH
