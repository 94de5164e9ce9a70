# The driver as a table of C functions, so that a GPU and the host backend look alike to everything above.
from libc.stdint cimport uint64_t

# CUresult values that the runtime tells apart.
cdef enum:
    SUCCESS = 0
    INVALID_VALUE = 1
    OUT_OF_MEMORY = 2
    NOT_INITIALIZED = 3
    NO_DEVICE = 100
    NO_BINARY_FOR_GPU = 209
    UNSUPPORTED_PTX_VERSION = 222
    ILLEGAL_STATE = 401
    NOT_FOUND = 500
    NOT_READY = 600
    NOT_SUPPORTED = 801
    CAPTURE_UNSUPPORTED = 900
    CAPTURE_INVALIDATED = 901

# Numbers along three axes: CTAs of a grid, or of a cluster.
cdef struct Extent:
    unsigned int x
    unsigned int y
    unsigned int z

# How a kernel is launched.
cdef struct LaunchConfig:
    Extent grid                        # CTAs
    Extent cluster                     # CTAs of a cluster, which run side by side; (1, 1, 1): there are none
    unsigned int block                 # threads of a CTA
    unsigned int shared_bytes          # dynamic shared memory of a CTA
    bint overlap                       # may begin before the kernel before it has ended, for which it then waits itself

# A kernel of a graph: where it runs, and what on.
cdef struct KernelNode:
    void *kernel
    void *context
    const void *params                 # its one argument, copied by whoever is given the node
    LaunchConfig config                # but for overlap: kernels of graphs of one kernel have none before them

cdef inline bint has_clusters(const LaunchConfig *config) noexcept nogil:
    return config.cluster.x != 1 or config.cluster.y != 1 or config.cluster.z != 1

# Whether a launch has attributes besides its sizes: the driver has a function of its own for these.
cdef inline bint has_attributes(const LaunchConfig *config) noexcept nogil:
    return config.overlap or has_clusters(config)

# Every function returns a CUresult, 0 for success. All are called with the device's context current (Device.enter).
# Handles (context, stream, event, library, kernel) are opaque pointers; stream NULL is the legacy default stream.
cdef struct DriverTable:
    # memory, in stream order
    # CAPTURE_UNSUPPORTED on a stream that is being captured: memory of a graph would go and come with its launches.
    int (*mem_alloc)(void **data, size_t num_bytes, void *stream) except? -1 nogil
    int (*mem_free)(void *data, void *stream) except? -1 nogil
    int (*copy_to_device)(void *target, const void *source, size_t num_bytes, void *stream) except? -1 nogil
    int (*copy_to_host)(void *target, const void *source, size_t num_bytes, void *stream) except? -1 nogil
    int (*copy_on_device)(void *target, const void *source, size_t num_bytes, void *stream) except? -1 nogil
    # Between two GPUs, whether one sees the other's memory or not.
    int (*copy_across)(void *target, void *target_context, const void *source, void *source_context, size_t num_bytes,
                       void *stream) except? -1 nogil
    int (*fill)(void *data, unsigned char value, size_t num_bytes, void *stream) except? -1 nogil

    # streams
    int (*stream_create)(void **stream) except? -1 nogil                  # does not wait for the legacy stream
    int (*stream_destroy)(void *stream) except? -1 nogil
    int (*stream_synchronize)(void *stream) except? -1 nogil
    int (*stream_query)(void *stream) except? -1 nogil                    # NOT_READY while work is under way
    int (*stream_wait_event)(void *stream, void *event) except? -1 nogil
    int (*stream_is_capturing)(void *stream, int *is_capturing) except? -1 nogil

    # events
    int (*event_create)(void **event, int has_timing) except? -1 nogil
    int (*event_destroy)(void *event) except? -1 nogil
    int (*event_record)(void *event, void *stream) except? -1 nogil
    int (*event_synchronize)(void *event) except? -1 nogil
    int (*event_query)(void *event) except? -1 nogil
    int (*event_elapsed_ms)(float *elapsed_ms, void *start, void *end) except? -1 nogil

    # contexts
    int (*context_current)(void **context, int *ordinal) except? -1 nogil  # NULL and -1 where there is none
    int (*primary_retain)(void **context, int ordinal) except? -1 nogil
    int (*context_push)(void *context) except? -1 nogil
    int (*context_pop)() except? -1 nogil
    int (*context_id)(void *context, uint64_t *id) except? -1 nogil        # no two of a process have the same

    # devices
    int (*device_count)(int *count) except? -1 nogil
    int (*device_name)(char *name, int capacity, int ordinal) except? -1 nogil
    int (*device_attribute)(int *value, int attribute, int ordinal) except? -1 nogil
    int (*device_memory)(size_t *num_bytes, int ordinal) except? -1 nogil

    # kernels
    int (*library_load)(void **library, const void *image) except? -1 nogil
    int (*library_unload)(void *library) except? -1 nogil
    int (*library_kernel)(void **kernel, void *library, const char *symbol) except? -1 nogil
    int (*kernel_shared_limit)(void *kernel, int num_bytes, int ordinal) except? -1 nogil
    # Overlap and clusters: GPUs from 9.0 on.
    int (*launch)(void *kernel, const LaunchConfig *config, void *stream, const void *params) except? -1 nogil

    # graphs
    int (*capture_begin)(void *stream) except? -1 nogil
    int (*capture_end)(void *stream, void **graph) except? -1 nogil        # NULL where the capture failed
    int (*graph_instantiate)(void **executable, void *graph) except? -1 nogil  # takes the graph over, if it succeeds
    int (*graph_destroy)(void *graph) except? -1 nogil
    int (*graph_launch)(void *executable, void *stream) except? -1 nogil
    int (*executable_destroy)(void *executable) except? -1 nogil

    # graphs of one kernel; a host has none
    int (*graph_create)(void **graph) except? -1 nogil
    int (*graph_add_kernel)(void **made, void *graph, const KernelNode *node) except? -1 nogil
    int (*graph_make_executable)(void **executable, void *graph) except? -1 nogil  # the graph stays the caller's
    # Of launches to come. `made` is of the graph that the executable was made from.
    int (*executable_set_kernel)(void *executable, void *made, const KernelNode *node) except? -1 nogil

# Values of CUdevice_attribute that device_attribute is asked for.
cdef enum:
    ATTRIBUTE_NUM_SMS = 16
    ATTRIBUTE_MEMORY_KHZ = 36
    ATTRIBUTE_MEMORY_BITS = 37       # of the bus
    ATTRIBUTE_L2_BYTES = 38
    ATTRIBUTE_CC_MAJOR = 75
    ATTRIBUTE_CC_MINOR = 76
    ATTRIBUTE_SHARED_BYTES = 97      # most dynamic shared memory of a CTA, after opting in
