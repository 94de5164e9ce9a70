// The host backend's C interface: what the runtime loads from libkvit_host.so.
#ifndef KVIT_PLATFORM_HOST_API_H
#define KVIT_PLATFORM_HOST_API_H

#include <stdint.h>

#include "abi/fact.h"

#ifdef __cplusplus
extern "C" {
#endif

// Memory that a launch may touch. Anything else is an error with the thread's coordinates.
typedef struct KvitSpan {
  const void* base;
  int64_t bytes;
  int32_t writable;
  int32_t pre_dependency;  // 1: the launch in front leaves it alone, so that it may be touched before the kernel's turn
} KvitSpan;

// Runs one thread of one CTA; called on a fiber or an OS thread that the scheduler made.
typedef void (*KvitHostBody)(const void* params, char* shared);

typedef struct KvitHostKernel {
  const char* symbol;
  KvitHostBody body;
  int32_t threads, shared_bytes, min_ctas, params_bytes;
  const KvitFact* facts;
  int32_t num_facts;
  int32_t reserved;
} KvitHostKernel;

// What a KvitTensorMap holds where the host backend copies by it.
typedef struct KvitHostTensorMap {
  const void* base;
  int64_t extents[5];  // byte, token, chunk, head, page
  int64_t strides[4];  // in bytes, of the last four
  int32_t box_bytes, box_tokens;
  int64_t magic;  // KVIT_HOST_TENSOR_MAP
} KvitHostTensorMap;

enum { KVIT_HOST_TENSOR_MAP = 0x6b766974 };

enum KvitHostScheduler {
  KVIT_HOST_FIBERS = 0,   // deterministic: a CTA's threads take turns on one OS thread
  KVIT_HOST_THREADS = 1,  // one OS thread per CUDA thread, for ThreadSanitizer
};

typedef struct KvitHostLaunch {
  const KvitHostKernel* kernel;
  const void* params;
  const KvitSpan* spans;
  uint32_t grid;
  int32_t num_spans;
  int32_t scheduler;
  int32_t workers;  // OS threads that run CTAs side by side; 0: as many as cores. Fewer, where the system has no more
  uint32_t seed;    // of what speculative loads find: each seed makes up other old values, the same at any addresses
} KvitHostLaunch;

int32_t kvit_host_kernels(const KvitHostKernel* const** kernels);  // how many; *kernels points at an array of pointers
int32_t kvit_host_launch(
    const KvitHostLaunch* launch);  // 0, or 1 and kvit_host_error() says why; never ends the process
const char* kvit_host_error(void);  // of this thread's last launch

#ifdef __cplusplus
}
#endif

#endif  // KVIT_PLATFORM_HOST_API_H
