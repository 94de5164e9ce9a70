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

/// A warp per token and share of its heads, K and V; more warps for the queries. Before this launch's turn rows are
/// fetched to L2, and turns made for the position that the tables have then. After it rows are loaded before the
/// token's place is looked for, and so before any is encoded: both latencies overlap.
template <class T, class KeyCodec, class ValueCodec, int HeadDim, class Tuning = TransferTuning<8, 1, 4>>
struct AppendKernel {
  using Params = KvitAppendParams;
  using Rows = WarpRows<HeadDim>;
  using Turns = Rotation<HeadDim>;
  static constexpr int kWarps = Tuning::kWarps;
  static constexpr int kPasses = Tuning::kPasses;
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kTurnBytes = Turns::kBytes;
  static constexpr int kSharedBytes = kWarps * kTurnBytes;
  static constexpr int kMinCtas = Tuning::kMinCtas;
  static constexpr int kHeadsPerWarp = Rows::Lanes::kRowsPerWarp * kPasses;
  static constexpr int kQueryHeadsPerWarp = 2 * kHeadsPerWarp;  // as many rows as of K and V together
  static constexpr KvitFact kFacts[] = {{"warps", kWarps},
                                        {"heads_per_warp", kHeadsPerWarp},
                                        {"query_heads_per_warp", kQueryHeadsPerWarp},
                                        {"overlaps", 1}};

  KVIT_DEVICE static void Run(const Params& params, char* shared) {
    const int tokens = params.transfer.tokens.total, heads = params.transfer.cache.num_kv_heads;
    const uint32_t index = uint32_t(BlockIndex()) * kWarps + WarpIndex();
    const uint32_t shares = uint32_t(tokens) * CeilDiv(heads, kHeadsPerWarp);
    Turns rotation(params.rope, shared + WarpIndex() * kTurnBytes);
    if (index < shares) {
      Append(params, rotation, ShareAt(index, heads, kHeadsPerWarp));
    } else if (params.num_query_heads > 0) {
      const HeadShare share = ShareAt(index - shares, params.num_query_heads, kQueryHeadsPerWarp);
      if (share.token < tokens) TurnQueries(params, rotation, share);
    }
  }

 private:
  using Part = RowPart<2>;
  using Finder = RowFinder<false>;

  KVIT_DEVICE static void Append(const Params& params, Turns& rotation, const HeadShare& share) {
    const KvitTransferParams& transfer = params.transfer;
    const Rows rows(share, transfer.cache.num_kv_heads, params.rope.rotary_dim / 16);
    Fetch<kPasses>(rows, transfer.k);
    Fetch<kPasses>(rows, transfer.v);
    GuessTurns(params, rotation, share.token);
    TakeTurn();
    Part k[kPasses], v[kPasses];
    Load(rows, transfer.k, k);
    Load(rows, transfer.v, v);
    const Finder finder(transfer.cache, transfer.table, transfer.tokens);
    const FoundToken token = finder.FindToken(share.token);
    if (!Good(token, transfer.fault)) return;
    if (params.prefix_lengths != nullptr &&
        token.position < LoadGlobal<int32_t>(params.prefix_lengths + token.sequence)) {
      return;
    }
    const TokenSlot slot = finder.FindSlot(token);  // its page id is still on its way
    CorrectTurns(params, rotation, Position<false>(params, share.token, token.position));
    const FoundRow found = finder.FindRow(token, slot);
    if (!Good(found, transfer.fault)) return;
    uint32_t k_parameters[kPasses], v_parameters[kPasses];
    LoadScales<2, KeyCodec>(transfer.cache, rows, found, k_parameters);
    LoadScales<3, ValueCodec>(transfer.cache, rows, found, v_parameters);
    Change(params, rotation, rows, params.k_bias, true, k);
    Store<0, KeyCodec>(transfer.cache, rows, found, k, k_parameters);
    Change(params, rotation, rows, params.v_bias, false, v);
    Store<1, ValueCodec>(transfer.cache, rows, found, v, v_parameters);
  }

  KVIT_DEVICE static void TurnQueries(const Params& params, Turns& rotation, const HeadShare& share) {
    const KvitTransferParams& transfer = params.transfer;
    const Rows rows(share, params.num_query_heads, params.rope.rotary_dim / 16);
    Fetch<2 * kPasses>(rows, params.q);
    GuessTurns(params, rotation, share.token);
    TakeTurn();
    Part q[2 * kPasses];
    Load(rows, params.q, q);
    int position = 0;
    bool has_position = true;
    if (params.rope.positions == nullptr) {
      const FoundToken token = Finder(transfer.cache, transfer.table, transfer.tokens).FindToken(share.token);
      has_position = Good(token, transfer.fault);
      position = token.position;
    }
    CorrectTurns(params, rotation, Position<false>(params, share.token, position));
    Change(params, rotation, rows, params.q_bias, true, q);
    const auto nan = PackedOctet{{~0u, ~0u, ~0u, ~0u}};
    KVIT_UNROLL
    for (int pass = 0; pass < 2 * kPasses; ++pass) {
      if (!rows.Has(pass)) continue;
      KVIT_UNROLL
      for (int octet = 0; octet < 2; ++octet) {
        StoreGlobal(rows.template In<PackedOctet>(params.q_out, pass, octet), has_position ? q[pass][octet] : nan);
      }
    }
  }

  template <bool IsGuess>
  KVIT_DEVICE static int Position(const Params& params, int token, int in_sequence) {
    const int32_t* given = params.rope.positions;
    return given == nullptr ? in_sequence : LoadNumber<IsGuess>(given + token);
  }

  KVIT_DEVICE static void GuessTurns(const Params& params, Turns& rotation, int token) {
    if (params.rope.rotary_dim == 0) return;
    const auto steps = rotation.LoadSteps();
    const KvitTransferParams& transfer = params.transfer;
    int in_sequence = 0;
    if (params.rope.positions == nullptr) {
      in_sequence = RowFinder<true>(transfer.cache, transfer.table, transfer.tokens).FindToken(token).position;
    }
    rotation.MoveTo(Position<true>(params, token, in_sequence), steps);
  }
  KVIT_DEVICE static void CorrectTurns(const Params& params, Turns& rotation, int position) {
    if (params.rope.rotary_dim == 0 || rotation.IsAt(position)) return;
    SyncWarp();  // all lanes have seen that what they made is wrong
    rotation.MoveTo(position, rotation.LoadSteps());
  }

  template <int N>
  KVIT_DEVICE static void Fetch(const Rows& rows, const KvitRows& source) {
    if (!Rows::template BeginsSectors<PackedOctet>()) return;
    KVIT_UNROLL
    for (int pass = 0; pass < N; ++pass) {
      KVIT_UNROLL
      for (int octet = 0; octet < 2; ++octet) FetchToL2(rows.template In<PackedOctet>(source, pass, octet));
    }
  }

  template <int N>
  KVIT_DEVICE static void Load(const Rows& rows, const KvitRows& source, Part (&parts)[N]) {
    KVIT_UNROLL
    for (int pass = 0; pass < N; ++pass) {
      KVIT_UNROLL
      for (int octet = 0; octet < 2; ++octet) {
        parts[pass][octet] = LoadGlobal<PackedOctet>(rows.template In<PackedOctet>(source, pass, octet));
      }
    }
  }

  // Float8 alone: its scales are the user's, and lie where parameters lie.
  template <int Pool, class Codec>
  KVIT_DEVICE static void LoadScales(const KvitCache& cache, const Rows& rows, const FoundRow& found,
                                     uint32_t (&scales)[kPasses]) {
    KVIT_UNROLL
    for (int pass = 0; pass < kPasses; ++pass) {
      scales[pass] = 0;
      if constexpr (Codec::kScaled && !RowCodec<T, Codec>::kWritesParameters) {
        scales[pass] = LoadGlobal<uint32_t>(rows.Parameters(cache.pool[Pool], found, pass));
      }
    }
  }

  // Adds the bias and turns the pairs, in f32, then rounds to T: as if other kernels had done it before.
  template <int N>
  KVIT_DEVICE static void Change(const Params& params, const Turns& rotation, const Rows& rows, const void* bias,
                                 bool turns, Part (&parts)[N]) {
    const int lane = Rows::Lanes::LaneOfRow(LaneIndex());
    turns = turns && lane < params.rope.rotary_dim / 16;
    if (bias == nullptr && !turns) return;
    KVIT_UNROLL
    for (int pass = 0; pass < N; ++pass) {
      Octet octets[2] = {Unpack<T>(parts[pass][0]), Unpack<T>(parts[pass][1])};
      if (bias != nullptr) {
        KVIT_UNROLL
        for (int i = 0; i < 2; ++i) {
          const Octet added =
              Unpack<T>(LoadGlobalReadOnly<PackedOctet>(rows.template InHeads<PackedOctet>(bias, pass, i)));
          KVIT_UNROLL
          for (int j = 0; j < 8; ++j) octets[i][j] = RoundedSum(octets[i][j], added[j]);
        }
      }
      if (turns) rotation.Apply(lane, octets[0], octets[1]);
      KVIT_UNROLL
      for (int i = 0; i < 2; ++i) parts[pass][i] = RoundTo<T>(octets[i]);
    }
  }

  template <int Pool, class Codec>
  KVIT_DEVICE static void Store(const KvitCache& cache, const Rows& rows, const FoundRow& found,
                                const Part (&parts)[kPasses], uint32_t (&parameters)[kPasses]) {
    using Row = RowCodec<T, Codec>;
    using Data = typename Row::Data;
    KVIT_UNROLL
    for (int pass = 0; pass < kPasses; ++pass) {
      const auto data = Row::Encode(parts[pass], Rows::Lanes::kLanesPerRow, parameters[pass]);
      if (!rows.Has(pass)) continue;
      KVIT_UNROLL
      for (int octet = 0; octet < 2; ++octet) {
        StoreGlobal(rows.template InPool<Data>(cache.pool[Pool], found, pass, octet), data[octet]);
      }
      if (Row::kWritesParameters && Rows::Lanes::LaneOfRow(LaneIndex()) == 0) {
        StoreGlobal(rows.Parameters(cache.pool[Pool + 2], found, pass), parameters[pass]);
      }
    }
  }
};

}  // namespace kvit

#endif  // KVIT_ENTRY_APPEND_CUH
