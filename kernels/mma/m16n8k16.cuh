// mma.m16n8k16 on 16-bit operands: which elements of its matrices a lane holds, and how operands are loaded.
//
// Decode computes transposed, so that query rows take the narrow side (n = 8):
//
//   S^T [16 tokens, 8 rows]      A = K [token, channel], B = Q^T      lane l: rows l % 4 * 2 + j, tokens l / 4 + 8 t
//   O^T [16 channels, 8 rows]    A = V^T, B = P^T                     lane l: rows l % 4 * 2 + j, channels l / 4 + 8 t
//
// Prefill computes straight, so that query rows take the wide side (m = 16). The same operands of K and V serve: their
// registers {0, 2} are one B operand, of 8 tokens or channels, and {1, 3} the next.
//
//   S [16 rows, 8 tokens]        A = Q [row, channel], B = K^T        lane l: rows l / 4 + 8 h, tokens l % 4 * 2 + j
//   O [16 rows, 8 channels]      A = P, B = V                         lane l: rows l / 4 + 8 h, channels l % 4 * 2 + j
#ifndef KVIT_MMA_M16N8K16_CUH
#define KVIT_MMA_M16N8K16_CUH

#include "core/macros.h"
#include "platform/platform.cuh"

namespace kvit {

/// Row (of the row tile) of value j (0 or 1) of n-tile n in a lane's fragments of S, P and O.
KVIT_DEVICE int FragmentRow(int n, int j) { return n * 8 + LaneIndex() % 4 * 2 + j; }
/// Token (of a step's 16) of value i of a fragment of S.
KVIT_DEVICE int FragmentToken(int i) { return LaneIndex() / 4 + i / 2 * 8; }
/// Row of the row tile whose elements of Q^T a lane loads, for n-tile n.
KVIT_DEVICE int OperandRow(int n) { return n * 8 + LaneIndex() / 4; }

/// A operand of K: `address(s, c)` is the shared-memory address of token s (of 16) from channel c on, in units of 16
/// bits; `channel` the first of 16, half_channels of which lie in 16 bytes.
template <class Address>
KVIT_DEVICE void LoadKeyOperand(uint32_t (&a)[4], Address&& address, int channel, int half_channels) {
  LoadMatrixX4(a, address(LaneIndex() % 16, channel + LaneIndex() / 16 * half_channels));
}

/// A operand of V^T, transposed on the way.
template <class Address>
KVIT_DEVICE void LoadValueOperand(uint32_t (&a)[4], Address&& address, int channel, int half_channels) {
  const int lane = LaneIndex();
  LoadMatrixX4Transposed(a, address(lane / 16 * 8 + lane % 8, channel + lane / 8 % 2 * half_channels));
}

/// How products are made of the operands of a lane: d += a b, T being what a and b hold. M16N8K8 is the other way.
struct M16N8K16 {
  template <class T>
  static KVIT_DEVICE void Multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    MmaM16N8K16<T>(d, a, b);
  }
};

/// d[half] += a b, where b is an operand of K or of V: half 0 has its registers {0, 2}, half 1 {1, 3}.
template <class Mma, class T>
KVIT_DEVICE void MmaStraight(float (&d)[2][4], const uint32_t (&a)[4], const uint32_t (&b)[4]) {
  const uint32_t low[2] = {b[0], b[2]}, high[2] = {b[1], b[3]};
  Mma::template Multiply<T>(d[0], a, low);
  Mma::template Multiply<T>(d[1], a, high);
}

}  // namespace kvit

#endif  // KVIT_MMA_M16N8K16_CUH
