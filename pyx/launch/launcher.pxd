# One launch: parameters packed by the caller, no allocation, no GIL during the driver call.
from kvit._native.driver_table cimport LaunchConfig
from kvit._native.host cimport KvitSpan
from kvit._native.kernel_graph cimport KernelGraph
from kvit._native.module cimport Kernel
from kvit._native.spans cimport Spans
from kvit._native.stream cimport Stream

# Launches a kernel as `config`, which Kernel.config_of begins, says. `params` is the kernel's struct of abi/params.h,
# copied before the call returns. On the host the grid has run when it returns. A `graph` of the kernel launches it, but
# not while the stream is being captured: a graph cannot go there, and the kernel itself does.
cdef int launch(Kernel kernel, const LaunchConfig *config, const void *params, Stream stream, const Spans *spans,
                KernelGraph graph=*) except -1

# The same without the GIL and without exceptions, for threads that Python has not seen. Not 0: it failed, and
# launch_failed, called next by the same thread, raises why. `call` gets the name of the driver function it reached.
cdef int launch_raw(Kernel kernel, KernelGraph graph, const LaunchConfig *config, const void *params, void *stream,
                    const KvitSpan *spans, int num_spans, const char **call) noexcept nogil
cdef int launch_failed(Kernel kernel, const LaunchConfig *config, int status, const char *call) except -1
