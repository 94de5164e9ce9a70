# One launch: parameters packed by the caller, no allocation, no GIL during the driver call.
from libc.stdint cimport int64_t

from kvit._native.host cimport KvitSpan
from kvit._native.kernel_graph cimport KernelGraph
from kvit._native.module cimport Kernel
from kvit._native.stream cimport Stream
from kvit._native.tensor cimport Tensor

cdef enum:
    MAX_SPANS = 32


# The memory that a launch on the host may touch; a GPU ignores it. Starts with count = 0.
cdef struct Spans:
    int count
    KvitSpan[32] items

# Lets the launch touch what the tensor holds. None is skipped.
cdef int add_span(Spans *spans, Tensor tensor, bint is_writable) except -1

# The same for raw memory (a struct that the kernel reads, say).
cdef int add_bytes(Spans *spans, const void *data, int64_t num_bytes, bint is_writable) except -1

# Launches `grid` CTAs. `params` is the kernel's struct of abi/params.h, copied before the call returns.
# On the host the grid has run when it returns. `spans` may be NULL on a GPU. A `graph` of the kernel launches it, but
# not while the stream is being captured: a graph cannot go there, and the kernel itself does.
cdef int launch(Kernel kernel, const void *params, unsigned int grid, Stream stream, const Spans *spans,
                KernelGraph graph=*) except -1

# The same without the GIL and without exceptions, for threads that Python has not seen. Not 0: it failed, and
# launch_failed, called next by the same thread, raises why. `call` gets the name of the driver function it reached.
cdef int launch_raw(Kernel kernel, KernelGraph graph, const void *params, unsigned int grid, void *stream,
                    const KvitSpan *spans, int num_spans, const char **call) noexcept nogil
cdef int launch_failed(Kernel kernel, unsigned int grid, int status, const char *call) except -1
