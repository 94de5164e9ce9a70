"""One launch: parameters packed by the caller, no allocation, no GIL during the driver call."""
from libc.stdint cimport uintptr_t
from libc.stdlib cimport calloc, free

from kvit._native.driver_table cimport (
    NOT_INITIALIZED, DriverTable, Extent, LaunchConfig, has_attributes, has_clusters,
)
from kvit._native.errors cimport fail
from kvit._native.forks cimport begin_work, end_work, num_forks
from kvit._native.host cimport KvitSpan, host_failed, host_run
from kvit._native.kernel_graph cimport KernelGraph
from kvit._native.module cimport Kernel
from kvit._native.stream cimport Stream, stream_of

from kvit.errors import DeviceError, DtypeError, HostBackendError, ShapeError

cdef enum:
    UNFIT_FOR_HOST = -1                    # no status of the host backend: it was not asked


cdef int launch(Kernel kernel, const LaunchConfig *config, const void *params, Stream stream, const Spans *spans,
                KernelGraph graph=None) except -1:
    if stream.dev is not kernel.dev:
        raise DeviceError(f"{kernel.entry.symbol} is loaded on {kernel.dev}, the stream is on {stream.dev}")
    return launch_with(kernel, graph, config, params, stream.c_stream, spans.items, spans.count)


cdef int launch_with(Kernel kernel, KernelGraph graph, const LaunchConfig *config, const void *params, void *stream,
                     const KvitSpan *spans, int num_spans) except -1:
    cdef const char *call = NULL
    cdef int status
    with nogil:
        status = launch_raw(kernel, graph, config, params, stream, spans, num_spans, &call)
    return 0 if status == 0 else launch_failed(kernel, config, status, call)


# The driver functions of a launch, as they are called without the GIL: what they raise cannot be raised here. They
# return -1 then, which is no CUresult.
ctypedef int (*CurrentContext)(void **context, int *ordinal) noexcept nogil
ctypedef int (*RetainPrimary)(void **context, int ordinal) noexcept nogil
ctypedef int (*PushContext)(void *context) noexcept nogil
ctypedef int (*PopContext)() noexcept nogil
ctypedef int (*LaunchKernel)(void *kernel, const LaunchConfig *config, void *stream, const void *params) noexcept nogil
ctypedef int (*StreamIsCapturing)(void *stream, int *is_capturing) noexcept nogil


cdef int launch_raw(Kernel kernel, KernelGraph graph, const LaunchConfig *config, const void *params, void *stream,
                    const KvitSpan *spans, int num_spans, const char **call) noexcept nogil:
    cdef const DriverTable *driver = kernel.dev.driver
    cdef void *context = NULL
    cdef int ordinal = -1
    cdef int status
    cdef bint is_pushed = False
    if kernel.host != NULL:
        return run_on_host(kernel, graph, config, params, stream, spans, num_spans)
    if num_forks() != kernel.dev.num_forks:  # a graph's lock may be held for ever, and the driver would say the same
        call[0] = b"cuCtxGetCurrent"
        return NOT_INITIALIZED
    # As Device.enter does it: the caller's context if it belongs to the device, else the primary one.
    call[0] = b"cuCtxGetCurrent"
    status = (<CurrentContext>driver.context_current)(&context, &ordinal)
    if status == 0 and (context == NULL or ordinal != kernel.dev.ordinal):
        if kernel.dev.primary == NULL:
            call[0] = b"cuDevicePrimaryCtxRetain"
            status = (<RetainPrimary>driver.primary_retain)(&kernel.dev.primary, kernel.dev.ordinal)
        if status == 0:
            call[0] = b"cuCtxPushCurrent"
            status = (<PushContext>driver.context_push)(kernel.dev.primary)
            is_pushed = status == 0
            context = kernel.dev.primary
    if status != 0:
        return status
    status = launch_here(kernel, graph, context, config, params, stream, call)
    if is_pushed:
        (<PopContext>driver.context_pop)()
    return status


cdef int launch_here(Kernel kernel, KernelGraph graph, void *context, const LaunchConfig *config, const void *params,
                     void *stream, const char **call) noexcept nogil:
    cdef const DriverTable *driver = kernel.dev.driver
    cdef int is_capturing = 0
    cdef int status
    if graph is not None:
        call[0] = b"cuStreamIsCapturing"
        status = (<StreamIsCapturing>driver.stream_is_capturing)(stream, &is_capturing)
        if status == 0 and not is_capturing:
            graph.lock()
            status = graph.launch(context, config, params, stream, call)
            graph.unlock()
        if status != 0 or not is_capturing:
            return status
    call[0] = b"cuLaunchKernelEx" if has_attributes(config) else b"cuLaunchKernel"
    return (<LaunchKernel>driver.launch)(kernel.handle, config, stream, params)


cdef int run_on_host(Kernel kernel, KernelGraph graph, const LaunchConfig *config, const void *params, void *stream,
                     const KvitSpan *spans, int num_spans) noexcept nogil:
    cdef int status
    if not runs_on_host(config):
        return UNFIT_FOR_HOST
    begin_work()
    if graph is not None:
        graph.lock()
    status = host_run(kernel.host, params, config.grid.x, stream, spans, num_spans)
    if graph is not None:
        graph.unlock()
    end_work()
    return status


cdef bint runs_on_host(const LaunchConfig *config) noexcept nogil:
    """Whether the grid has one axis and no clusters: the host backend runs no others yet."""
    return config.grid.y == 1 and config.grid.z == 1 and not has_clusters(config)


cdef int launch_failed(Kernel kernel, const LaunchConfig *config, int status, const char *call) except -1:
    if kernel.host != NULL and not runs_on_host(config):
        raise HostBackendError(
            f"{kernel.entry.symbol}, grid {words_of(config.grid)}, cluster {words_of(config.cluster)}: the host "
            "backend runs grids of one axis and no clusters; launch it on a GPU"
        )
    if kernel.host != NULL:
        return host_failed(kernel.host, config.grid.x)
    cluster = f", cluster {words_of(config.cluster)}" if has_clusters(config) else ""
    return fail(status, call, f"{kernel.entry.symbol}, grid {words_of(config.grid)}{cluster}, {config.block} threads, "
                f"{config.shared_bytes} shared bytes")


cdef str words_of(Extent extent):
    if extent.y == 1 and extent.z == 1:
        return str(extent.x)
    return f"{extent.x}x{extent.y}x{extent.z}"


def launch_bytes(Kernel kernel not None, bytes params not None, grid, stream=None, spans=(), KernelGraph graph=None, *,
                 cluster=None):
    """Launch a kernel on a struct that the caller packed, byte for byte as abi/params.h lays it out.

    kernel   Kernel.load(entry, device)
    params   bytes of the struct; what its pointers point to is the caller's to keep until the kernel is done
    grid     CTAs, at least 1: a number, or (x, y, z)
    stream   Stream, handle or foreign stream on the kernel's device; its default stream if absent
    spans    [(address, bytes, writable)] that a launch on the host may touch; a GPU ignores them
    graph    KernelGraph.of(kernel) to launch it by; the kernel itself is launched if absent
    cluster  CTAs of a cluster, as grid; the kernel's own if absent

    On a GPU returns before the work is done. Raises DtypeError (params of another size), ShapeError (an empty grid or
    cluster), HostBackendError (the kernel touched something else; a grid or cluster that only GPUs have), DriverError.
    """
    cdef KvitSpan *items
    cdef int count = len(spans)
    cdef int i
    cdef const char *raw = params
    cdef Stream on_stream = stream_of(stream, kernel.dev)
    cdef LaunchConfig config = kernel.config_of(1)
    if len(params) != kernel.params_bytes:
        raise DtypeError(
            f"{kernel.entry.symbol} takes {kernel.params_bytes} bytes ({kernel.entry.params}), not {len(params)}"
        )
    config.grid = extent_from(kernel, "grid", grid)
    if cluster is not None and graph is not None:
        raise ShapeError(f"{kernel.entry.symbol}: a graph launches in the kernel's own clusters; give cluster or graph")
    if cluster is not None:
        config.cluster = extent_from(kernel, "cluster", cluster)
    items = <KvitSpan *>calloc(max(count, 1), sizeof(KvitSpan))
    if items == NULL:
        raise MemoryError
    try:
        for i, (address, num_bytes, is_writable) in enumerate(spans):
            items[i].base = <const void *><uintptr_t>address
            items[i].bytes = num_bytes
            items[i].writable = bool(is_writable)
        launch_with(kernel, graph, &config, raw, on_stream.c_stream, items, count)
    finally:
        free(items)


cdef Extent extent_from(Kernel kernel, str name, object given) except *:
    cdef Extent extent
    extent.x, extent.y, extent.z = given if isinstance(given, tuple) else (given, 1, 1)
    if extent.x == 0 or extent.y == 0 or extent.z == 0:
        raise ShapeError(f"{kernel.entry.symbol}: the {name} is {words_of(extent)}; a launch has at least 1 CTA")
    return extent
