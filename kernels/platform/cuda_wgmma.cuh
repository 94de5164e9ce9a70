// Warp groups of Hopper's matrix units, the instructions of sm_90a: see platform.cuh for what each name means.
#ifndef KVIT_PLATFORM_CUDA_WGMMA_CUH
#define KVIT_PLATFORM_CUDA_WGMMA_CUH

#include "core/types.h"
#include "platform/shared_matrix.h"

namespace kvit {

KVIT_DEVICE void WgmmaFence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
KVIT_DEVICE void WgmmaCommit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N>
KVIT_DEVICE void WgmmaWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
template <int Registers>
KVIT_DEVICE void TakeRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Registers));
}
template <int Registers>
KVIT_DEVICE void GiveRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Registers));
}

namespace detail {

// Matrix descriptor, PTX ISA: address, leading and stride offsets in units of 16 bytes, 128-byte swizzle. Sums of what
// is known before and one address: an addition for each operand. No address of shared memory has more than 18 bits.
KVIT_DEVICE uint64_t Descriptor(const SharedMatrix& matrix) {
  const uint32_t low =
      (SharedAddress(matrix.base) >> 4) + (uint32_t(matrix.offset >> 4) + (uint32_t(matrix.leading_bytes >> 4) << 16));
  const uint32_t high = uint32_t(matrix.stride_bytes >> 4) | uint32_t(1) << 30;
  return uint64_t(high) << 32 | low;
}

#define KVIT_D8(i)                                                                                            \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
      "+f"(d[i + 7])
#define KVIT_D32(i) KVIT_D8(i), KVIT_D8(i + 8), KVIT_D8(i + 16), KVIT_D8(i + 24)
#define KVIT_P16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define KVIT_P32                                                                                              \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, " \
  "%23, %24, %25, %26, %27, %28, %29, %30, %31"
#define KVIT_P64                                                                                                \
  KVIT_P32                                                                                                      \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, " \
  "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

template <class T, int N, bool IsTransposed>
struct Wgmma;

// d [64, N] (+)= a b, b in shared memory, a in registers or there too.
#define KVIT_WGMMA_TEXT(N, type, placeholders, a, b, p, modes)                                      \
  "{\n.reg .pred p;\nsetp.ne.b32 p, %" p                                                            \
  ", 0;\n"                                                                                          \
  "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." type "." type " {" placeholders "}, " a ", %" b \
  ", p, 1, 1, " modes ";\n}"
#define KVIT_WGMMA(T, N, Transposed, type, placeholders, outputs, a0, a1, a2, a3, b, p)                              \
  template <>                                                                                                        \
  struct Wgmma<T, N, Transposed> {                                                                                   \
    static KVIT_DEVICE void Issue(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t descriptor, int accumulates) { \
      asm volatile(KVIT_WGMMA_TEXT(N, type, placeholders, "{%" a0 ", %" a1 ", %" a2 ", %" a3 "}", b, p, #Transposed) \
                   : outputs                                                                                         \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(descriptor), "r"(accumulates));                 \
    }                                                                                                                \
    static KVIT_DEVICE void Issue(float (&d)[N / 2], uint64_t a, uint64_t descriptor, int accumulates) {             \
      asm volatile(KVIT_WGMMA_TEXT(N, type, placeholders, "%" a0, a1, a2, "0, " #Transposed)                         \
                   : outputs                                                                                         \
                   : "l"(a), "l"(descriptor), "r"(accumulates));                                                     \
    }                                                                                                                \
  }
#define KVIT_OUT16 KVIT_D8(0), KVIT_D8(8)
#define KVIT_OUT32 KVIT_D32(0)
#define KVIT_OUT64 KVIT_D32(0), KVIT_D32(32)
#define KVIT_WGMMA_TYPE(T, type)                                                         \
  KVIT_WGMMA(T, 32, 0, type, KVIT_P16, KVIT_OUT16, "16", "17", "18", "19", "20", "21");  \
  KVIT_WGMMA(T, 64, 0, type, KVIT_P32, KVIT_OUT32, "32", "33", "34", "35", "36", "37");  \
  KVIT_WGMMA(T, 64, 1, type, KVIT_P32, KVIT_OUT32, "32", "33", "34", "35", "36", "37");  \
  KVIT_WGMMA(T, 128, 0, type, KVIT_P64, KVIT_OUT64, "64", "65", "66", "67", "68", "69"); \
  KVIT_WGMMA(T, 128, 1, type, KVIT_P64, KVIT_OUT64, "64", "65", "66", "67", "68", "69")

KVIT_WGMMA_TYPE(Half, "f16");
KVIT_WGMMA_TYPE(Bfloat16, "bf16");
#undef KVIT_WGMMA_TYPE
#undef KVIT_WGMMA
#undef KVIT_WGMMA_TEXT
#undef KVIT_OUT64
#undef KVIT_OUT32
#undef KVIT_OUT16
#undef KVIT_P64
#undef KVIT_P32
#undef KVIT_P16
#undef KVIT_D32
#undef KVIT_D8

}  // namespace detail

template <class T, bool IsTransposed, int Words>
KVIT_DEVICE void IssueWgmma(float (&d)[Words], const uint32_t (&a)[4], const SharedMatrix& b, bool accumulates) {
  detail::Wgmma<T, Words * 2, IsTransposed>::Issue(d, a, detail::Descriptor(b), accumulates);
}
template <class T, bool IsTransposed, int Words>
KVIT_DEVICE void IssueWgmma(float (&d)[Words], const SharedMatrix& a, const SharedMatrix& b, bool accumulates) {
  detail::Wgmma<T, Words * 2, IsTransposed>::Issue(d, detail::Descriptor(a), detail::Descriptor(b), accumulates);
}
/// Whether x holds in any of the 128 threads of the warp group, which call together.
KVIT_DEVICE bool SyncGroupOr(bool x) {
  uint32_t any;
  asm volatile(
      "{\n.reg .pred x, any;\nsetp.ne.u32 x, %1, 0;\nbarrier.cta.red.or.aligned.pred any, %2, 128, x;\n"
      "selp.u32 %0, 1, 0, any;\n}"
      : "=r"(any)
      : "r"(uint32_t(x)), "r"(1 + threadIdx.x / 128)
      : "memory");
  return any != 0;
}

}  // namespace kvit

#endif  // KVIT_PLATFORM_CUDA_WGMMA_CUH
