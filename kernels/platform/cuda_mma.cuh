// The GPU's matrix instructions, of one warp: see platform.cuh for what each name means.
#ifndef KVIT_PLATFORM_CUDA_MMA_CUH
#define KVIT_PLATFORM_CUDA_MMA_CUH

#include "core/types.h"

namespace kvit {

// Lane l gives the address of row l % 8 of tile l / 8; r[i] holds (row lane / 4, columns lane % 4 * 2 and the next) of
// tile i.
KVIT_DEVICE void LoadMatrixX4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(SharedAddress(row))
               : "memory");
}
KVIT_DEVICE void LoadMatrixX4Transposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(SharedAddress(row))
               : "memory");
}
KVIT_DEVICE uint32_t TransposeMatrix(uint32_t x) {
  uint32_t y;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}

template <class T>
KVIT_DEVICE void MmaM16N8K16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

#define KVIT_MMA(T, ptx)                                                                           \
  template <>                                                                                      \
  KVIT_DEVICE void MmaM16N8K16<T>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { \
    asm("mma.sync.aligned.m16n8k16.row.col.f32." ptx "." ptx                                       \
        ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                     \
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                           \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                       \
  }
KVIT_MMA(Half, "f16")
KVIT_MMA(Bfloat16, "bf16")
#undef KVIT_MMA

KVIT_DEVICE void MmaM16N8K8(float (&d)[4], const uint32_t (&a)[2], uint32_t b) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(b));
}

}  // namespace kvit

#endif  // KVIT_PLATFORM_CUDA_MMA_CUH
