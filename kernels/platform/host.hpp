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

inline void StayBelow(float&) {}
template <class T>
T& InRegister(T& shared) {
  return shared;
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

}  // namespace kvit

#include "platform/host_mma.hpp"
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
