// Warp groups of Hopper's matrix units, emulated: a product is computed when it is waited for, from what shared memory
// holds then, and its outputs are NaN until then.
#ifndef KVIT_PLATFORM_HOST_WGMMA_HPP
#define KVIT_PLATFORM_HOST_WGMMA_HPP

#include <array>
#include <cstring>

#include "platform/host_cta.hpp"
#include "platform/shared_matrix.h"

namespace kvit {
namespace host {

// Byte of an element by its place in the operand; hardware swizzles by bits of the address.
inline const char* Swizzled(const char* base, ptrdiff_t offset) {
  const ptrdiff_t place = base - self->cta->shared + offset;
  return self->cta->shared + (place ^ (place >> 7 & 7) << 4);
}

template <class T>
float MatrixElement(const SharedMatrix& b, bool is_transposed, int k, int n) {
  const ptrdiff_t offset = is_transposed ? n / 64 * b.leading_bytes + k / 8 * b.stride_bytes + k % 8 * 128 + n % 64 * 2
                                         : n / 8 * b.stride_bytes + n % 8 * 128 + k * 2;
  const char* const place = Swizzled(b.base, b.offset + offset);
  CheckShared(place, sizeof(T), "matrix operand");
  T x;
  std::memcpy(&x, place, sizeof(T));
  return ToFloat(x);
}

}  // namespace host

inline bool SyncGroupOr(bool x) { return host::VoteGroup(x); }

inline void WgmmaFence() { SyncWarp(); }
inline void WgmmaCommit() { ++host::self->product_group; }
template <int N>
void WgmmaWait() {
  host::LandProducts(N);
  SyncWarp();
}
template <int>
void TakeRegisters() {}
template <int>
void GiveRegisters() {}

/// Lanes hold d and a as MmaM16N8K16 has them, of the 16 rows of their warp; d has N / 8 blocks of 8 columns.
template <class T, bool IsTransposed, int Words>
void IssueWgmma(float (&d)[Words], const uint32_t (&a)[4], const SharedMatrix& b, bool accumulates) {
  const auto& mailbox = host::Exchange("Wgmma", a, sizeof(a), nullptr);
  std::array<float, 32> rows;  // of a: [row lane / 4 + 8 h][k]
  for (int h = 0; h < 2; ++h) {
    for (int k = 0; k < 16; ++k) {
      const int lane = LaneIndex() / 4 * 4 + k % 8 / 2, word = k / 8 * 2 + h;
      rows[size_t(h * 16 + k)] = host::Operand<T>(mailbox.in[lane], word * 2 + k % 2);
    }
  }
  host::IssueProduct(d, Words, accumulates, [rows, b](float* outputs) {
    for (int i = 0; i < Words; ++i) {
      const int h = i / 2 % 2, column = i / 4 * 8 + LaneIndex() % 4 * 2 + i % 2;
      for (int k = 0; k < 16; ++k) {
        outputs[i] += rows[size_t(h * 16 + k)] * host::MatrixElement<T>(b, IsTransposed, k, column);
      }
    }
  });
}

/// The same, a [64, k] in shared memory, read when the product lands.
template <class T, bool IsTransposed, int Words>
void IssueWgmma(float (&d)[Words], const SharedMatrix& a, const SharedMatrix& b, bool accumulates) {
  SyncWarp();
  const int warp_row = WarpIndex() % 4 * 16 + LaneIndex() / 4;
  host::IssueProduct(d, Words, accumulates, [warp_row, a, b](float* outputs) {
    float rows[2][16];
    for (int i = 0; i < 32; ++i) rows[i / 16][i % 16] = host::MatrixElement<T>(a, false, i % 16, warp_row + i / 16 * 8);
    for (int i = 0; i < Words; ++i) {
      const int h = i / 2 % 2, column = i / 4 * 8 + LaneIndex() % 4 * 2 + i % 2;
      for (int k = 0; k < 16; ++k) outputs[i] += rows[h][k] * host::MatrixElement<T>(b, IsTransposed, k, column);
    }
  });
}

}  // namespace kvit

#endif  // KVIT_PLATFORM_HOST_WGMMA_HPP
