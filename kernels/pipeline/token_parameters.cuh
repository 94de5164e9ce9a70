// What warps that compute on widened codes must know of the tokens of a tile.
#ifndef KVIT_PIPELINE_TOKEN_PARAMETERS_CUH
#define KVIT_PIPELINE_TOKEN_PARAMETERS_CUH

#include <math.h>

#include "abi/params.h"
#include "cache/fast_divide.cuh"
#include "cache/pool_set.cuh"
#include "core/array.cuh"
#include "pipeline/stage_barriers.cuh"
#include "platform/platform.cuh"
#include "quant/codec.cuh"
#include "quant/value_weight.cuh"

namespace kvit {

/// The parameters of a tile's tokens in shared memory, as numbers: pairs (scale, zero).
template <int Tokens>
struct TokenParameters {
  using Pair = Array<float, 2>;
  using TwoPairs = Array<float, 4>;

  alignas(16) Pair keys[Tokens];
  alignas(16) Pair values[Tokens];
  int counts_by_more;  // whether a token of V counts in a base by more than its scale

  /// Of token t, which is even, and of the next.
  KVIT_DEVICE TwoPairs OfKeys(int t) const { return LoadShared<TwoPairs>(&keys[t]); }
  KVIT_DEVICE TwoPairs OfValues(int t) const { return LoadShared<TwoPairs>(&values[t]); }
  KVIT_DEVICE bool CountsByMore() const { return LoadShared<int>(&counts_by_more) != 0; }
};

/// Of all tiles of a ring of keys. A slot more than of tiles: a tile's are still read when its keys have been left.
template <int Tokens, int Stages>
struct TokenParametersRing {
  TokenParameters<Tokens> slots[Stages + 1];

  KVIT_DEVICE const TokenParameters<Tokens>& Of(uint32_t tile) const { return slots[tile % (Stages + 1)]; }
  KVIT_DEVICE TokenParameters<Tokens>& Of(uint32_t tile) { return slots[tile % (Stages + 1)]; }
};

/// One warp brings them for all work of a plan, every 32nd token a lane, beside the warp that brings keys: a slot of
/// keys is full when both have said so. KeyCodec and ValueCodec both have parameters.
template <class T, class KeyCodec, class ValueCodec, int Tokens, int Stages>
class ParameterLoader {
 public:
  using Ring = TokenParametersRing<Tokens, Stages>;

  KVIT_DEVICE ParameterLoader(const KvitDecodeParams& params, Ring& ring, StageBarriers<Stages>& of_keys)
      : params_(params), ring_(ring), of_keys_(of_keys), page_of_(params.page_size) {}

  /// sync() as BoxLoader::Run has it.
  template <class Plan, class Sync>
  KVIT_DEVICE void Run(Plan& plan, Sync&& sync) {
    bool is_synced = false;
    uint32_t tiles = 0;  // so far
    for (uint32_t count = 0;; ++count) {
      const auto& now = plan.Read(count);
      if (!now.exists) return;
      const auto& work = now.work;
      const int32_t* const pages = params_.table.pages + work.of.pages;
      const int last = now.visible.last, end = work.of.length;
      for (int tile = now.visible.first; tile < last; ++tile, ++tiles) {
        if (!is_synced && (tile + 1) * Tokens > work.of.OldTokens()) {
          sync();
          is_synced = true;
        }
        uint32_t words[kOfLane][2];
        KVIT_UNROLL
        for (int i = 0; i < kOfLane; ++i) Load(pages, tile * Tokens + i * 32 + LaneIndex(), end, work.head, words[i]);
        const auto stage = int(tiles % Stages);
        of_keys_.WaitFree(stage, tiles / Stages);
        Store(ring_.Of(tiles), words);
        SyncWarp();
        if (LaneIndex() == 0) Arrive(&of_keys_.full[stage]);
      }
      plan.Release(count);
    }
  }

 private:
  static constexpr int kOfLane = Tokens / 32;

  // Those of a token as they are stored, of K and of V; zeros where it cannot be found.
  KVIT_DEVICE void Load(const int32_t* pages, int token, int end, int head, uint32_t (&words)[2]) const {
    const auto slot = int32_t(page_of_(uint32_t(token)));
    const int32_t page = token < end ? LoadGlobal<int32_t>(pages + slot) : -1;
    const bool is_found = uint32_t(page) < uint32_t(params_.cache.num_pages);
    const int in_page = token - slot * params_.cache.page_size;
    KVIT_UNROLL
    for (int i = 0; i < 2; ++i) {
      const int64_t address = RowAddress(params_.cache.pool[2 + i], page, in_page, head);
      words[i] = is_found ? LoadGlobal<uint32_t>(reinterpret_cast<const char*>(address)) : 0u;
    }
  }

  static KVIT_DEVICE void Store(TokenParameters<Tokens>& to, const uint32_t (&words)[kOfLane][2]) {
    bool counts_by_more = false;
    KVIT_UNROLL
    for (int i = 0; i < kOfLane; ++i) {
      const ScaleZero k = KeyCodec::template Parameters<T>(words[i][0]);
      const ScaleZero v = ValueCodec::template Parameters<T>(words[i][1]);
      using Pair = typename TokenParameters<Tokens>::Pair;
      StoreShared(&to.keys[i * 32 + LaneIndex()], Pair{k.scale, k.zero});
      StoreShared(&to.values[i * 32 + LaneIndex()], Pair{v.scale, v.zero});
      counts_by_more |= ValueWeight<ValueCodec>::InBase(v) > fabsf(v.scale);
    }
    const bool of_any = Ballot(counts_by_more) != 0u;
    if (LaneIndex() == 0) StoreShared(&to.counts_by_more, int(of_any));
  }

  const KvitDecodeParams& params_;
  Ring& ring_;
  StageBarriers<Stages>& of_keys_;
  FastDivide page_of_;
};

}  // namespace kvit

#endif  // KVIT_PIPELINE_TOKEN_PARAMETERS_CUH
