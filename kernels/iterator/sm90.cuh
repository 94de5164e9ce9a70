// Loads tiles with the tensor copy engine (cp.async.bulk.tensor): one instruction for a box of rows.
#ifndef KVIT_ITERATOR_SM90_CUH
#define KVIT_ITERATOR_SM90_CUH

#include <stdint.h>

#include "abi/params.h"
#include "layout/tensor_layout.cuh"
#include "platform/platform.cuh"

namespace kvit {

/// Where a box of rows comes from. A page that the map does not have reads nothing and gives zeros.
struct Box {
  int page, token, head;  // token: in its page
};

/// One warp's [Tokens, D] tiles of T. Copies complete on a barrier in shared memory, which counts their bytes.
template <class T, int D, int Tokens, bool IsPacked = false>
class Sm90GmemIterator {
 public:
  using ElementType = T;
  using Layout = TensorLayout<T, D, Tokens, IsPacked>;
  static constexpr int kBytes = Layout::kBytes;

  /// Begins to copy a box into the rows of the tile from token s on. Any one lane calls. IsReadOnce: no other CTA will
  /// want it, so that L2 need not keep it.
  template <bool IsReadOnce = true>
  static KVIT_DEVICE void Prefetch(const KvitTensorMap& map, const Box& box, char* tile, int s, uint64_t* barrier) {
    PrefetchChunks<IsReadOnce>(map, box, {0, Layout::kChunks}, tile, s, barrier);
  }
  /// The same of some of its chunks.
  template <bool IsReadOnce = true>
  static KVIT_DEVICE void PrefetchChunks(const KvitTensorMap& map, const Box& box, const ChunkRange& chunks, char* tile,
                                         int s, uint64_t* barrier) {
    KVIT_UNROLL
    for (int chunk = chunks.first; chunk < chunks.last; ++chunk) {
      TmaLoad<IsReadOnce>(tile + chunk * Layout::kChunkBytes + s * Layout::kSpan, map,
                          {0, box.token / Layout::kPackedTokens, chunk, box.head, box.page}, barrier);
    }
  }

  /// Zeroes the rows from token s on. All lanes of the warp call together.
  static KVIT_DEVICE void Clear(char* tile, int s) {
    constexpr int kVectors = Layout::kRowBytes / 16;
    for (int vector = s * kVectors + LaneIndex(); vector < Tokens * kVectors; vector += 32) {
      StoreShared(tile + Layout::Offset(vector / kVectors, vector % kVectors * 16), Words<16>{});
    }
    FenceAsyncCopies();  // the next copy into this tile must not overtake the zeros
    SyncWarp();
  }
};

}  // namespace kvit

#endif  // KVIT_ITERATOR_SM90_CUH
