// Function qualifiers that mean the same under nvcc and g++.
#ifndef KVIT_CORE_MACROS_H
#define KVIT_CORE_MACROS_H

#ifdef __CUDACC__
#define KVIT_HD __host__ __device__ __forceinline__  // index maps and values: callable from anywhere
#define KVIT_DEVICE __device__ __forceinline__       // code that runs in a CTA
#define KVIT_UNROLL _Pragma("unroll")
#else
#define KVIT_HD inline
#define KVIT_DEVICE inline
#define KVIT_UNROLL
#endif

#endif  // KVIT_CORE_MACROS_H
