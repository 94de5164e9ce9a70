// Where the query rows of a warp group lie in shared memory, as Hopper's matrix unit reads them.
#ifndef KVIT_LAYOUT_GROUP_QUERIES_CUH
#define KVIT_LAYOUT_GROUP_QUERIES_CUH

#include "platform/platform.cuh"
#include "platform/shared_matrix.h"

namespace kvit {

/// Chunks of 64 channels, in them row after row of 128 bytes, whose 16-byte vectors are swizzled as TMA does it.
template <class T, int HeadDim>
struct GroupQueries {
  static constexpr int kRows = 64, kVectors = HeadDim * int(sizeof(T)) / 16;  // vectors of a row
  static constexpr int kChunkBytes = kRows * 128;

  alignas(1024) char data[HeadDim / 64][kChunkBytes];

  KVIT_DEVICE char* Vector(int row, int vector) { return data[vector / 8] + row * 128 + (vector % 8 ^ row % 8) * 16; }
  /// All rows, from channel 16 k on.
  KVIT_DEVICE SharedMatrix Matrix(int k) const { return {data[0], k / 4 * kChunkBytes + k % 4 * 32, 16, 1024}; }
};

}  // namespace kvit

#endif  // KVIT_LAYOUT_GROUP_QUERIES_CUH
