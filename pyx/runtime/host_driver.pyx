"""The host behind the DriverTable: memory, events and devices; streams and graphs are in host_stream."""
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset
from posix.stdlib cimport posix_memalign
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from posix.unistd cimport _SC_PAGESIZE, sysconf

from kvit._native cimport host_stream
from kvit._native.driver_table cimport (
    ATTRIBUTE_NUM_SMS, CAPTURE_UNSUPPORTED, INVALID_VALUE, NOT_SUPPORTED, OUT_OF_MEMORY, SUCCESS, DriverTable,
    LaunchConfig,
)

cdef extern from "unistd.h" nogil:
    int _SC_PHYS_PAGES

cdef enum:
    ALIGNMENT = 256      # what cuMemAlloc promises
    POISON = 0xFF        # every float of it is a NaN: whoever reads what nobody wrote will notice
    NUM_SMS = 4          # fixed, so that the split of the work, and so the bits, do not depend on the machine

cdef DriverTable table


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


cdef int launch(void *kernel, const LaunchConfig *config, void *stream, const void *params) except? -1 nogil:
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
