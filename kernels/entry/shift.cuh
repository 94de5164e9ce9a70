// Family `shift`: cached tokens to other positions, K turned by as many, for windows of context that move along.
#ifndef KVIT_ENTRY_SHIFT_CUH
#define KVIT_ENTRY_SHIFT_CUH

#include "abi/fact.h"
#include "abi/params.h"
#include "cache/sequence_view.cuh"
#include "core/types.h"
#include "quant/row_codec.cuh"
#include "quant/row_hadamard.cuh"
#include "transfer/key_smoothing.cuh"
#include "transfer/rotation.cuh"
#include "transfer/warp_rows.cuh"

namespace kvit {

/// A warp per token: it finds the token's old place and its new one, and moves the rows of all heads, as many at a time
/// as its lanes have room for. Rows of K that turn are decoded to T, turned, rounded to T and encoded again: the bits
/// of gather, a rotation and append. All other rows keep theirs.
///
///   first = 2, by = -3    source   a b . . . c d e        table   a b c d e        c, d and e turn by -3
template <class T, class KeyCodec, class ValueCodec, class Dims>
struct ShiftKernel {
  using Params = KvitShiftParams;
  static_assert(Dims::kKey == Dims::kValue,
                "a lane moves K and V of the same heads; one of both may have fewer channels");
  using Rows = WarpRows<Dims::kKey>;
  using Angles = RotaryAngles<Dims::kKey>;
  static constexpr int kWarps = 8;
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kSharedBytes = kWarps * Angles::kBytes;
  static constexpr int kMinCtas = 3;
  static constexpr KvitFact kFacts[] = {{"warps", kWarps}, {"takes_fewer", 1}};

  KVIT_DEVICE static void Run(const Params& params, char* shared) {
    const int sequence = BlockIndex() / params.parts, part = BlockIndex() - sequence * params.parts;
    const SequenceView view = ViewSequence(params.table, params.cache.page_size, sequence);
    const SequenceView source = ViewSequence(params.source, params.cache.page_size, sequence);
    if (!Sound(view, params.fault) || !Sound(source, params.fault)) return;
    const Shift shift = {sequence, view, source, Number(params.by, params.by_each, sequence),
                         Max(Number(params.first, params.first_each, sequence), 0)};
    Angles rotation(params.rope, shared + WarpIndex() * Angles::kBytes);
    rotation.MoveTo(shift.by);
    const int warps = params.parts * kWarps, warp = part * kWarps + WarpIndex();
    const int64_t begin = params.is_in_place ? shift.first : 0;
    for (int64_t token = begin + warp; token < view.length; token += warps) {
      MoveToken(params, rotation, shift, int(token));
    }
  }

 private:
  using Finder = RowFinder<false>;

  struct Shift {
    int sequence;
    SequenceView view, source;
    int by, first;
  };

  /// A token's places before and after.
  struct Places {
    FoundRow from, to;
    bool turns;
  };

  KVIT_DEVICE static bool Sound(const SequenceView& view, KvitFault* report) {
    if (view.fault.kind == KVIT_FAULT_NONE) return true;
    if (ThreadIndex() == 0) ReportFault(report, view.fault);
    return false;
  }

  KVIT_DEVICE static int Number(const int32_t* of_each, int of_all, int sequence) {
    return of_each == nullptr ? of_all : LoadGlobal<int32_t>(of_each + sequence);
  }

  KVIT_DEVICE static FoundRow Find(const Params& params, const KvitPageTable& table, const SequenceView& view,
                                   int sequence, int position) {
    const KvitTokens rows = {};  // the call has none
    const Finder finder(params.cache, table, rows);
    const FoundToken token = {view.begin, sequence, position, {}};
    return finder.FindRow(token, finder.FindSlot(token));
  }

  KVIT_DEVICE static void MoveToken(const Params& params, const Angles& rotation, const Shift& shift, int token) {
    const bool is_behind = token >= shift.first;
    Places places;
    places.turns = is_behind && shift.by != 0 && params.rope.rotary_dim != 0;
    places.from = places.to = Find(params, params.table, shift.view, shift.sequence, token);
    if (!params.is_in_place) {
      const int64_t before = is_behind ? int64_t(token) - shift.by : token;
      if (before < 0 || before >= shift.source.length) {
        places.from.fault = {KVIT_FAULT_LENGTH, shift.sequence, 0, shift.source.length};
      } else {
        places.from = Find(params, params.source, shift.source, shift.sequence, int(before));
      }
    }
    if (!Good(places.to, params.fault) || !Good(places.from, params.fault)) return;
    const bool stays =
        places.from.page.page == places.to.page.page && places.from.token_in_page == places.to.token_in_page;
    if (stays && !places.turns) return;
    for (Rows rows({token, 0, params.cache.num_kv_heads}, HalfVec8s(params.rope)); rows.Any(); rows = rows.After(1)) {
      if (places.turns) {
        Turn(params, rotation, rows, places);
      } else {
        Move<0, KeyCodec>(params.cache, rows, places);
      }
      if (!stays) Move<1, ValueCodec>(params.cache, rows, places);
    }
  }

  template <int Pool>
  KVIT_DEVICE static int Channels(const KvitCache& cache) {
    return Pool == 0 ? cache.k_dim : cache.v_dim;
  }

  template <class Codec>
  using Stored = Array<typename RowCodec<T, Codec>::Data, 2>;

  template <int Pool, class Codec>
  KVIT_DEVICE static Stored<Codec> Load(const KvitCache& cache, const Rows& rows, const FoundRow& from) {
    using Data = typename RowCodec<T, Codec>::Data;
    Stored<Codec> data;
    KVIT_UNROLL
    for (int i = 0; i < 2; ++i)
      data[i] = LoadGlobal<Data>(rows.template InPool<Data>(cache.pool[Pool], from, i, Channels<Pool>(cache)));
    return data;
  }

  template <int Pool, class Codec>
  KVIT_DEVICE static uint32_t LoadParameters(const KvitCache& cache, const Rows& rows, const FoundRow& from) {
    if constexpr (!Codec::kScaled) return 0;
    return LoadGlobal<uint32_t>(rows.Parameters(cache.pool[Pool + 2], from));
  }

  template <int Pool, class Codec>
  KVIT_DEVICE static void Store(const KvitCache& cache, const Rows& rows, const FoundRow& to, const Stored<Codec>& data,
                                uint32_t parameters) {
    if (!rows.Has()) return;
    using Data = typename RowCodec<T, Codec>::Data;
    KVIT_UNROLL
    for (int i = 0; i < 2; ++i) {
      if (!rows.Holds(i, Channels<Pool>(cache))) continue;
      StoreGlobal(rows.template InPool<Data>(cache.pool[Pool], to, i, Channels<Pool>(cache)), data[i]);
    }
    if (RowCodec<T, Codec>::kWritesParameters && Rows::Lanes::LaneOfRow(LaneIndex()) == 0) {
      StoreGlobal(rows.Parameters(cache.pool[Pool + 2], to), parameters);
    }
  }

  KVIT_DEVICE static void Turn(const Params& params, const Angles& rotation, const Rows& rows, const Places& places) {
    using Row = RowCodec<T, KeyCodec>;
    const KvitCache& cache = params.cache;
    const auto old = Load<0, KeyCodec>(cache, rows, places.from);
    const uint32_t old_parameters = LoadParameters<0, KeyCodec>(cache, rows, places.from);
    uint32_t parameters = Row::kWritesParameters ? 0 : LoadParameters<0, KeyCodec>(cache, rows, places.to);
    RowPart<2> part = Decoded<KeyCodec>(old, old_parameters);
    if constexpr (Row::kWritesParameters) {
      if (cache.k_hadamard != 0) part = Transformed(params, part);
    }
    const KeySmoothing smoothing(params.smoothing, cache.num_kv_heads, cache.k_dim);
    const int lane = Rows::Lanes::LaneOfRow(LaneIndex());
    const bool across = EndsWithinVec8(params.rope), rotates = lane < HalfVec8s(params.rope);
    Vec8 vec8s[2] = {Unpack<T>(part[0]), Unpack<T>(part[1])};
    if (smoothing.Any()) Unsmooth(smoothing, rows, vec8s);
    if (across) rotation.ApplyAcross(lane, vec8s[0]);
    if (rotates) rotation.Apply(lane, vec8s[0], vec8s[1]);
    const int changed = smoothing.Any() || rotates ? 2 : across ? 1 : 0;  // vec8s; the other keeps its bits, of NaN too
    KVIT_UNROLL
    for (int i = 0; i < 2; ++i) {
      if (i >= changed) continue;
      if (smoothing.Any()) smoothing.Apply(rows, i, vec8s[i]);
      part[i] = RoundTo<T>(vec8s[i]);
    }
    if constexpr (Row::kWritesParameters) {
      if (cache.k_hadamard != 0) part = Transformed(params, part);
      rows.Complete(part, cache.k_dim);
    }
    const auto data = Row::Encode(part, Rows::Lanes::kLanesPerRow, parameters);
    Store<0, KeyCodec>(cache, rows, places.to, data, parameters);
  }

  // To rows as gather gives them.
  static KVIT_DEVICE void Unsmooth(const KeySmoothing& smoothing, const Rows& rows, Vec8 (&vec8s)[2]) {
    KVIT_UNROLL
    for (int i = 0; i < 2; ++i) {
      smoothing.Undo(rows, i, vec8s[i]);
      vec8s[i] = Unpack<T>(RoundTo<T>(vec8s[i]));
    }
  }

  // To what is stored, or back: the transform is its own inverse.
  static KVIT_DEVICE RowPart<2> Transformed(const Params& params, const RowPart<2>& part) {
    const int vec8s = HalfVec8s(params.rope);
    const RowPart<2> in_order = Rows::Dealt(part, vec8s, 0);
    return Rows::Dealt(HadamardOfRows<T>(in_order, Rows::Lanes::kLanesPerRow, params.cache.k_hadamard), 0, vec8s);
  }

  template <class Codec>
  KVIT_DEVICE static RowPart<2> Decoded(const Stored<Codec>& data, uint32_t parameters) {
    RowPart<2> part;
    KVIT_UNROLL
    for (int i = 0; i < 2; ++i) part[i] = RowCodec<T, Codec>::Decode(data[i], parameters);
    return part;
  }

  // As they are: but for float8 whose new place has another scale.
  template <int Pool, class Codec>
  KVIT_DEVICE static void Move(const KvitCache& cache, const Rows& rows, const Places& places) {
    using Row = RowCodec<T, Codec>;
    auto data = Load<Pool, Codec>(cache, rows, places.from);
    const uint32_t parameters = LoadParameters<Pool, Codec>(cache, rows, places.from);
    if constexpr (Codec::kScaled && !Row::kWritesParameters) {
      uint32_t scale = LoadParameters<Pool, Codec>(cache, rows, places.to);
      if (parameters != scale) data = Row::Encode(Decoded<Codec>(data, parameters), Rows::Lanes::kLanesPerRow, scale);
    }
    Store<Pool, Codec>(cache, rows, places.to, data, parameters);
  }
};

}  // namespace kvit

#endif  // KVIT_ENTRY_SHIFT_CUH
