// A tile of V in shared memory, and what is infinite or NaN in it.
#ifndef KVIT_ATTENTION_GROUP_TILE_CUH
#define KVIT_ATTENTION_GROUP_TILE_CUH

#include <stdint.h>

#include "attention/seen_tokens.cuh"
#include "core/types.h"
#include "platform/platform.cuh"

namespace kvit {

/// Of 16-bit elements, as Layout has its rows. Threads share the work: thread `thread` of `threads`, a multiple of what
/// a row has of vectors, times eight.
template <class T, class Layout, int Tokens>
class GroupTile {
  using Special = SpecialValues<T>;
  static constexpr int kVectors = Layout::kRowBytes / 16;

 public:
  /// Whether there is any from token `from` on, in this thread's share.
  static KVIT_DEVICE bool HasSpecial(const char* tile, int from, int thread, int threads) {
    uint32_t flags = 0;
    ForEach(tile, from, thread, threads, [&](int, const Words<16>& words) {
      KVIT_UNROLL
      for (int i = 0; i < 4; ++i) flags |= Special::Flags(words.word[i]);
    });
    return Special::Any(flags);
  }
  /// Makes them 0.
  static KVIT_DEVICE void ClearSpecial(char* tile, int from, int thread, int threads) {
    ForEach(tile, from, thread, threads, [&](int offset, Words<16> words) {
      KVIT_UNROLL
      for (int i = 0; i < 4; ++i) words.word[i] &= ~Special::Mask(words.word[i]);
      StoreShared(tile + offset, words);
    });
  }

 private:
  // A thread has the same vector of every so many rows, a multiple of eight: the swizzle is the same for all of them.
  template <class Use>
  static KVIT_DEVICE void ForEach(const char* tile, int from, int thread, int threads, Use&& use) {
    const int first = thread / kVectors, rows = threads / kVectors;
    const int offset = Layout::Offset(first, thread % kVectors * 16);
#pragma unroll 8
    for (int row = first; row < Tokens; row += rows) {
      const int at = offset + (row - first) * Layout::kSpan;
      if (row >= from) use(at, LoadShared<Words<16>>(tile + at));
    }
  }
};

}  // namespace kvit

#endif  // KVIT_ATTENTION_GROUP_TILE_CUH
