// An operand of a warp group's matrix instruction that lies in shared memory.
#ifndef KVIT_PLATFORM_SHARED_MATRIX_H
#define KVIT_PLATFORM_SHARED_MATRIX_H

namespace kvit {

/// 16-bit elements in rows of 128 bytes, 64 of them, swizzled as TMA's 128-byte mode does; eight rows make an atom of
/// 1024 bytes. Along the row lies k (not transposed), or n (transposed):
///
///                   a row has          atoms follow each other      further atoms
///   B [n, k]        64 of k, of one n  every 8 n: stride_bytes      k of an instruction ends in the row
///   A [64, k]       64 of k, of one m  every 8 m: stride_bytes      the same
///   B^T [k, n]      64 of n, of one k  every 8 k: stride_bytes      every 64 n: leading_bytes
///
/// An instruction has 16 of k. The operand begins `offset` bytes behind `base`, which may be in a row, at k; base is
/// the beginning of a pattern.
struct SharedMatrix {
  const char* base;
  int offset, leading_bytes, stride_bytes;
};

}  // namespace kvit

#endif  // KVIT_PLATFORM_SHARED_MATRIX_H
