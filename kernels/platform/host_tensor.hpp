// Tensor copies of the emulated CTA: what a tensor map says, and boxes that land when their barrier is waited for.
#ifndef KVIT_PLATFORM_HOST_TENSOR_HPP
#define KVIT_PLATFORM_HOST_TENSOR_HPP

#include <cstdint>

#include "abi/params.h"

namespace kvit::host {

struct TmaCoordinates {
  int byte, token, chunk, head, page;
};

/// The target is poisoned now, and filled when somebody waits for the barrier.
void IssueBox(void* shared, const KvitTensorMap& map, const TmaCoordinates& at, uint64_t* barrier);
void InitBarrier(uint64_t* barrier, int arrivals);
void ArriveExpecting(uint64_t* barrier, int bytes);
void WaitBarrier(uint64_t* barrier, uint32_t parity);

}  // namespace kvit::host

#endif  // KVIT_PLATFORM_HOST_TENSOR_HPP
