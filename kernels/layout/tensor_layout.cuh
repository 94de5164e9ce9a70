// Where the bytes of a tile lie that the tensor copy engine has written.
#ifndef KVIT_LAYOUT_TENSOR_LAYOUT_CUH
#define KVIT_LAYOUT_TENSOR_LAYOUT_CUH

#include "core/macros.h"
#include "core/sub_byte.cuh"
#include "core/types.h"

namespace kvit {

/// Chunks [first, last) of rows.
struct ChunkRange {
  int first, last;

  constexpr KVIT_HD int Count() const { return last - first; }
};

/// A [Tokens, D] tile of T as boxes of a tensor map leave it: rows cut into chunks of up to 128 bytes, the chunk's rows
/// one below the other, the 16-byte vectors of a row swizzled as the map's mode says. Free of bank conflicts for
/// ldmatrix.
///
///   bytes of a row     chunk     mode, and what it does to address bits
///   128, 256, 512      128       SWIZZLE_128B   6..4 ^= 9..7
///   64                 64        SWIZZLE_64B    5..4 ^= 8..7
///   32                 32        SWIZZLE_32B    4 ^= 7
///
/// Where tokens of 32 or 64 bytes lie one after the other in memory, a map may have lines of 128 bytes with several
/// tokens for its rows, IsPacked: fewer requests for the same bytes, and the mode of the table's first row.
template <class T, int D, int Tokens, bool IsPacked = false>
struct TensorLayout {
  static constexpr int kRowBytes = int(BytesOf<T>(D));
  static constexpr int kSpan = Min(128, kRowBytes);                 // of a token in a row of the map
  static constexpr int kPackedTokens = IsPacked ? 128 / kSpan : 1;  // of a row of the map
  static constexpr int kChunks = kRowBytes / kSpan;
  static constexpr int kChunkBytes = Tokens * kSpan;
  static constexpr int kBytes = Tokens * kRowBytes;
  static constexpr int kAlignment = 8 * kSpan * kPackedTokens;  // the pattern repeats after eight rows of the map
  static_assert(kRowBytes % kSpan == 0 && (kSpan == 32 || kSpan == 64 || kSpan == 128),
                "a row must be 32 or 64 bytes, or whole lines of 128");
  static_assert(kChunkBytes % kAlignment == 0, "chunks must begin where the pattern does");

  /// Byte `byte` of the row of token s.
  static constexpr KVIT_HD int Offset(int s, int byte) {
    constexpr int kMask = kSpan * kPackedTokens / 16 - 1;
    return byte / kSpan * kChunkBytes + ((s * kSpan + byte % kSpan) ^ (s * kSpan >> 7 & kMask) << 4);
  }
};

}  // namespace kvit

#endif  // KVIT_LAYOUT_TENSOR_LAYOUT_CUH
