// Element types and their fixed codes, shared by C, C++, Cython and Python. A code never changes its meaning.
#ifndef KVIT_ABI_DTYPE_H
#define KVIT_ABI_DTYPE_H

#include <stdint.h>

// X(NAME, code, bits, "name in Python")
#define KVIT_DTYPES(X)             \
  X(F32, 1, 32, "float32")         \
  X(F16, 2, 16, "float16")         \
  X(BF16, 3, 16, "bfloat16")       \
  X(U8, 4, 8, "uint8")             \
  X(U4, 5, 4, "uint4")             \
  X(F8E4M3, 6, 8, "float8_e4m3fn") \
  X(F8E5M2, 7, 8, "float8_e5m2")   \
  X(I32, 8, 32, "int32")           \
  X(I64, 9, 64, "int64")           \
  X(U16, 10, 16, "uint16")         \
  X(U32, 11, 32, "uint32")         \
  X(F64, 12, 64, "float64")        \
  X(I8, 13, 8, "int8")

enum KvitDtype {
#define KVIT_DTYPE_ENUM(name, code, bits, text) KVIT_##name = code,
  KVIT_DTYPES(KVIT_DTYPE_ENUM)
#undef KVIT_DTYPE_ENUM
};

#endif  // KVIT_ABI_DTYPE_H
