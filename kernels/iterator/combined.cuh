// Two loaders as one: a tile's data and its quantisation parameters.
#ifndef KVIT_ITERATOR_COMBINED_CUH
#define KVIT_ITERATOR_COMBINED_CUH

#include "core/macros.h"
#include "platform/platform.cuh"

namespace kvit {

/// Forwards every verb to Iterator0 (data) and Iterator1 (parameters). Both read through one tile iterator, so their
/// thread maps must give a warp the same tokens. A slice [s_begin, s_begin + s_count) means the same numbers to both:
/// the slices of a tile together copy each parameter once, in the first slices.
template <class Iterator0, class Iterator1>
class CombinedIterator {
 public:
  using Map0 = typename Iterator0::ThreadMap;
  using Map1 = typename Iterator1::ThreadMap;
  static_assert(Map0::kDimS == Map1::kDimS && Map0::kFootprintS == Map1::kFootprintS && Map0::kWarpC == Map1::kWarpC,
                "data and parameters must deal the same tokens to each warp");
  static_assert(Map1::kIterS <= Map0::kIterS, "slices that cover the data must cover the parameters");

  static constexpr bool kTakesDim = Iterator0::kTakesDim;

  struct Fragment {
    typename Iterator0::Fragment first;
    typename Iterator1::Fragment second;
  };

  KVIT_DEVICE explicit CombinedIterator(int warp = WarpIndex(), int lane = LaneIndex())
      : first_(warp, lane), second_(warp, lane) {}

  KVIT_DEVICE void SetSmem(typename Iterator0::Pointer smem0, typename Iterator1::Pointer smem1) {
    first_.SetSmem(smem0);
    second_.SetSmem(smem1);
  }

  KVIT_DEVICE void SetDim(int channels)
    requires(kTakesDim)
  {
    first_.SetDim(channels);
  }

  KVIT_DEVICE void ClearSmem(int pipe_iter = 0) {
    first_.ClearSmem(pipe_iter);
    second_.ClearSmem(pipe_iter);
  }

  /// Arguments as in Sm80GmemIterator::Prefetch, whole tile or slice.
  template <class TileIter, class... Args>
  KVIT_DEVICE void Prefetch(const TileIter& tile_iter, Args... args) const {
    first_.Prefetch(tile_iter, args...);
    second_.Prefetch(tile_iter, args...);
  }

  template <bool is_residue, class TileIter>
  KVIT_DEVICE void Load(const TileIter& tile_iter, Fragment& fragment, int max_s) const {
    first_.template Load<is_residue>(tile_iter, fragment.first, max_s);
    second_.template Load<is_residue>(tile_iter, fragment.second, max_s);
  }

  KVIT_DEVICE void Save(const Fragment& fragment, int pipe_iter = 0) const {
    first_.Save(fragment.first, pipe_iter);
    second_.Save(fragment.second, pipe_iter);
  }

  KVIT_DEVICE const Iterator0& first() const { return first_; }
  KVIT_DEVICE const Iterator1& second() const { return second_; }

 private:
  Iterator0 first_;
  Iterator1 second_;
};

}  // namespace kvit

#endif  // KVIT_ITERATOR_COMBINED_CUH
