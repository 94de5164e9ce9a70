# The kernels of the host backend: compiled by g++, loaded from libkvit_host.so, run on ordinary memory.
from libc.stdint cimport int32_t, int64_t, uint32_t


cdef extern from "abi/fact.h":
    ctypedef struct KvitFact:
        const char *name
        int32_t value


cdef extern from "platform/host_api.h":
    ctypedef struct KvitSpan:
        const void *base
        int64_t bytes
        int32_t writable
        int32_t pre_dependency

    ctypedef void (*KvitHostBody)(const void *params, char *shared) noexcept nogil

    ctypedef struct KvitHostKernel:
        const char *symbol
        KvitHostBody body
        int32_t threads
        int32_t shared_bytes
        int32_t min_ctas
        int32_t params_bytes
        const KvitFact *facts
        int32_t num_facts

    enum:
        KVIT_HOST_FIBERS
        KVIT_HOST_THREADS

    ctypedef struct KvitHostTensorMap:
        const void *base
        int64_t[5] extents
        int64_t[4] strides
        int32_t box_bytes
        int32_t box_tokens
        int64_t magic

    enum:
        KVIT_HOST_TENSOR_MAP

    ctypedef struct KvitHostLaunch:
        const KvitHostKernel *kernel
        const void *params
        const KvitSpan *spans
        uint32_t grid
        int32_t num_spans
        int32_t scheduler
        int32_t workers
        uint32_t seed

# What `writable` of a span may say: written, or the workspace of an operation, which a launch finds all zero and leaves
# so. A launch that does not come to its end, by itself or in a graph, has it made zero again.
cdef enum:
    SPAN_IS_WRITTEN = 1
    SPAN_IS_WORKSPACE = 2

# The kernel of that name. Raises HostBackendError where the library is not built or has no such kernel.
cdef const KvitHostKernel *host_kernel(str symbol) except NULL

# Runs a grid to its end. Not 0 if a kernel breaks a rule: host_failed, called next by the same thread, says which.
# On a stream that is being captured the launch is recorded instead.
cdef int host_run(const KvitHostKernel *kernel, const void *params, uint32_t grid, void *stream, const KvitSpan *spans,
                  int num_spans) noexcept nogil

# Raises HostBackendError with the thread's coordinates for the host_run that failed last.
cdef int host_failed(const KvitHostKernel *kernel, uint32_t grid) except -1
# The same for a graph whose launch failed: which of its kernels did, and why.
cdef int host_graph_failed(const void *executable) except -1
