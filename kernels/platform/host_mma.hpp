// Matrix instructions of one warp, emulated: all lanes meet, and one of them computes for all.
#ifndef KVIT_PLATFORM_HOST_MMA_HPP
#define KVIT_PLATFORM_HOST_MMA_HPP

#include <cstring>

#include "platform/host_cta.hpp"
#include "platform/host_math.hpp"

namespace kvit {

namespace host {

// Each lane reads its own row before the warp meets, so that a row which another lane copied needs a SyncWarp first.
inline Warp::Mailbox& PublishRow(const void* row) {
  const auto bytes = LoadShared<Words<16>>(row);
  return Exchange("LoadMatrix", &bytes, sizeof(bytes), nullptr);
}

inline uint32_t Element(const Warp::Mailbox& mailbox, int tile, int row, int column) {
  uint16_t x;
  std::memcpy(&x, mailbox.in[tile * 8 + row] + column * 2, sizeof(x));
  return x;
}

template <class T>
float Operand(const unsigned char* words, int index) {
  T x;
  std::memcpy(&x, words + index * 2, sizeof(x));
  return ToFloat(x);
}

struct Coordinates {
  int row, column;
};

// d [16, 8] += a [16, K] b [K, 8]. in[lane]: a[K / 4], b[K / 8], d[4] as 32-bit words; out[lane]: d[4]. Layouts: PTX
// ISA, mma.m16n8k8 and mma.m16n8k16.
template <class T, int K>
void CompleteMma(Warp::Mailbox& mailbox) {
  float a[16][K], b[K][8];
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const unsigned char* words = mailbox.in[lane];
    for (int i = 0; i < K / 2; ++i) {  // a[i / 2], half i % 2
      const int row = lane / 4 + (i / 2 % 2) * 8, column = lane % 4 * 2 + i % 2 + (i / 4) * 8;
      a[row][column] = Operand<T>(words, i);
    }
    for (int i = 0; i < K / 4; ++i) {
      b[lane % 4 * 2 + i % 2 + (i / 2) * 8][lane / 4] = Operand<T>(words, K / 2 + i);
    }
  }
  float d[16][8];
  const auto place = [](int lane, int i) { return Coordinates{lane / 4 + (i / 2) * 8, lane % 4 * 2 + i % 2}; };
  for (int lane = 0; lane < kWarpSize; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const unsigned char* from = mailbox.in[lane] + K + K / 2 + i * 4;
      std::memcpy(&d[place(lane, i).row][place(lane, i).column], from, sizeof(float));
    }
  }
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < K; ++k) {
      for (int column = 0; column < 8; ++column) d[row][column] += a[row][k] * b[k][column];
    }
  }
  for (int lane = 0; lane < kWarpSize; ++lane) {
    for (int i = 0; i < 4; ++i) {
      std::memcpy(mailbox.out[lane] + i * 4, &d[place(lane, i).row][place(lane, i).column], sizeof(float));
    }
  }
}

template <class T, int K>
void Multiply(float (&d)[4], const uint32_t* a, const uint32_t* b) {
  unsigned char words[K + K / 2 + sizeof(d)];
  std::memcpy(words, a, K);
  std::memcpy(words + K, b, K / 2);
  std::memcpy(words + K + K / 2, d, sizeof(d));
  std::memcpy(d, Exchange("Mma", words, sizeof(words), CompleteMma<T, K>).out[LaneIndex()], sizeof(d));
}

}  // namespace host

inline void LoadMatrixX4(uint32_t (&r)[4], const void* row) {
  const auto& mailbox = host::PublishRow(row);
  const int lane = LaneIndex();
  for (int i = 0; i < 4; ++i) {
    r[i] = host::Element(mailbox, i, lane / 4, lane % 4 * 2) | host::Element(mailbox, i, lane / 4, lane % 4 * 2 + 1)
                                                                   << 16;
  }
}
inline void LoadMatrixX4Transposed(uint32_t (&r)[4], const void* row) {
  const auto& mailbox = host::PublishRow(row);
  const int lane = LaneIndex();
  for (int i = 0; i < 4; ++i) {
    r[i] = host::Element(mailbox, i, lane % 4 * 2, lane / 4) | host::Element(mailbox, i, lane % 4 * 2 + 1, lane / 4)
                                                                   << 16;
  }
}
// Lane l holds (row l / 4, columns l % 4 * 2 and the next) before and after.
inline uint32_t TransposeMatrix(uint32_t x) {
  const auto& mailbox = host::Exchange("TransposeMatrix", &x, sizeof(x), nullptr);
  uint32_t y = 0;
  for (int i = 0; i < 2; ++i) {
    const int row = LaneIndex() % 4 * 2 + i, column = LaneIndex() / 4;
    uint16_t element;
    std::memcpy(&element, mailbox.in[row * 4 + column / 2] + column % 2 * 2, sizeof(element));
    y |= uint32_t(element) << (16 * i);
  }
  return y;
}

template <class T>
void MmaM16N8K16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  host::Multiply<T, 16>(d, a, b);
}
inline void MmaM16N8K8(float (&d)[4], const uint32_t (&a)[2], uint32_t b) { host::Multiply<Half, 8>(d, a, &b); }

}  // namespace kvit

#endif  // KVIT_PLATFORM_HOST_MMA_HPP
