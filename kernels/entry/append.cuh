// Family `append`: rows of new keys and values into their pages, biased, rotated and encoded on the way; rows of
// queries rotated beside them.
#ifndef KVIT_ENTRY_APPEND_CUH
#define KVIT_ENTRY_APPEND_CUH

#include "abi/fact.h"
#include "abi/params.h"
#include "attention/rotation.cuh"
#include "cache/warp_rows.cuh"
#include "quant/row_codec.cuh"

namespace kvit {

/// How append uses an SM.
template <int Warps, int MinCtas>
struct AppendTuning {
  static constexpr int kWarps = Warps;
  static constexpr int kMinCtas = MinCtas;
};

/// A warp per token and share of its heads, K and V; more warps for the queries. It has `passes` passes over its heads,
/// as many at a time as its lanes have room for. Before this launch's turn the first rows are fetched to L2, the
/// token's place is guessed, and turns are made for its position; after it the rows are loaded while the guess is
/// confirmed. Then each side's next rows are on their way while the other side's are encoded.
template <class T, class KeyCodec, class ValueCodec, int HeadDim, class Tuning = AppendTuning<16, 2>>
struct AppendKernel {
  using Params = KvitAppendParams;
  using Rows = WarpRows<HeadDim>;
  using Turns = Rotation<HeadDim>;
  static constexpr int kWarps = Tuning::kWarps;
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kTurnBytes = Turns::kBytes;
  static constexpr int kSharedBytes = kWarps * kTurnBytes;
  static constexpr int kMinCtas = Tuning::kMinCtas;
  static constexpr int kHeadsPerPass = Rows::Lanes::kRowsPerWarp;
  static constexpr KvitFact kFacts[] = {{"warps", kWarps}, {"heads_per_pass", kHeadsPerPass}, {"overlaps", 1}};

  KVIT_DEVICE static void Run(const Params& params, char* shared) {
    const int tokens = params.transfer.tokens.total, heads = params.transfer.cache.num_kv_heads;
    const int heads_per_warp = params.passes * kHeadsPerPass;
    const uint32_t index = uint32_t(BlockIndex()) * kWarps + WarpIndex();
    const uint32_t shares = uint32_t(tokens) * CeilDiv(heads, heads_per_warp);
    Turns rotation(params.rope, shared + WarpIndex() * kTurnBytes);
    if (index < shares) {
      Append(params, rotation, ShareAt(index, heads, heads_per_warp));
    } else if (params.num_query_heads > 0) {
      // As many rows of queries as of K and V together.
      const HeadShare share = ShareAt(index - shares, params.num_query_heads, 2 * heads_per_warp);
      if (share.token < tokens) TurnQueries(params, rotation, share);
    }
  }

 private:
  using Part = RowPart<2>;
  using Finder = RowFinder<false>;
  using Guesser = RowFinder<true>;

  KVIT_DEVICE static void Append(const Params& params, Turns& rotation, const HeadShare& share) {
    const KvitTransferParams& transfer = params.transfer;
    Rows rows(share, params.rope.rotary_dim / 16);
    Fetch(rows, transfer.k);
    Fetch(rows, transfer.v);
    const auto steps = rotation.LoadSteps();
    const FoundPlace guess = Guesser(transfer.cache, transfer.table, transfer.tokens).Find(share.token);
    if (kLaunchesOverlap) rotation.MoveTo(Position<true>(params, share.token, guess.token.position), steps);
    TakeTurn();
    Part k = Load(rows, transfer.k), v = Load(rows, transfer.v);
    KeepLoadsAbove();
    const FoundPlace found = Finder(transfer.cache, transfer.table, transfer.tokens).Find(share.token, guess);
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
      Change(params, rotation, rows, params.k_bias, true, k);
      Store<0, KeyCodec>(transfer.cache, rows, found.row, k, k_scale);
      if (next.Any()) {
        k = Load(next, transfer.k);
        k_scale = LoadScale<2, KeyCodec>(transfer.cache, next, found.row);
      }
      Change(params, rotation, rows, params.v_bias, false, v);
      Store<1, ValueCodec>(transfer.cache, rows, found.row, v, v_scale);
      if (!next.Any()) return;
      v = Load(next, transfer.v);
      v_scale = LoadScale<3, ValueCodec>(transfer.cache, next, found.row);
      rows = next;
    }
  }

  KVIT_DEVICE static void TurnQueries(const Params& params, Turns& rotation, const HeadShare& share) {
    const KvitTransferParams& transfer = params.transfer;
    Rows rows(share, params.rope.rotary_dim / 16);
    Fetch(rows, params.q);
    const auto steps = rotation.LoadSteps();
    int position = 0;
    bool has_position = true;
    if (kLaunchesOverlap) {
      if (params.rope.positions == nullptr) {
        position = Guesser(transfer.cache, transfer.table, transfer.tokens).FindToken(share.token).position;
      }
      rotation.MoveTo(Position<true>(params, share.token, position), steps);
    }
    TakeTurn();
    Part q = Load(rows, params.q);
    if (params.rope.positions == nullptr) {
      const FoundToken token = Finder(transfer.cache, transfer.table, transfer.tokens).FindToken(share.token);
      has_position = Good(token, transfer.fault);
      position = token.position;
    }
    rotation.MoveTo(Position<false>(params, share.token, position));
    while (rows.Any()) {
      const Rows next = rows.After(1);
      Part following = q;
      if (next.Any()) following = Load(next, params.q);
      Change(params, rotation, rows, params.q_bias, true, q);
      if (!has_position) q[0] = q[1] = PackedOctet{{~0u, ~0u, ~0u, ~0u}};  // NaN
      if (rows.Has()) {
        KVIT_UNROLL
        for (int octet = 0; octet < 2; ++octet) {
          StoreGlobal(rows.template In<PackedOctet>(params.q_out, octet), q[octet]);
        }
      }
      q = following;
      rows = next;
    }
  }

  template <bool IsGuess>
  KVIT_DEVICE static int Position(const Params& params, int token, int in_sequence) {
    const int32_t* given = params.rope.positions;
    return given == nullptr ? in_sequence : LoadNumber<IsGuess>(given + token);
  }

  KVIT_DEVICE static void Fetch(const Rows& rows, const KvitRows& source) {
    if (!Rows::template BeginsSectors<PackedOctet>()) return;
    KVIT_UNROLL
    for (int octet = 0; octet < 2; ++octet) FetchToL2(rows.template In<PackedOctet>(source, octet));
  }

  // And fetches those of the next pass.
  KVIT_DEVICE static Part Load(const Rows& rows, const KvitRows& source) {
    Part part;
    KVIT_UNROLL
    for (int octet = 0; octet < 2; ++octet) {
      part[octet] = LoadGlobal<PackedOctet>(rows.template In<PackedOctet>(source, octet));
    }
    const Rows next = rows.After(1);
    if (next.Any()) Fetch(next, source);
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

  // Adds the bias and turns the pairs, in f32, then rounds to T: as if other kernels had done it before.
  KVIT_DEVICE static void Change(const Params& params, const Turns& rotation, const Rows& rows, const void* bias,
                                 bool turns, Part& part) {
    const int lane = Rows::Lanes::LaneOfRow(LaneIndex());
    turns = turns && lane < params.rope.rotary_dim / 16;
    if (bias == nullptr && !turns) return;
    Octet octets[2] = {Unpack<T>(part[0]), Unpack<T>(part[1])};
    if (bias != nullptr) {
      KVIT_UNROLL
      for (int i = 0; i < 2; ++i) {
        const Octet added = Unpack<T>(LoadGlobalReadOnly<PackedOctet>(rows.template InHeads<PackedOctet>(bias, i)));
        KVIT_UNROLL
        for (int j = 0; j < 8; ++j) octets[i][j] = RoundedSum(octets[i][j], added[j]);
      }
    }
    if (turns) rotation.Apply(lane, octets[0], octets[1]);
    KVIT_UNROLL
    for (int i = 0; i < 2; ++i) part[i] = RoundTo<T>(octets[i]);
  }

  template <int Pool, class Codec>
  KVIT_DEVICE static void Store(const KvitCache& cache, const Rows& rows, const FoundRow& found, const Part& part,
                                uint32_t parameters) {
    using Row = RowCodec<T, Codec>;
    using Data = typename Row::Data;
    const auto data = Row::Encode(part, Rows::Lanes::kLanesPerRow, parameters);
    if (!rows.Has()) return;
    KVIT_UNROLL
    for (int octet = 0; octet < 2; ++octet) {
      StoreGlobal(rows.template InPool<Data>(cache.pool[Pool], found, octet), data[octet]);
    }
    if (Row::kWritesParameters && Rows::Lanes::LaneOfRow(LaneIndex()) == 0) {
      StoreGlobal(rows.Parameters(cache.pool[Pool + 2], found), parameters);
    }
  }
};

}  // namespace kvit

#endif  // KVIT_ENTRY_APPEND_CUH
