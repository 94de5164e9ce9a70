// What warps that compute on widened codes must know of the tokens of a tile.
#ifndef KVIT_PIPELINE_TOKEN_PARAMETERS_CUH
#define KVIT_PIPELINE_TOKEN_PARAMETERS_CUH

#include <math.h>

#include "abi/params.h"
#include "cache/pool_set.cuh"
#include "core/array.cuh"
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

/// The share of one warp, which brings them, a lane for each token of a granule of 32: asked for in front of the
/// granule's codes, and made numbers when those are there. KeyCodec and ValueCodec both have parameters.
template <class T, class KeyCodec, class ValueCodec, int Tokens, int Slots, int Asked>
class ParameterCopies {
 public:
  struct Shared {
    TokenParameters<Tokens> tiles[Slots];
    uint32_t words[Asked][2][32];  // as they are stored, of granules that are asked for
  };

  KVIT_DEVICE ParameterCopies(const KvitCache& cache, Shared& shared) : cache_(cache), shared_(shared) {}

  KVIT_DEVICE void Begin(int head) {
    KVIT_UNROLL
    for (int i = 0; i < 2; ++i) of_head_[i] = RowAddress(cache_.pool[2 + i], 0, 0, head);
  }
  /// Begins to copy those of this lane's token; of none where it is not found.
  KVIT_DEVICE void Ask(int slot, bool is_found, int page, int token) {
    KVIT_UNROLL
    for (int i = 0; i < 2; ++i) {
      const KvitPool& pool = cache_.pool[2 + i];
      const int64_t address = of_head_[i] + int64_t(page) * pool.page_stride + int64_t(token) * pool.token_stride;
      CopyAsync<4>(&shared_.words[slot][i][LaneIndex()], reinterpret_cast<const char*>(address), is_found);
    }
    CopyAsyncCommit();
  }
  /// Waits for those of all granules but the newest Behind.
  template <int Behind>
  KVIT_DEVICE void Await() const {
    CopyAsyncWait<Behind>();
  }
  /// After that: those of granule `part` of a tile.
  KVIT_DEVICE void Deliver(int slot, uint32_t tile, int part) {
    const ScaleZero k = KeyCodec::template Parameters<T>(LoadShared<uint32_t>(&shared_.words[slot][0][LaneIndex()]));
    const ScaleZero v = ValueCodec::template Parameters<T>(LoadShared<uint32_t>(&shared_.words[slot][1][LaneIndex()]));
    auto& to = shared_.tiles[tile % Slots];
    const int token = part * 32 + LaneIndex();
    using Pair = typename TokenParameters<Tokens>::Pair;
    StoreShared(&to.keys[token], Pair{k.scale, k.zero});
    StoreShared(&to.values[token], Pair{v.scale, v.zero});
    const bool counts_by_more = Ballot(ValueWeight<ValueCodec>::InBase(v) > fabsf(v.scale)) != 0u;
    counts_by_more_ = counts_by_more || (part != 0 && counts_by_more_);
    if (LaneIndex() == 0) StoreShared(&to.counts_by_more, int(counts_by_more_));
  }

 private:
  const KvitCache& cache_;
  Shared& shared_;
  int64_t of_head_[2] = {};
  bool counts_by_more_ = false;
};

/// In place of ParameterCopies, for the warp that brings the other ring.
struct NoParameterCopies {
  KVIT_DEVICE void Begin(int) const {}
  KVIT_DEVICE void Ask(int, bool, int, int) const {}
  template <int Behind>
  KVIT_DEVICE void Await() const {}
  KVIT_DEVICE void Deliver(int, uint32_t, int) const {}
};

}  // namespace kvit

#endif  // KVIT_PIPELINE_TOKEN_PARAMETERS_CUH
