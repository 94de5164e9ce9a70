// Picks the machine, as platform.cuh does, for kernels that use Hopper's warp groups.
#ifndef KVIT_PLATFORM_WGMMA_CUH
#define KVIT_PLATFORM_WGMMA_CUH

#ifdef __CUDACC__
#include "platform/cuda_wgmma.cuh"
#else
#include "platform/host_wgmma.hpp"
#endif

#endif  // KVIT_PLATFORM_WGMMA_CUH
