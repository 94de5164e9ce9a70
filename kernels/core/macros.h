// Function qualifiers that mean the same under nvcc and g++.
#ifndef KVIT_CORE_MACROS_H
#define KVIT_CORE_MACROS_H

#ifdef __CUDACC__
#define KVIT_HD __host__ __device__ __forceinline__  // index maps and values: callable from anywhere
#define KVIT_DEVICE __device__ __forceinline__       // code that runs in a CTA
#define KVIT_UNROLL _Pragma("unroll")
#define KVIT_ROLLED _Pragma("unroll 1")
#else
#define KVIT_HD inline
#define KVIT_DEVICE inline
#define KVIT_UNROLL
#define KVIT_ROLLED
#endif

#endif  // KVIT_CORE_MACROS_H
