"""One launch: parameters packed by the caller, no allocation, no GIL during the driver call."""
from libc.stdint cimport int64_t, uintptr_t
from libc.stdlib cimport calloc, free

from kvit._native.driver_table cimport DriverTable
from kvit._native.errors cimport fail
from kvit._native.host cimport KvitSpan, host_failed, host_run
from kvit._native.kernel_graph cimport KernelGraph
from kvit._native.module cimport Kernel
from kvit._native.stream cimport Stream, stream_of
from kvit._native.tensor cimport Tensor

from kvit.errors import DeviceError, DtypeError, LayoutError, ShapeError


cdef int add_span(Spans *spans, Tensor tensor, bint is_writable) except -1:
    cdef uintptr_t low, high
    if tensor is None:
        return 0
    if is_writable and tensor.is_readonly:
        raise LayoutError(f"{tensor!r} is read-only, and the kernel writes it; give memory that can be written")
    tensor.extent(&low, &high)
    return add_bytes(spans, <const void *>low, <int64_t>(high - low), is_writable)


cdef int add_bytes(Spans *spans, const void *data, int64_t num_bytes, bint is_writable) except -1:
    if spans.count == MAX_SPANS:
        raise ShapeError(f"a launch on the host takes at most {MAX_SPANS} pieces of memory")
    spans.items[spans.count].base = data
    spans.items[spans.count].bytes = num_bytes
    spans.items[spans.count].writable = is_writable
    spans.items[spans.count].any_time = 0
    spans.count += 1
    return 0


cdef int launch(Kernel kernel, const void *params, unsigned int grid, Stream stream, const Spans *spans,
                KernelGraph graph=None) except -1:
    if stream.home is not kernel.home:
        raise DeviceError(f"{kernel.entry.symbol} is loaded on {kernel.home}, the stream is on {stream.home}")
    if kernel.host != NULL:
        return launch_with(kernel, graph, params, grid, stream.handle, spans.items, spans.count)
    return launch_with(kernel, graph, params, grid, stream.handle, NULL, 0)


cdef int launch_with(Kernel kernel, KernelGraph graph, const void *params, unsigned int grid, void *stream,
                     const KvitSpan *spans, int num_spans) except -1:
    cdef const char *call = NULL
    cdef int status
    with nogil:
        status = launch_raw(kernel, graph, params, grid, stream, spans, num_spans, &call)
    return 0 if status == 0 else launch_failed(kernel, grid, status, call)


# The driver functions of a launch, as they are called without the GIL: what they raise cannot be raised here. They
# return -1 then, which is no CUresult.
ctypedef int (*CurrentContext)(void **context, int *ordinal) noexcept nogil
ctypedef int (*RetainPrimary)(void **context, int ordinal) noexcept nogil
ctypedef int (*PushContext)(void *context) noexcept nogil
ctypedef int (*PopContext)() noexcept nogil
ctypedef int (*LaunchKernel)(void *kernel, unsigned int grid, unsigned int block, unsigned int shared_bytes,
                             void *stream, const void *params) noexcept nogil
ctypedef int (*StreamIsCapturing)(void *stream, int *is_capturing) noexcept nogil


cdef int launch_raw(Kernel kernel, KernelGraph graph, const void *params, unsigned int grid, void *stream,
                    const KvitSpan *spans, int num_spans, const char **call) noexcept nogil:
    cdef const DriverTable *driver = kernel.home.driver
    cdef void *context = NULL
    cdef int ordinal = -1
    cdef int status
    cdef bint is_pushed = False
    if kernel.host != NULL:
        return run_on_host(kernel, graph, params, grid, stream, spans, num_spans)
    # As Device.enter does it: the caller's context if it belongs to the device, else the primary one.
    call[0] = b"cuCtxGetCurrent"
    status = (<CurrentContext>driver.context_current)(&context, &ordinal)
    if status == 0 and (context == NULL or ordinal != kernel.home.ordinal):
        if kernel.home.primary == NULL:
            call[0] = b"cuDevicePrimaryCtxRetain"
            status = (<RetainPrimary>driver.primary_retain)(&kernel.home.primary, kernel.home.ordinal)
        if status == 0:
            call[0] = b"cuCtxPushCurrent"
            status = (<PushContext>driver.context_push)(kernel.home.primary)
            is_pushed = status == 0
            context = kernel.home.primary
    if status != 0:
        return status
    status = launch_here(kernel, graph, context, params, grid, stream, call)
    if is_pushed:
        (<PopContext>driver.context_pop)()
    return status


cdef int launch_here(Kernel kernel, KernelGraph graph, void *context, const void *params, unsigned int grid,
                     void *stream, const char **call) noexcept nogil:
    cdef const DriverTable *driver = kernel.home.driver
    cdef int is_capturing = 0
    cdef int status
    if graph is not None:
        call[0] = b"cuStreamIsCapturing"
        status = (<StreamIsCapturing>driver.stream_is_capturing)(stream, &is_capturing)
        if status == 0 and not is_capturing:
            graph.lock()
            status = graph.launch(context, params, grid, stream, call)
            graph.unlock()
        if status != 0 or not is_capturing:
            return status
    call[0] = b"cuLaunchKernelEx" if kernel.overlaps else b"cuLaunchKernel"
    return (<LaunchKernel>(driver.launch_overlapping if kernel.overlaps else driver.launch))(
        kernel.handle, grid, kernel.threads, kernel.shared_bytes, stream, params
    )


cdef int run_on_host(Kernel kernel, KernelGraph graph, const void *params, unsigned int grid, void *stream,
                     const KvitSpan *spans, int num_spans) noexcept nogil:
    cdef int status
    if graph is not None:
        graph.lock()
    status = host_run(kernel.host, params, grid, stream, spans, num_spans)
    if graph is not None:
        graph.unlock()
    return status


cdef int launch_failed(Kernel kernel, unsigned int grid, int status, const char *call) except -1:
    if kernel.host != NULL:
        return host_failed(kernel.host, grid)
    return fail(status, call,
                f"{kernel.entry.symbol}, grid {grid}, {kernel.threads} threads, {kernel.shared_bytes} shared bytes")


def launch_bytes(Kernel kernel not None, bytes params not None, unsigned int grid, stream=None, spans=(),
                 KernelGraph graph=None):
    """Launch a kernel on a struct that the caller packed, byte for byte as abi/params.h lays it out.

    kernel  Kernel.load(entry, device)
    params  bytes of the struct; what its pointers point to is the caller's to keep until the kernel is done
    grid    CTAs, at least 1
    stream  Stream, handle or foreign stream on the kernel's device; its default stream if absent
    spans   [(address, bytes, writable)] that a launch on the host may touch; a GPU ignores them
    graph   KernelGraph.of(kernel) to launch it by; the kernel itself is launched if absent

    On a GPU returns before the work is done. Raises DtypeError (params of another size), ShapeError (an empty grid),
    HostBackendError (the kernel touched something else), DriverError.
    """
    cdef KvitSpan *items
    cdef int count = len(spans)
    cdef int i
    cdef const char *raw = params
    cdef Stream queue = stream_of(stream, kernel.home)
    if len(params) != kernel.params_bytes:
        raise DtypeError(
            f"{kernel.entry.symbol} takes {kernel.params_bytes} bytes ({kernel.entry.params}), not {len(params)}"
        )
    if grid == 0:
        raise ShapeError(f"{kernel.entry.symbol}: the grid is 0; a launch has at least 1 CTA")
    if kernel.host == NULL:
        launch(kernel, raw, grid, queue, NULL, graph)
        return
    items = <KvitSpan *>calloc(max(count, 1), sizeof(KvitSpan))
    if items == NULL:
        raise MemoryError
    try:
        for i, (address, num_bytes, is_writable) in enumerate(spans):
            items[i].base = <const void *><uintptr_t>address
            items[i].bytes = num_bytes
            items[i].writable = bool(is_writable)
        launch_with(kernel, graph, raw, grid, queue.handle, items, count)
    finally:
        free(items)
