// Family `append`: rows of new keys and values into their pages, biased, rotated and encoded on the way; rows of
// queries rotated beside them.
#ifndef KVIT_ENTRY_APPEND_CUH
#define KVIT_ENTRY_APPEND_CUH

#include "abi/fact.h"
#include "abi/params.h"
#include "core/types.h"
#include "quant/row_codec.cuh"
#include "quant/row_hadamard.cuh"
#include "transfer/key_smoothing.cuh"
#include "transfer/rotation.cuh"
#include "transfer/row_norm.cuh"
#include "transfer/warp_rows.cuh"

namespace kvit {

/// How append uses an SM.
template <int Warps, int MinCtas>
struct AppendShape {
  static constexpr int kWarps = Warps;
  static constexpr int kMinCtas = MinCtas;
};

/// What rows pass through: biases, and rotation by one position.
struct SimpleAppend {
  using Shape = AppendShape<16, 2>;
  using Axes = OneAxis;
  static constexpr bool kNormalises = false, kTurnsAcross = false, kSmooths = false;
  static KVIT_DEVICE Axes AxesOf(const KvitAppendParams&) { return {}; }
};

/// RMSNorm before they rotate, rotation by positions on three axes, and of halves that end within vec8s, and smooth
/// keys besides.
struct ExtendedAppend {
  using Shape = AppendShape<8, 3>;  // two CTAs of 16 warps have too few registers for it
  using Axes = ThreeAxes;
  static constexpr bool kNormalises = true, kTurnsAcross = true, kSmooths = true;
  static KVIT_DEVICE Axes AxesOf(const KvitAppendParams& params) { return {params.extras.axes}; }
};

/// A warp per token and share of its heads, K and V; more warps for the queries. It has `passes` passes over its heads,
/// as many at a time as its lanes have room for. Before the grid dependency the first rows are fetched to L2, the
/// token's place is looked up speculatively, and rotary angles are made for its position; after it the rows are loaded
/// while that place is confirmed. Then each side's next rows are on their way while the other side's are encoded.
template <class T, class KeyCodec, class ValueCodec, class Dims, class Variant = SimpleAppend,
          class Shape = typename Variant::Shape>
struct AppendKernel {
  using Params = KvitAppendParams;
  static_assert(Dims::kKey == Dims::kValue,
                "a lane moves K and V of the same heads; one of both may have fewer channels");
  using Rows = WarpRows<Dims::kKey>;
  using Angles = RotaryAngles<Dims::kKey, typename Variant::Axes>;
  static constexpr int kWarps = Shape::kWarps;
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kAngleBytes = Angles::kBytes;
  static constexpr int kSharedBytes = kWarps * kAngleBytes;
  static constexpr int kMinCtas = Shape::kMinCtas;
  static constexpr int kHeadsPerPass = Rows::Lanes::kRowsPerWarp;
  static constexpr KvitFact kFacts[] = {
      {"warps", kWarps}, {"heads_per_pass", kHeadsPerPass}, {"takes_fewer", 1}, {"overlaps", 1}};

  KVIT_DEVICE static void Run(const Params& params, char* shared) {
    const int tokens = params.transfer.tokens.total, heads = params.transfer.cache.num_kv_heads;
    const int heads_per_warp = params.passes * kHeadsPerPass;
    const uint32_t index = uint32_t(BlockIndex()) * kWarps + WarpIndex();
    const uint32_t shares = uint32_t(tokens) * CeilDiv(heads, heads_per_warp);
    Angles rotation(params.rope, shared + WarpIndex() * kAngleBytes, Variant::AxesOf(params));
    if (index < shares) {
      Append(params, rotation, HeadRangeAt(index, heads, heads_per_warp));
    } else if (params.num_query_heads > 0) {
      // As many rows of queries as of K and V together.
      const HeadRange share = HeadRangeAt(index - shares, params.num_query_heads, 2 * heads_per_warp);
      if (share.token < tokens) RotateQueries(params, rotation, share);
    }
  }

 private:
  using Part = RowPart<2>;
  using Finder = RowFinder<false>;
  using SpeculativeFinder = RowFinder<true>;

  KVIT_DEVICE static void Append(const Params& params, Angles& rotation, const HeadRange& share) {
    const KvitTransferParams& transfer = params.transfer;
    const int k_dim = transfer.cache.k_dim, v_dim = transfer.cache.v_dim;
    Rows rows(share, HalfVec8s(params.rope));
    Fetch(rows, transfer.k, k_dim);
    Fetch(rows, transfer.v, v_dim);
    const auto steps = rotation.LoadSteps();
    const FoundPlace early = SpeculativeFinder(transfer.cache, transfer.table, transfer.tokens).Find(share.token);
    if (kLaunchesOverlap) rotation.MoveTo(Position<true>(params, share.token, early.token.position), steps);
    GridDependencySync();
    Part k = Load(rows, transfer.k, k_dim), v = Load(rows, transfer.v, v_dim);
    KeepLoadsAbove();
    const FoundPlace found = Finder(transfer.cache, transfer.table, transfer.tokens).Find(share.token, early);
    if (!Good(found.token, transfer.fault)) return;
    if (params.prefix_lengths != nullptr &&
        found.token.position < LoadGlobal<int32_t>(params.prefix_lengths + found.token.sequence)) {
      return;
    }
    if (!Good(found.row, transfer.fault)) return;
    rotation.MoveTo(Position<false>(params, share.token, found.token.position));
    uint32_t k_scale = LoadScale<2, KeyCodec>(transfer.cache, rows, found.row);
    uint32_t v_scale = LoadScale<3, ValueCodec>(transfer.cache, rows, found.row);
    for (;;) {
      const Rows next = rows.After(1);
      Change(params, rotation, rows, {params.k_bias, params.extras.k_norm, kKey, k_dim}, k);
      Store<0, KeyCodec>(params, rows, found.row, k, k_dim, k_scale);
      if (next.Any()) {
        k = Load(next, transfer.k, k_dim);
        k_scale = LoadScale<2, KeyCodec>(transfer.cache, next, found.row);
      }
      Change(params, rotation, rows, {params.v_bias, nullptr, kValue, v_dim}, v);
      Store<1, ValueCodec>(params, rows, found.row, v, v_dim, v_scale);
      if (!next.Any()) return;
      v = Load(next, transfer.v, v_dim);
      v_scale = LoadScale<3, ValueCodec>(transfer.cache, next, found.row);
      rows = next;
    }
  }

  KVIT_DEVICE static void RotateQueries(const Params& params, Angles& rotation, const HeadRange& share) {
    const KvitTransferParams& transfer = params.transfer;
    const int channels = transfer.cache.k_dim;
    Rows rows(share, HalfVec8s(params.rope));
    Fetch(rows, params.q, channels);
    const auto steps = rotation.LoadSteps();
    int position = 0;
    bool has_position = true;
    if (kLaunchesOverlap) {
      if (params.rope.positions == nullptr) {
        position = SpeculativeFinder(transfer.cache, transfer.table, transfer.tokens).FindToken(share.token).position;
      }
      rotation.MoveTo(Position<true>(params, share.token, position), steps);
    }
    GridDependencySync();
    Part q = Load(rows, params.q, channels);
    if (params.rope.positions == nullptr) {
      const FoundToken token = Finder(transfer.cache, transfer.table, transfer.tokens).FindToken(share.token);
      if (token.fault.kind == kNobodys) return;
      has_position = Good(token, transfer.fault);
      position = token.position;
    }
    rotation.MoveTo(Position<false>(params, share.token, position));
    while (rows.Any()) {
      const Rows next = rows.After(1);
      Part following = q;
      if (next.Any()) following = Load(next, params.q, channels);
      Change(params, rotation, rows, {params.q_bias, params.extras.q_norm, kQuery, channels}, q);
      if (!has_position) q[0] = q[1] = PackedVec8{{~0u, ~0u, ~0u, ~0u}};  // NaN
      if (rows.Has()) {
        KVIT_UNROLL
        for (int vec8 = 0; vec8 < 2; ++vec8) {
          if (!rows.Holds(vec8, channels)) continue;
          StoreGlobal(rows.template In<PackedVec8>(params.q_out, vec8, channels), q[vec8]);
        }
      }
      q = following;
      rows = next;
    }
  }

  template <bool IsSpeculative>
  KVIT_DEVICE static typename Angles::Position Position(const Params& params, int token, int in_sequence) {
    const int32_t* given = params.rope.positions;
    if constexpr (std::same_as<typename Angles::Position, int32_t>) {
      return given == nullptr ? in_sequence : LoadNumber<IsSpeculative>(given + token);
    } else {
      typename Angles::Position found = {{in_sequence, in_sequence, in_sequence}};
      if (given == nullptr) return found;
      KVIT_UNROLL
      for (int axis = 0; axis < 3; ++axis) {
        found.axis[axis] = LoadNumber<IsSpeculative>(given + axis * int64_t(params.extras.axis_stride) + token);
      }
      return found;
    }
  }

  KVIT_DEVICE static void Fetch(const Rows& rows, const KvitRows& source, int channels) {
    if (!Rows::template BeginsSectors<PackedVec8>()) return;
    KVIT_UNROLL
    for (int vec8 = 0; vec8 < 2; ++vec8) FetchToL2(rows.template In<PackedVec8>(source, vec8, channels));
  }

  // And fetches those of the next pass.
  KVIT_DEVICE static Part Load(const Rows& rows, const KvitRows& source, int channels) {
    Part part;
    KVIT_UNROLL
    for (int vec8 = 0; vec8 < 2; ++vec8) {
      part[vec8] = LoadGlobal<PackedVec8>(rows.template In<PackedVec8>(source, vec8, channels));
    }
    const Rows next = rows.After(1);
    if (next.Any()) Fetch(next, source, channels);
    return part;
  }

  // Float8 alone: its scales are the user's, and lie where parameters lie.
  template <int Pool, class Codec>
  KVIT_DEVICE static uint32_t LoadScale(const KvitCache& cache, const Rows& rows, const FoundRow& found) {
    if constexpr (Codec::kScaled && !RowCodec<T, Codec>::kWritesParameters) {
      return LoadGlobal<uint32_t>(rows.Parameters(cache.pool[Pool], found));
    }
    return 0;
  }

  /// What rows of one kind pass through.
  enum Kind { kKey, kValue, kQuery };
  struct Changes {
    const void *bias, *norm;  // null: none
    Kind kind;
    int channels;
  };

  // Adds the bias, normalises the row, rotates the pairs and smooths the row, in f32, then rounds to T: as if other
  // kernels had done it before.
  KVIT_DEVICE static void Change(const Params& params, const Angles& rotation, const Rows& rows, const Changes& changes,
                                 Part& part) {
    const int lane = Rows::Lanes::LaneOfRow(LaneIndex());
    const bool across = Variant::kTurnsAcross && changes.kind != kValue && EndsWithinVec8(params.rope);
    const bool rotates = changes.kind != kValue && lane < HalfVec8s(params.rope);
    const bool normalises = Variant::kNormalises && changes.norm != nullptr;
    const bool smooths = Variant::kSmooths && changes.kind != kValue && params.transfer.smoothing != nullptr;
    if (changes.bias == nullptr && !rotates && !across && !normalises && !smooths) return;
    Vec8 vec8s[2] = {Unpack<T>(part[0]), Unpack<T>(part[1])};
    if (changes.bias != nullptr) {
      KVIT_UNROLL
      for (int i = 0; i < 2; ++i) {
        const auto bias = rows.template InHeads<PackedVec8>(changes.bias, i, changes.channels);
        const Vec8 added = Unpack<T>(LoadGlobalReadOnly<PackedVec8>(bias));
        KVIT_UNROLL
        for (int j = 0; j < 8; ++j) vec8s[i][j] = RoundedSum(vec8s[i][j], added[j]);
      }
    }
    if (normalises) Normalise(params, rows, changes, vec8s);
    if (rotates) rotation.Apply(lane, vec8s[0], vec8s[1]);
    if constexpr (Variant::kTurnsAcross) {
      if (across) rotation.ApplyAcross(lane, vec8s[0]);
    }
    if (smooths) Smooth(params, rows, changes, vec8s);
    KVIT_UNROLL
    for (int i = 0; i < 2; ++i) part[i] = RoundTo<T>(vec8s[i]);
  }

  KVIT_DEVICE static void Smooth(const Params& params, const Rows& rows, const Changes& changes, Vec8 (&vec8s)[2]) {
    const int kv_heads = params.transfer.cache.num_kv_heads;
    const KeySmoothing smoothing(params.transfer.smoothing, kv_heads, changes.channels);
    KVIT_UNROLL
    for (int i = 0; i < 2; ++i) {
      if (changes.kind == kKey) {
        smoothing.Apply(rows, i, vec8s[i]);
      } else {
        smoothing.ApplyToQuery(rows, i, params.num_query_heads / kv_heads, vec8s[i]);
      }
    }
  }

  KVIT_DEVICE static void Normalise(const Params& params, const Rows& rows, const Changes& changes, Vec8 (&vec8s)[2]) {
    const int channels = changes.channels;
    const bool holds[2] = {rows.Holds(0, channels), rows.Holds(1, channels)};
    const float inverse = InverseRms(vec8s, holds, Rows::Lanes::kLanesPerRow, channels, params.extras.norm_epsilon);
    KVIT_UNROLL
    for (int i = 0; i < 2; ++i) {
      const auto weight = LoadGlobalReadOnly<PackedVec8>(rows.template InRow<PackedVec8>(changes.norm, i, channels));
      ScaleByWeights(vec8s[i], inverse, Unpack<T>(weight), params.extras.norm_offset);
    }
  }

  template <int Pool, class Codec>
  KVIT_DEVICE static void Store(const Params& params, const Rows& rows, const FoundRow& found, const Part& part,
                                int channels, uint32_t parameters) {
    const KvitCache& cache = params.transfer.cache;
    using Row = RowCodec<T, Codec>;
    using Data = typename Row::Data;
    Rows stored = rows;
    Part whole = part;
    if constexpr (Row::kWritesParameters) {
      const int hadamard = Pool == 0 ? cache.k_hadamard : cache.v_hadamard;
      if (hadamard != 0) {
        stored = rows.InOrder();
        whole = HadamardOfRows<T>(Rows::Dealt(part, HalfVec8s(params.rope), 0), Rows::Lanes::kLanesPerRow, hadamard);
      }
      stored.Complete(whole, channels);
    }
    const auto data = Row::Encode(whole, Rows::Lanes::kLanesPerRow, parameters);
    if (!stored.Has()) return;
    KVIT_UNROLL
    for (int vec8 = 0; vec8 < 2; ++vec8) {
      if (!stored.Holds(vec8, channels)) continue;
      StoreGlobal(stored.template InPool<Data>(cache.pool[Pool], found, vec8, channels), data[vec8]);
    }
    if (Row::kWritesParameters && Rows::Lanes::LaneOfRow(LaneIndex()) == 0) {
      StoreGlobal(rows.Parameters(cache.pool[Pool + 2], found), parameters);
    }
  }
};

}  // namespace kvit

#endif  // KVIT_ENTRY_APPEND_CUH
