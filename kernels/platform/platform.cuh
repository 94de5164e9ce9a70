// Picks the machine: a GPU (cuda.cuh) or the host's emulated CTA (host.hpp). Both define exactly these names, in
// namespace kvit.
// clang-format off
//
//   ids            int ThreadIndex(), WarpIndex(), LaneIndex(); int BlockIndex(), GridSize()   (x of a one-dimensional CTA and grid)
//   values         Half, Bfloat16: 16-bit storage, `bits`; ToFloat(x), FromFloat<T>(f) rounds to nearest even
//                  uint32_t Pack2<T>(float lo, float hi); Float2 Unpack2<T>(uint32_t)
//                  uint32_t Min2<T>(a, b), Max2<T>(a, b): of both halves; NaN where one is NaN; MaxUnsigned2(a, b): as integers
//                  uint32_t PackE4M3(float lo, float hi), PackE5M2(lo, hi): two float8, as core/float8.h rounds them
//                  float RoundedProduct(a, b), RoundedSum(a, b): float32 operations that the compiler does not fuse
//                  float Exp2(float), Log2(float), Reciprocal(float)
//                  kConvertsFloat8: whether there is uint32_t HalvesFromE4M3<0 or 1>(uint32_t), two f16 from the two codes of the low or high half
//                  uint32_t PermuteBytes(a, b, selector) (prmt), MaskOr(x, mask, bits) = (x & mask) | bits
//   global         V LoadGlobal<V>(const void*); LoadGlobalReadOnly<V>(...): of what no launch writes, since it may move above GridDependencySync
//                  int32_t LoadSpeculative(const int32_t*): before GridDependencySync; it may be old, and is wrong now and then on the host
//                  void FetchToL2(const void*): the 32 bytes around, to be loaded soon; KeepLoadsAbove(): loads before it come first
//                  void StoreGlobal<V>(void*, V)
//                  Words<N> LoadStrong<N>(const void*), StoreStrong(void*, Words<N>): seen by CTAs that run side by side, each word for itself
//   shared         V LoadShared<V>(const void*), void StoreShared<V>(void*, V)        V: trivially copyable, 1..16 bytes, aligned
//                  StayBelow(x): what is computed from x from here on stays below the waits and barriers above
//                  T& InRegister(T& shared): the same, whose address the compiler keeps, and does not make anew wherever it is used
//   asynchronous   CopyAsync<Bytes, Line = 0>(void* shared, const void* global, bool valid)   4, 8 or 16 bytes; zeros where not
//                  valid; a hint that the 64 or 128 bytes of the Line around the source will be wanted too
//                  CopyAsyncPart<Bytes>(void* shared, const void* global, int bytes): the first of them, and zeros
//                  CopyAsyncCommit(); CopyAsyncWait<N>(): at most N newest groups of this thread are still under way
//   barriers       in shared memory, uint64_t: InitBarrier(barrier, int arrivals), FenceBarrierInit(); ArriveExpecting(barrier, int bytes), Arrive(barrier);
//                  WaitBarrier(barrier, uint32_t parity): until the phase of that parity (0 first) has its arrivals and its bytes
//   TMA            TmaLoad<IsReadOnce = true>(void* shared, const KvitTensorMap&, TmaCoordinates, barrier): a box, zeros where the map has nothing;
//                  PrefetchTensorMap(map); FenceAsyncCopies(): this thread's stores to shared memory precede later copies
//   launches       GridDependencyWait(): until the launch in front has ended; GridDependencyLaunch(): the next one may start, once all CTAs say so
//                  (after their wait: never more than two overlap). kLaunchesOverlap: whether there ever is a launch to wait for
//   CTA            SyncThreads(); bool SyncThreadsOr(bool)
//   warp           SyncWarp(); T Shuffle(T, int lane), ShuffleXor(T, int mask), ShuffleUp(T, int delta); uint32_t Ballot(bool)
//                  int LowestBit(uint32_t): of what is not 0; Pause(): before looking again at what another CTA has yet to write
//                  T: 4 or 8 bytes. All 32 lanes call together.
//   matrix         LoadMatrixX4(uint32_t (&r)[4], const void* shared_row), LoadMatrixX4Transposed(...)   ldmatrix: 8x8 16-bit tiles
//                  uint32_t TransposeMatrix(uint32_t)                                                   movmatrix
//                  MmaM16N8K16<T>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2])        d += a b, f32 accumulation
//                  MmaM16N8K8(float (&d)[4], const uint32_t (&a)[2], uint32_t b)                        the same of f16, with a of 8 columns
//   warp groups    of four warps (sm_90a): IssueWgmma<T, IsTransposed>(float (&d)[N / 2], a, const SharedMatrix& b, bool accumulates)
//                  d [64, N] = a b, or more, asynchronously; a warp has 16 of the rows, a and d lie in its lanes as MmaM16N8K16's do, block of 8 columns after block;
//                  a may be a SharedMatrix too, of all 64 rows
//                  WgmmaFence(): before the first, and after registers were written; WgmmaCommit(); WgmmaWait<N>(): at most N newest groups are under way
//                  TakeRegisters<N>(), GiveRegisters<N>(): all threads of a warp group, once; bool SyncGroupOr(bool): of its 128 threads
//   device-wide    uint32_t AtomicAdd(uint32_t*, uint32_t) (relaxed), int32_t AtomicCas(int32_t*, int32_t expected, int32_t desired)
//                  uint32_t AtomicIncrement(uint32_t*, uint32_t last): one more, or 0 after `last`; returns what was there. Before GridDependencySync too
//   KVIT_KERNEL(symbol, Type): the entry point
// clang-format on
#ifndef KVIT_PLATFORM_PLATFORM_CUH
#define KVIT_PLATFORM_PLATFORM_CUH

#ifdef __CUDACC__
#include "platform/cuda.cuh"
#else
#include "platform/host.hpp"
#endif

namespace kvit {

/// Waits until the launch in front has ended, then lets the next one start: never more than two overlap.
KVIT_DEVICE void GridDependencySync() {
  GridDependencyWait();
  GridDependencyLaunch();
}

}  // namespace kvit

#endif  // KVIT_PLATFORM_PLATFORM_CUH
