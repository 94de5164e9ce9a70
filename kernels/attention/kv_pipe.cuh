// How the K and V tiles of a CTA's share come into shared memory, and where a warp finds its tokens of them.
#ifndef KVIT_ATTENTION_KV_PIPE_CUH
#define KVIT_ATTENTION_KV_PIPE_CUH

#include <stdint.h>

#include "abi/params.h"
#include "attention/kv_ring.cuh"
#include "attention/tensor_loader.cuh"
#include "attention/tensor_ring.cuh"
#include "attention/tile_loader.cuh"
#include "cache/paged_iterator.cuh"
#include "platform/platform.cuh"

namespace kvit {

/// By cp.async: 16 bytes a lane, any page size, any place of a row.
struct Sm80Copies {
  static constexpr int kPageMultiple = 1;
  static constexpr bool kHasLines = false;
};
/// By tensor copies: a box of rows at a time, from pools that a tensor map describes, whose rows are those of tokens,
/// or lines of 128 bytes with the rows of several tokens; then the parameters of neighbours lie side by side too.
template <bool HasLines>
struct TensorCopies {
  static constexpr int kPageMultiple = KVIT_LEAST_BOX_TOKENS;
  static constexpr bool kHasLines = HasLines;
};
using Sm90Copies = TensorCopies<false>;
using Sm90LineCopies = TensorCopies<true>;

/// Every pipe has Shared, and for the calling warp: NextIsNew(), whether some of the next tile's tokens are the call's
/// own; Prefetch(stage), which begins that tile's copies; WaitForKeys(stage), for all parameters too, and after it
/// WaitForValues(stage); Key, Value (stage, token of the warp's band, channel) and their parameters (stage, token) in
/// shared memory; Faulted(stage); ClearValues(stage, token), which makes values from that token on harmless.
template <class Copies, class T, class KeyCodec, class ValueCodec, int HeadDim, class Line, class Tuning>
class KvPipe;

template <class T, class KeyCodec, class ValueCodec, int HeadDim, class Line, class Tuning>
class KvPipe<Sm80Copies, T, KeyCodec, ValueCodec, HeadDim, Line, Tuning> {
  using KeyRing = KvRing<T, KeyCodec, HeadDim, Line::kTileTokens, Tuning::kWarps, Tuning::kStages, 0>;
  using ValueRing = KvRing<T, ValueCodec, HeadDim, Line::kTileTokens, Tuning::kWarps, Tuning::kStages, 1>;
  using Loader =
      TileLoader<Line, PagedIterator<KeyRing::kPools | ValueRing::kPools, typename KeyRing::Map>, KeyRing, ValueRing>;
  static_assert(KeyRing::Map::kFootprintS == Tuning::kWarpTokens && ValueRing::Map::kFootprintS == Tuning::kWarpTokens,
                "a warp loads the tokens that it consumes in a step");

 public:
  struct Shared {
    KeyRing keys;
    ValueRing values;
  };

  static KVIT_DEVICE void Init(const KvitDecodeParams&, Shared&) {}
  KVIT_DEVICE KvPipe(const KvitDecodeParams& params, const Line& line, const WorkCursor<Line>& cursor, Shared& shared)
      : shared_(shared), loader_(params, line, cursor, shared.keys, shared.values) {}

  KVIT_DEVICE bool NextIsNew() const { return loader_.NextIsNew(); }
  KVIT_DEVICE void Prefetch(int stage) { loader_.Prefetch(stage); }
  KVIT_DEVICE void WaitForKeys(int) {
    CopyAsyncWait<Tuning::kStages - 1>();
    SyncWarp();
  }
  KVIT_DEVICE void WaitForValues(int) {}  // they were copied together
  KVIT_DEVICE bool Faulted(int stage) const { return loader_.Faulted(stage); }
  KVIT_DEVICE void ClearValues(int, int) {}  // rows that no sequence has were copied as zeros

  KVIT_DEVICE const char* Key(int stage, int s, int c) const { return shared_.keys.Address(stage, Row(s), c); }
  KVIT_DEVICE const char* Value(int stage, int s, int c) const { return shared_.values.Address(stage, Row(s), c); }
  KVIT_DEVICE auto KeyParameters(int stage, int s) const { return shared_.keys.Parameters(stage, Row(s)); }
  KVIT_DEVICE auto ValueParameters(int stage, int s) const { return shared_.values.Parameters(stage, Row(s)); }

 private:
  static KVIT_DEVICE int Row(int s) { return WarpIndex() * Tuning::kWarpTokens + s; }  // of the tile

  Shared& shared_;
  Loader loader_;
};

template <bool HasLines, class T, class KeyCodec, class ValueCodec, int HeadDim, class Line, class Tuning>
class KvPipe<TensorCopies<HasLines>, T, KeyCodec, ValueCodec, HeadDim, Line, Tuning> {
  static constexpr int kWarps = Tuning::kWarps, kStages = Tuning::kStages, kTokens = Tuning::kWarpTokens;
  using KeyRing = TensorRing<T, KeyCodec, HeadDim, kTokens, kWarps, kStages, HasLines>;
  using ValueRing = TensorRing<T, ValueCodec, HeadDim, kTokens, kWarps, kStages, HasLines>;
  using Loader = TensorLoader<Line, KeyRing, ValueRing, kTokens, kStages, HasLines ? 2 : 1>;

 public:
  struct Shared {
    KeyRing keys;
    ValueRing values;
    typename Loader::Landed landed[kWarps][kStages];
  };

  static KVIT_DEVICE void Init(const KvitDecodeParams& params, Shared& shared) {
    Loader::Init(params, shared.landed[WarpIndex()]);
  }
  KVIT_DEVICE KvPipe(const KvitDecodeParams& params, const Line& line, const WorkCursor<Line>& cursor, Shared& shared)
      : shared_(shared), loader_(params, line, cursor, shared.keys, shared.values, shared.landed[WarpIndex()]) {}

  KVIT_DEVICE bool NextIsNew() const { return loader_.NextIsNew(); }
  KVIT_DEVICE void Prefetch(int stage) { loader_.Prefetch(stage); }
  KVIT_DEVICE void WaitForKeys(int stage) { loader_.WaitForKeys(stage); }
  KVIT_DEVICE void WaitForValues(int stage) { loader_.WaitForValues(stage); }
  KVIT_DEVICE bool Faulted(int stage) const { return loader_.Faulted(stage); }
  KVIT_DEVICE void ClearValues(int stage, int s) { loader_.ClearValues(stage, s); }

  KVIT_DEVICE const char* Key(int stage, int s, int c) const { return shared_.keys.Address(stage, s, c); }
  KVIT_DEVICE const char* Value(int stage, int s, int c) const { return shared_.values.Address(stage, s, c); }
  KVIT_DEVICE auto KeyParameters(int stage, int s) const { return shared_.keys.Parameters(stage, s); }
  KVIT_DEVICE auto ValueParameters(int stage, int s) const { return shared_.values.Parameters(stage, s); }

 private:
  Shared& shared_;
  Loader loader_;
};

/// What a warp has of a tile, in ring slot `stage`, as WarpAttention takes it. Values from token `end` on are nobody's.
template <class Pipe, int Tokens>
struct PipeTile {
  Pipe& pipe;
  int stage, end;

  KVIT_DEVICE const char* Key(int s, int c) const { return pipe.Key(stage, s, c); }
  KVIT_DEVICE const char* Value(int s, int c) const { return pipe.Value(stage, s, c); }
  KVIT_DEVICE auto KeyParameters(int s) const { return pipe.KeyParameters(stage, s); }
  KVIT_DEVICE auto ValueParameters(int s) const { return pipe.ValueParameters(stage, s); }
  KVIT_DEVICE void WaitForValues() const {
    pipe.WaitForValues(stage);
    if (end < Tokens) pipe.ClearValues(stage, Max(0, end));
  }
};

}  // namespace kvit

#endif  // KVIT_ATTENTION_KV_PIPE_CUH
