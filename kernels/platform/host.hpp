// The host: the same names as the GPU's, on an emulated CTA. See platform.cuh for what each means, host_cta.hpp for
// how.
#ifndef KVIT_PLATFORM_HOST_HPP
#define KVIT_PLATFORM_HOST_HPP

#include <cstring>
#include <iterator>

#include "platform/host_cta.hpp"
#include "platform/host_math.hpp"
#include "platform/host_tensor.hpp"

namespace kvit {

// --- ids -----------------------------------------------------------------------------------------------------------

inline int ThreadIndex() { return host::self->index; }
inline int LaneIndex() { return host::self->lane; }
inline int WarpIndex() { return host::self->index / host::kWarpSize; }
inline int BlockIndex() { return host::self->cta->block; }
inline int GridSize() { return int(host::self->cta->launch->grid); }

// --- memory --------------------------------------------------------------------------------------------------------

template <class V>
V LoadGlobal(const void* p) {
  host::CheckGlobal(p, sizeof(V), false, "load");
  V value;
  std::memcpy(&value, p, sizeof(V));
  return value;
}
template <class V>
V LoadGlobalReadOnly(const void* p) {
  return LoadGlobal<V>(p);
}
inline int32_t LoadSpeculative(const int32_t* p) {
  const auto now = uint32_t(*p);
  switch (host::Guess(p)) {
    case host::OldValue::kInverse:
      return int32_t(~now);
    case host::OldValue::kLess:
      return int32_t(now - 1);
    case host::OldValue::kMore:
      return int32_t(now + 1);
    default:
      return int32_t(now);
  }
}
inline void FetchToL2(const void* p) { host::CheckPreDependency(p, 1, "fetch"); }
inline void KeepLoadsAbove() {}
template <class V>
void StoreGlobal(void* p, V value) {
  host::CheckGlobal(p, sizeof(V), true, "store");
  std::memcpy(p, &value, sizeof(V));
}
template <class V>
V LoadShared(const void* p) {
  host::CheckShared(p, sizeof(V), "load");
  V value;
  std::memcpy(&value, p, sizeof(V));
  return value;
}
template <class V>
void StoreShared(void* p, V value) {
  host::CheckShared(p, sizeof(V), "store");
  std::memcpy(p, &value, sizeof(V));
}

template <int Bytes>
Words<Bytes> LoadStrong(const void* p) {
  host::CheckGlobal(p, Bytes, false, "strong load");
  Words<Bytes> w;
  for (int i = 0; i < Bytes / 4; ++i)
    w.word[i] = __atomic_load_n(static_cast<const uint32_t*>(p) + i, __ATOMIC_ACQUIRE);
  return w;
}
template <int Bytes>
void StoreStrong(void* p, const Words<Bytes>& w) {
  host::CheckGlobal(p, Bytes, true, "strong store");
  for (int i = 0; i < Bytes / 4; ++i) {
    __atomic_store_n(static_cast<uint32_t*>(p) + i, w.word[i], __ATOMIC_RELEASE);
  }
}

template <int Bytes, int /*Line*/ = 0>
void CopyAsync(void* shared, const void* global, bool valid) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "cp.async moves 4, 8 or 16 bytes");
  host::IssueCopy(shared, global, Bytes, valid ? Bytes : 0);
}
template <int Bytes>
void CopyAsyncPart(void* shared, const void* global, int bytes) {
  host::IssueCopy(shared, global, Bytes, bytes);
}
inline void CopyAsyncCommit() { host::CommitCopies(); }
template <int N>
void CopyAsyncWait() {
  host::WaitCopies(N);
}

inline void InitBarrier(uint64_t* barrier, int arrivals) { host::InitBarrier(barrier, arrivals); }
inline void FenceBarrierInit() {}
inline void FenceAsyncCopies() {}
inline void ArriveExpecting(uint64_t* barrier, int bytes) { host::ArriveExpecting(barrier, bytes); }
inline void Arrive(uint64_t* barrier) { host::ArriveExpecting(barrier, 0); }
inline void WaitBarrier(uint64_t* barrier, uint32_t parity) { host::WaitBarrier(barrier, parity); }
using host::TmaCoordinates;
inline void PrefetchTensorMap(const KvitTensorMap&) {}
template <bool /*IsReadOnce*/ = true>
void TmaLoad(void* shared, const KvitTensorMap& map, const TmaCoordinates& at, uint64_t* barrier) {
  host::IssueBox(shared, map, at, barrier);
}

// --- CTA, warp and device --------------------------------------------------------------------------------------------

inline void SyncThreads() { host::ArriveCta("SyncThreads"); }
inline bool SyncThreadsOr(bool x) { return host::VoteCta(x); }
inline void SyncWarp() { host::Exchange("SyncWarp", nullptr, 0, nullptr); }

template <class T>
T Shuffle(T x, int lane) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "a shuffle moves 4 or 8 bytes");
  T y;
  std::memcpy(&y, host::Exchange("Shuffle", &x, sizeof(T), nullptr).in[lane % host::kWarpSize], sizeof(T));
  return y;
}
template <class T>
T ShuffleXor(T x, int mask) {
  return Shuffle(x, LaneIndex() ^ mask);
}
template <class T>
T ShuffleUp(T x, int delta) {
  return Shuffle(x, LaneIndex() < delta ? LaneIndex() : LaneIndex() - delta);
}
inline uint32_t Ballot(bool x) {
  const auto& mailbox = host::Exchange("Ballot", &x, sizeof(x), nullptr);
  uint32_t ballot = 0;
  for (int lane = 0; lane < host::kWarpSize; ++lane) ballot |= uint32_t(mailbox.in[lane][0] != 0) << lane;
  return ballot;
}

inline int LowestBit(uint32_t x) { return __builtin_ctz(x); }
inline void Pause() { host::Pause("another CTA"); }
inline constexpr bool kLaunchesOverlap = true;  // as far as speculative loads go
inline void GridDependencyWait() { host::self->is_synced = true; }
inline void GridDependencyLaunch() {}

inline uint32_t AtomicAdd(uint32_t* p, uint32_t x) {
  host::CheckGlobal(p, sizeof(*p), true, "atomic add");
  return __atomic_fetch_add(p, x, __ATOMIC_SEQ_CST);
}
inline uint32_t AtomicIncrement(uint32_t* p, uint32_t last) {
  host::CheckPreDependency(p, sizeof(*p), "atomic increment", true);
  uint32_t now = __atomic_load_n(p, __ATOMIC_SEQ_CST);
  while (!__atomic_compare_exchange_n(p, &now, now >= last ? 0 : now + 1, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
  }
  return now;
}
inline int32_t AtomicCas(int32_t* p, int32_t expected, int32_t desired) {
  host::CheckGlobal(p, sizeof(*p), true, "atomic compare and swap");
  __atomic_compare_exchange_n(p, &expected, desired, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
  return expected;
}

// --- matrix ----------------------------------------------------------------------------------------------------------

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

// in[lane]: a[4], b[2], d[4] as 32-bit words; out[lane]: d[4]. Layouts: PTX ISA, mma.m16n8k16.
template <class T>
void CompleteMma(Warp::Mailbox& mailbox) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const unsigned char* words = mailbox.in[lane];
    for (int i = 0; i < 8; ++i) {  // a[i / 2], half i % 2
      const int row = lane / 4 + (i / 2 % 2) * 8, column = lane % 4 * 2 + i % 2 + (i / 4) * 8;
      a[row][column] = Operand<T>(words, i);
    }
    for (int i = 0; i < 4; ++i) b[lane % 4 * 2 + i % 2 + (i / 2) * 8][lane / 4] = Operand<T>(words, 8 + i);
  }
  float d[16][8];
  const auto place = [](int lane, int i) { return Coordinates{lane / 4 + (i / 2) * 8, lane % 4 * 2 + i % 2}; };
  for (int lane = 0; lane < kWarpSize; ++lane) {
    for (int i = 0; i < 4; ++i) {
      std::memcpy(&d[place(lane, i).row][place(lane, i).column], mailbox.in[lane] + 24 + i * 4, sizeof(float));
    }
  }
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < 16; ++k) {
      for (int column = 0; column < 8; ++column) d[row][column] += a[row][k] * b[k][column];
    }
  }
  for (int lane = 0; lane < kWarpSize; ++lane) {
    for (int i = 0; i < 4; ++i) {
      std::memcpy(mailbox.out[lane] + i * 4, &d[place(lane, i).row][place(lane, i).column], sizeof(float));
    }
  }
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
  unsigned char words[40];
  std::memcpy(words, a, 16);
  std::memcpy(words + 16, b, 8);
  std::memcpy(words + 24, d, 16);
  std::memcpy(d, host::Exchange("Mma", words, sizeof(words), host::CompleteMma<T>).out[LaneIndex()], sizeof(d));
}

}  // namespace kvit

#include "platform/host_wgmma.hpp"

// --- entry -----------------------------------------------------------------------------------------------------------

#define KVIT_KERNEL(symbol, ...)                                                        \
  namespace kvit::host {                                                                \
  using symbol##_type = __VA_ARGS__;                                                    \
  static void symbol##_body(const void* params, char* shared) {                         \
    symbol##_type::Run(*static_cast<const symbol##_type::Params*>(params), shared);     \
  }                                                                                     \
  static const KvitHostKernel symbol##_kernel = {#symbol,                               \
                                                 &symbol##_body,                        \
                                                 symbol##_type::kThreads,               \
                                                 symbol##_type::kSharedBytes,           \
                                                 symbol##_type::kMinCtas,               \
                                                 int(sizeof(symbol##_type::Params)),    \
                                                 symbol##_type::kFacts,                 \
                                                 int(std::size(symbol##_type::kFacts)), \
                                                 0};                                    \
  static const Registration symbol##_registration(&symbol##_kernel);                    \
  }

#endif  // KVIT_PLATFORM_HOST_HPP
