// How a kernel tells that a page table, a length or an offset was not what it should be.
#ifndef KVIT_CACHE_FAULT_CUH
#define KVIT_CACHE_FAULT_CUH

#include "abi/params.h"
#include "core/macros.h"
#include "platform/platform.cuh"

namespace kvit {

/// Keeps `fault` in `report` (device memory, not null) if it is the first since `report` was zeroed. Any thread may
/// call.
KVIT_DEVICE void ReportFault(KvitFault* report, const KvitFault& fault) {
  if (AtomicCas(&report->kind, KVIT_FAULT_NONE, fault.kind) != KVIT_FAULT_NONE) return;
  StoreGlobal(&report->sequence, fault.sequence);
  StoreGlobal(&report->slot, fault.slot);
  StoreGlobal(&report->value, fault.value);
}

}  // namespace kvit

#endif  // KVIT_CACHE_FAULT_CUH
