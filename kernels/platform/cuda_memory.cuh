// The GPU's memory: loads and stores, asynchronous copies, and the barriers that they complete on. See platform.cuh for
// what each name means.
#ifndef KVIT_PLATFORM_CUDA_MEMORY_CUH
#define KVIT_PLATFORM_CUDA_MEMORY_CUH

#include "abi/params.h"
#include "core/types.h"

namespace kvit {

namespace detail {
template <int Bytes>
struct Bits;
template <>
struct Bits<1> {
  using Type = unsigned char;
};
template <>
struct Bits<2> {
  using Type = unsigned short;
};
template <>
struct Bits<4> {
  using Type = unsigned int;
};
template <>
struct Bits<8> {
  using Type = uint2;
};
template <>
struct Bits<16> {
  using Type = uint4;
};
template <class V>
using BitsOf = typename Bits<sizeof(V)>::Type;
}  // namespace detail

template <class V>
KVIT_DEVICE V LoadGlobal(const void* p) {
  return BitCast<V>(*static_cast<const detail::BitsOf<V>*>(p));
}
template <class V>
KVIT_DEVICE V LoadGlobalReadOnly(const void* p) {
  return BitCast<V>(__ldg(static_cast<const detail::BitsOf<V>*>(p)));
}
KVIT_DEVICE int32_t LoadSpeculative(const int32_t* p) { return LoadGlobal<int32_t>(p); }
KVIT_DEVICE void FetchToL2(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }
KVIT_DEVICE void KeepLoadsAbove() { asm volatile("" ::: "memory"); }  // else they may be moved to where they are used
// Other CTAs see these stores, and these loads see theirs, during this launch; each word for itself.
template <int Bytes>
KVIT_DEVICE Words<Bytes> LoadStrong(const void* p) {
  static_assert(Bytes == 8 || Bytes == 16, "two words or four");
  Words<Bytes> w;
  if constexpr (Bytes == 8) {
    asm volatile("ld.relaxed.gpu.global.v2.u32 {%0, %1}, [%2];" : "=r"(w.word[0]), "=r"(w.word[1]) : "l"(p) : "memory");
  } else {
    asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(w.word[0]), "=r"(w.word[1]), "=r"(w.word[2]), "=r"(w.word[3])
                 : "l"(p)
                 : "memory");
  }
  return w;
}
KVIT_DEVICE void StoreStrong(void* p, const Words<8>& w) {
  asm volatile("st.relaxed.gpu.global.v2.u32 [%0], {%1, %2};" ::"l"(p), "r"(w.word[0]), "r"(w.word[1]) : "memory");
}
KVIT_DEVICE void StoreStrong(void* p, const Words<16>& w) {
  asm volatile("st.relaxed.gpu.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(w.word[0]), "r"(w.word[1]),
               "r"(w.word[2]), "r"(w.word[3])
               : "memory");
}
template <class V>
KVIT_DEVICE void StoreGlobal(void* p, V value) {
  *static_cast<detail::BitsOf<V>*>(p) = BitCast<detail::BitsOf<V>>(value);
}
template <class V>
KVIT_DEVICE V LoadShared(const void* p) {
  return BitCast<V>(*static_cast<const detail::BitsOf<V>*>(p));
}
template <class V>
KVIT_DEVICE void StoreShared(void* p, V value) {
  *static_cast<detail::BitsOf<V>*>(p) = BitCast<detail::BitsOf<V>>(value);
}

KVIT_DEVICE uint32_t SharedAddress(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }
KVIT_DEVICE void StayBelow(float& x) { asm volatile("" : "+f"(x)::"memory"); }
template <class T>
KVIT_DEVICE T& InRegister(T& shared) {
  uint32_t address = SharedAddress(&shared);
  asm volatile("" : "+r"(address));
  return *static_cast<T*>(__cvta_shared_to_generic(address));
}

namespace detail {
#define KVIT_CP_ASYNC(cache, prefetch)                                                                        \
  asm volatile("cp.async." cache ".shared.global" prefetch " [%0], [%1], %3, %2;" ::"r"(shared), "l"(global), \
               "r"(size), "n"(Bytes)                                                                          \
               : "memory")
template <int Bytes, int Line>
KVIT_DEVICE void CpAsync(uint32_t shared, const void* global, int size) {
  // 16-byte copies bypass L1: a byte of the cache is read once.
  if constexpr (Bytes == 16 && Line == 128) {
    KVIT_CP_ASYNC("cg", ".L2::128B");
  } else if constexpr (Bytes == 16 && Line == 64) {
    KVIT_CP_ASYNC("cg", ".L2::64B");
  } else if constexpr (Bytes == 16) {
    KVIT_CP_ASYNC("cg", "");
  } else {
    KVIT_CP_ASYNC("ca", "");
  }
}
#undef KVIT_CP_ASYNC
}  // namespace detail

// The source is not read where the size given is 0.
template <int Bytes, int Line = 0>
KVIT_DEVICE void CopyAsync(void* shared, const void* global, bool valid) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "cp.async moves 4, 8 or 16 bytes");
  detail::CpAsync<Bytes, Line>(SharedAddress(shared), global, valid ? Bytes : 0);
}
// The first `bytes` bytes, and zeros behind them.
template <int Bytes>
KVIT_DEVICE void CopyAsyncPart(void* shared, const void* global, int bytes) {
  detail::CpAsync<Bytes, 0>(SharedAddress(shared), global, bytes);
}
KVIT_DEVICE void CopyAsyncCommit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
KVIT_DEVICE void CopyAsyncWait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// Barriers in shared memory that count arrivals and bytes; TMA (sm_90).
KVIT_DEVICE void InitBarrier(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(SharedAddress(barrier)), "r"(arrivals) : "memory");
}
KVIT_DEVICE void FenceBarrierInit() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
KVIT_DEVICE void FenceAsyncCopies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
KVIT_DEVICE void ArriveExpecting(uint64_t* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(SharedAddress(barrier)), "r"(bytes)
               : "memory");
}
KVIT_DEVICE void Arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(SharedAddress(barrier)) : "memory");
}
KVIT_DEVICE void WaitBarrier(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}" ::"r"(SharedAddress(barrier)),
      "r"(parity)
      : "memory");
}
KVIT_DEVICE void PrefetchTensorMap(const KvitTensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}
struct TmaCoordinates {
  int byte, token, chunk, head, page;
};
template <bool IsReadOnce = true>
KVIT_DEVICE void TmaLoad(void* shared, const KvitTensorMap& map, const TmaCoordinates& at, uint64_t* barrier) {
  if constexpr (IsReadOnce) {  // first out of L2
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint"
        " [%0], [%1, {%2, %3, %4, %5, %6}], [%7], %8;" ::"r"(SharedAddress(shared)),
        "l"(&map), "r"(at.byte), "r"(at.token), "r"(at.chunk), "r"(at.head), "r"(at.page), "r"(SharedAddress(barrier)),
        "l"(policy)
        : "memory");
  } else {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
        " [%0], [%1, {%2, %3, %4, %5, %6}], [%7];" ::"r"(SharedAddress(shared)),
        "l"(&map), "r"(at.byte), "r"(at.token), "r"(at.chunk), "r"(at.head), "r"(at.page), "r"(SharedAddress(barrier))
        : "memory");
  }
}

}  // namespace kvit

#endif  // KVIT_PLATFORM_CUDA_MEMORY_CUH
