"""The host backend: kernels compiled by g++, loaded from libkvit_host.so, run on ordinary memory."""
import os
import sys

from libc.stdint cimport int32_t, uint32_t, uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset
from posix.dlfcn cimport RTLD_LOCAL, RTLD_NOW, dlerror, dlopen, dlsym
from posix.stdlib cimport posix_memalign
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from posix.unistd cimport _SC_PAGESIZE, sysconf

from kvit._native cimport host_stream
from kvit._native.driver cimport (
    ATTRIBUTE_NUM_SMS, CAPTURE_UNSUPPORTED, INVALID_VALUE, NOT_SUPPORTED, OUT_OF_MEMORY, SUCCESS, DriverTable,
)

from kvit.errors import HostBackendError

cdef extern from "unistd.h" nogil:
    int _SC_PHYS_PAGES

cdef enum:
    ALIGNMENT = 256      # what cuMemAlloc promises
    POISON = 0xFF        # every float of it is a NaN: whoever reads what nobody wrote will notice
    NUM_SMS = 4          # fixed, so that the split of the work, and so the bits, do not depend on the machine

ctypedef int32_t (*ListKernels)(const KvitHostKernel *const **kernels) noexcept nogil
ctypedef int32_t (*Launch)(const KvitHostLaunch *launch) noexcept nogil
ctypedef const char *(*LastError)() noexcept nogil

_SCHEDULERS = {"fibers": KVIT_HOST_FIBERS, "threads": KVIT_HOST_THREADS}

cdef Launch launch_function = NULL
cdef LastError error_function = NULL
cdef dict kernel_addresses = None          # symbol -> address of its KvitHostKernel; None until the library is loaded
cdef str library_path = None               # set by configure; None: the one that was built with the package
cdef str scheduler_name = "fibers"
cdef int scheduler_code = KVIT_HOST_FIBERS
cdef int num_workers = 0


cdef DriverTable table


cdef int do_launch(const void *arguments) noexcept nogil:
    return launch_function(<const KvitHostLaunch *>arguments)


cdef int mem_alloc(void **data, size_t num_bytes, void *stream) except? -1 nogil:
    cdef int is_capturing = 0
    host_stream.stream_is_capturing(stream, &is_capturing)
    if is_capturing:
        return CAPTURE_UNSUPPORTED
    if posix_memalign(data, ALIGNMENT, num_bytes) != 0:
        return OUT_OF_MEMORY
    memset(data[0], POISON, num_bytes)
    return SUCCESS


cdef int mem_free(void *data, void *stream) except? -1 nogil:
    free(data)
    return SUCCESS


cdef int nothing_to_do(void *handle) except? -1 nogil:
    return SUCCESS


cdef int stream_wait_event(void *stream, void *event) except? -1 nogil:
    return SUCCESS


cdef int event_create(void **event, int has_timing) except? -1 nogil:
    event[0] = malloc(sizeof(timespec))
    if event[0] == NULL:
        return OUT_OF_MEMORY
    memset(event[0], 0, sizeof(timespec))
    return SUCCESS


cdef int event_destroy(void *event) except? -1 nogil:
    free(event)
    return SUCCESS


cdef int event_record(void *event, void *stream) except? -1 nogil:
    cdef int is_capturing = 0
    host_stream.stream_is_capturing(stream, &is_capturing)
    if is_capturing:
        return NOT_SUPPORTED  # a recording has one stream
    clock_gettime(CLOCK_MONOTONIC, <timespec *>event)
    return SUCCESS


cdef int event_elapsed_ms(float *elapsed_ms, void *start, void *end) except? -1 nogil:
    cdef timespec *a = <timespec *>start
    cdef timespec *b = <timespec *>end
    elapsed_ms[0] = <float>((b.tv_sec - a.tv_sec) * 1e3 + (b.tv_nsec - a.tv_nsec) * 1e-6)
    return SUCCESS


cdef int device_count(int *count) except? -1 nogil:
    count[0] = 1
    return SUCCESS


cdef int device_name(char *name, int capacity, int ordinal) except? -1 nogil:
    memcpy(name, b"host", 5)
    return SUCCESS


cdef int device_attribute(int *value, int attribute, int ordinal) except? -1 nogil:
    if attribute != ATTRIBUTE_NUM_SMS:
        return INVALID_VALUE
    value[0] = NUM_SMS
    return SUCCESS


cdef int device_memory(size_t *num_bytes, int ordinal) except? -1 nogil:
    num_bytes[0] = <size_t>sysconf(_SC_PHYS_PAGES) * <size_t>sysconf(_SC_PAGESIZE)
    return SUCCESS


cdef int context_current(void **context, int *ordinal) except? -1 nogil:
    context[0] = NULL
    ordinal[0] = -1
    return SUCCESS


cdef int primary_retain(void **context, int ordinal) except? -1 nogil:
    context[0] = NULL
    return SUCCESS


cdef int context_pop() except? -1 nogil:
    return SUCCESS


cdef int library_load(void **library, const void *image) except? -1 nogil:
    return NOT_SUPPORTED


cdef int library_kernel(void **kernel, void *library, const char *symbol) except? -1 nogil:
    return NOT_SUPPORTED


cdef int kernel_shared_limit(void *kernel, int num_bytes, int ordinal) except? -1 nogil:
    return NOT_SUPPORTED


cdef int launch(void *kernel, unsigned int grid, unsigned int block, unsigned int shared_bytes, void *stream,
                const void *params) except? -1 nogil:
    return NOT_SUPPORTED  # a launch on the host needs spans: host_run


table.mem_alloc = mem_alloc
table.mem_free = mem_free
table.copy_to_device = host_stream.copy
table.copy_to_host = host_stream.copy
table.copy_on_device = host_stream.copy
table.fill = host_stream.fill
table.stream_create = host_stream.stream_create
table.stream_destroy = host_stream.stream_destroy
table.stream_synchronize = host_stream.stream_synchronize
table.stream_query = host_stream.stream_query
table.stream_wait_event = stream_wait_event
table.stream_is_capturing = host_stream.stream_is_capturing
table.event_create = event_create
table.event_destroy = event_destroy
table.event_record = event_record
table.event_synchronize = nothing_to_do
table.event_query = nothing_to_do
table.event_elapsed_ms = event_elapsed_ms
table.context_current = context_current
table.primary_retain = primary_retain
table.context_push = nothing_to_do
table.context_pop = context_pop
table.device_count = device_count
table.device_name = device_name
table.device_attribute = device_attribute
table.device_memory = device_memory
table.library_load = library_load
table.library_unload = nothing_to_do
table.library_kernel = library_kernel
table.kernel_shared_limit = kernel_shared_limit
table.launch = launch
table.capture_begin = host_stream.capture_begin
table.capture_end = host_stream.capture_end
table.graph_instantiate = host_stream.graph_instantiate
table.graph_destroy = host_stream.graph_destroy
table.graph_launch = host_stream.graph_launch
table.executable_destroy = host_stream.graph_destroy


cdef const DriverTable *host_table() noexcept nogil:
    return &table


cdef str find_library():
    if library_path is not None:
        return library_path
    places = [os.path.join(place, "_kernels", "libkvit_host.so") for place in sys.modules["kvit"].__path__]
    for place in places:
        if os.path.exists(place):
            return place
    raise HostBackendError(
        f"the host backend is not built: {places[0]} does not exist. Reinstall kvit (pip install .) to build it."
    )


cdef void *find_function(void *library, bytes name, str path) except NULL:
    cdef void *address = dlsym(library, name)
    if address == NULL:
        raise HostBackendError(f"{path} has no function {name.decode()}; it is of another version. Reinstall kvit.")
    return address


cdef dict load_kernels():
    global kernel_addresses, launch_function, error_function
    cdef const KvitHostKernel *const *kernels = NULL
    cdef void *library
    if kernel_addresses is not None:
        return kernel_addresses
    path = find_library()
    library = dlopen(os.fsencode(path), RTLD_NOW | RTLD_LOCAL)
    if library == NULL:
        raise HostBackendError(f"the host backend does not load: {dlerror().decode()}. Reinstall kvit (pip install .).")
    list_kernels = <ListKernels>find_function(library, b"kvit_host_kernels", path)
    launch_function = <Launch>find_function(library, b"kvit_host_launch", path)
    error_function = <LastError>find_function(library, b"kvit_host_error", path)
    found = {}
    for i in range(list_kernels(&kernels)):
        found[kernels[i].symbol.decode()] = <uintptr_t>kernels[i]
    kernel_addresses = found
    return found


cdef const KvitHostKernel *host_kernel(str symbol) except NULL:
    address = load_kernels().get(symbol)
    if address is None:
        raise HostBackendError(f"the host backend has no kernel {symbol}; its build was another. Reinstall kvit.")
    return <const KvitHostKernel *><uintptr_t>address


cdef int host_run(const KvitHostKernel *kernel, const void *params, uint32_t grid, void *stream, const KvitSpan *spans,
                  int num_spans) noexcept nogil:
    cdef KvitHostLaunch call
    cdef host_stream.Recording *recording
    cdef int status
    call.kernel = kernel
    call.params = params
    call.spans = spans
    call.grid = grid
    call.num_spans = num_spans
    call.scheduler = scheduler_code
    call.workers = num_workers
    recording = host_stream.enter(stream)
    status = do_launch(&call) if recording == NULL else host_stream.record(recording, do_launch, copy_of(&call))
    host_stream.leave(stream)
    return status


cdef void *copy_of(const KvitHostLaunch *call) noexcept nogil:
    """The launch, its spans and its parameters in one piece of memory; NULL where there is none left."""
    cdef size_t spans_bytes = call.num_spans * sizeof(KvitSpan)
    cdef char *copied = <char *>malloc(sizeof(KvitHostLaunch) + spans_bytes + call.kernel.params_bytes)
    cdef KvitHostLaunch *made = <KvitHostLaunch *>copied
    if copied == NULL:
        return NULL
    made[0] = call[0]
    made.spans = <const KvitSpan *>memcpy(copied + sizeof(KvitHostLaunch), call.spans, spans_bytes)
    made.params = memcpy(copied + sizeof(KvitHostLaunch) + spans_bytes, call.params, call.kernel.params_bytes)
    return copied


cdef int host_graph_failed(const void *executable) except -1:
    cdef const host_stream.Recording *recording = <const host_stream.Recording *>executable
    # Of what a graph does, only launches can fail.
    cdef const KvitHostLaunch *call = <const KvitHostLaunch *>recording.items[recording.failed].arguments
    return host_failed(call.kernel, call.grid)


cdef int host_failed(const KvitHostKernel *kernel, uint32_t grid) except -1:
    raise HostBackendError(f"{kernel.symbol.decode()}, grid {grid}: {error_function().decode()}")


def configure(*, scheduler=None, workers=None, library=None) -> dict:
    """Choose how the host backend runs kernels. What is not given stays.

    scheduler  "fibers" (deterministic, fast) or "threads" (one OS thread per CUDA thread, for ThreadSanitizer)
    workers    OS threads that run CTAs side by side; 0: as many as there are cores
    library    path of a libkvit_host.so to load instead of the installed one; before the first kernel is looked up

    Returns the settings as they were, in the form that configure takes.
    Raises HostBackendError for an unknown scheduler, a negative count, or a library that comes too late.
    """
    global scheduler_name, scheduler_code, num_workers, library_path
    before = {"scheduler": scheduler_name, "workers": num_workers, "library": library_path}
    if scheduler is not None and scheduler not in _SCHEDULERS:
        raise HostBackendError(f"scheduler is {scheduler!r}; choose from {', '.join(_SCHEDULERS)}")
    if workers is not None and workers < 0:
        raise HostBackendError(f"workers is {workers}; give a number of threads, or 0 for one per core")
    if library is not None and kernel_addresses is not None and os.fspath(library) != library_path:
        raise HostBackendError("the host backend is loaded already; choose its library before the first kernel runs")
    if scheduler is not None:
        scheduler_name, scheduler_code = scheduler, _SCHEDULERS[scheduler]
    if workers is not None:
        num_workers = workers
    if library is not None:
        library_path = os.fspath(library)
    return before


def kernels() -> list:
    """The symbols of the kernels in libkvit_host.so, sorted."""
    return sorted(load_kernels())
