"""The CUDA driver's functions, as a DriverTable has them: each forwards to cydriver, which finds libcuda by then."""
from cuda.bindings cimport cydriver
from libc.stdint cimport uint64_t
from libc.string cimport memcpy, memset

from kvit._native.driver_table cimport CAPTURE_UNSUPPORTED, SUCCESS, KernelNode


# cydriver raises where libcuda, or a function in it, is missing; `except? -1` lets that through everywhere below.

cdef int mem_alloc(void **data, size_t num_bytes, void *stream) except? -1 nogil:
    cdef int is_capturing = 0
    # The legacy stream cannot say while another is captured; cuMemAllocAsync then says whether it minds.
    if stream_is_capturing(stream, &is_capturing) == SUCCESS and is_capturing:
        return CAPTURE_UNSUPPORTED
    return cydriver.cuMemAllocAsync(<cydriver.CUdeviceptr *>data, num_bytes, <cydriver.CUstream>stream)


cdef int mem_free(void *data, void *stream) except? -1 nogil:
    return cydriver.cuMemFreeAsync(<cydriver.CUdeviceptr>data, <cydriver.CUstream>stream)


cdef int copy_to_device(void *target, const void *source, size_t num_bytes, void *stream) except? -1 nogil:
    return cydriver.cuMemcpyHtoDAsync(<cydriver.CUdeviceptr>target, source, num_bytes, <cydriver.CUstream>stream)


cdef int copy_to_host(void *target, const void *source, size_t num_bytes, void *stream) except? -1 nogil:
    return cydriver.cuMemcpyDtoHAsync(target, <cydriver.CUdeviceptr>source, num_bytes, <cydriver.CUstream>stream)


cdef int copy_on_device(void *target, const void *source, size_t num_bytes, void *stream) except? -1 nogil:
    return cydriver.cuMemcpyAsync(<cydriver.CUdeviceptr>target, <cydriver.CUdeviceptr>source, num_bytes,
                                  <cydriver.CUstream>stream)


cdef int copy_across(void *target, void *target_context, const void *source, void *source_context, size_t num_bytes,
                     void *stream) except? -1 nogil:
    return cydriver.cuMemcpyPeerAsync(<cydriver.CUdeviceptr>target, <cydriver.CUcontext>target_context,
                                      <cydriver.CUdeviceptr>source, <cydriver.CUcontext>source_context, num_bytes,
                                      <cydriver.CUstream>stream)


cdef int fill(void *data, unsigned char value, size_t num_bytes, void *stream) except? -1 nogil:
    return cydriver.cuMemsetD8Async(<cydriver.CUdeviceptr>data, value, num_bytes, <cydriver.CUstream>stream)


cdef int stream_create(void **stream) except? -1 nogil:
    return cydriver.cuStreamCreate(<cydriver.CUstream *>stream, cydriver.CU_STREAM_NON_BLOCKING)


cdef int stream_destroy(void *stream) except? -1 nogil:
    return cydriver.cuStreamDestroy(<cydriver.CUstream>stream)


cdef int stream_synchronize(void *stream) except? -1 nogil:
    return cydriver.cuStreamSynchronize(<cydriver.CUstream>stream)


cdef int stream_query(void *stream) except? -1 nogil:
    return cydriver.cuStreamQuery(<cydriver.CUstream>stream)


cdef int stream_wait_event(void *stream, void *event) except? -1 nogil:
    return cydriver.cuStreamWaitEvent(<cydriver.CUstream>stream, <cydriver.CUevent>event, 0)


cdef int stream_is_capturing(void *stream, int *is_capturing) except? -1 nogil:
    cdef cydriver.CUstreamCaptureStatus capture = cydriver.CU_STREAM_CAPTURE_STATUS_NONE
    cdef int status = cydriver.cuStreamIsCapturing(<cydriver.CUstream>stream, &capture)
    is_capturing[0] = capture != cydriver.CU_STREAM_CAPTURE_STATUS_NONE
    return status


cdef int event_create(void **event, int has_timing) except? -1 nogil:
    cdef unsigned int flags = cydriver.CU_EVENT_DEFAULT if has_timing else cydriver.CU_EVENT_DISABLE_TIMING
    return cydriver.cuEventCreate(<cydriver.CUevent *>event, flags)


cdef int event_destroy(void *event) except? -1 nogil:
    return cydriver.cuEventDestroy(<cydriver.CUevent>event)


cdef int event_record(void *event, void *stream) except? -1 nogil:
    return cydriver.cuEventRecord(<cydriver.CUevent>event, <cydriver.CUstream>stream)


cdef int event_synchronize(void *event) except? -1 nogil:
    return cydriver.cuEventSynchronize(<cydriver.CUevent>event)


cdef int event_query(void *event) except? -1 nogil:
    return cydriver.cuEventQuery(<cydriver.CUevent>event)


cdef int event_elapsed_ms(float *elapsed_ms, void *start, void *end) except? -1 nogil:
    return cydriver.cuEventElapsedTime(elapsed_ms, <cydriver.CUevent>start, <cydriver.CUevent>end)


cdef int context_current(void **context, int *ordinal) except? -1 nogil:
    ordinal[0] = -1
    cdef int status = cydriver.cuCtxGetCurrent(<cydriver.CUcontext *>context)
    if status != SUCCESS or context[0] == NULL:
        return status
    return cydriver.cuCtxGetDevice(<cydriver.CUdevice *>ordinal)  # a CUdevice is the ordinal


cdef int primary_retain(void **context, int ordinal) except? -1 nogil:
    return cydriver.cuDevicePrimaryCtxRetain(<cydriver.CUcontext *>context, ordinal)


cdef int context_push(void *context) except? -1 nogil:
    return cydriver.cuCtxPushCurrent(<cydriver.CUcontext>context)


cdef int context_pop() except? -1 nogil:
    cdef cydriver.CUcontext popped
    return cydriver.cuCtxPopCurrent(&popped)


cdef int context_id(void *context, uint64_t *id) except? -1 nogil:
    return cydriver.cuCtxGetId(<cydriver.CUcontext>context, <unsigned long long *>id)


cdef int device_count(int *count) except? -1 nogil:
    return cydriver.cuDeviceGetCount(count)


cdef int device_name(char *name, int capacity, int ordinal) except? -1 nogil:
    return cydriver.cuDeviceGetName(name, capacity, ordinal)


cdef int device_attribute(int *value, int attribute, int ordinal) except? -1 nogil:
    return cydriver.cuDeviceGetAttribute(value, <cydriver.CUdevice_attribute>attribute, ordinal)


cdef int device_memory(size_t *num_bytes, int ordinal) except? -1 nogil:
    return cydriver.cuDeviceTotalMem(num_bytes, ordinal)


cdef int library_load(void **library, const void *image) except? -1 nogil:
    return cydriver.cuLibraryLoadData(<cydriver.CUlibrary *>library, image, NULL, NULL, 0, NULL, NULL, 0)


cdef int library_unload(void *library) except? -1 nogil:
    return cydriver.cuLibraryUnload(<cydriver.CUlibrary>library)


cdef int library_kernel(void **kernel, void *library, const char *symbol) except? -1 nogil:
    return cydriver.cuLibraryGetKernel(<cydriver.CUkernel *>kernel, <cydriver.CUlibrary>library, symbol)


cdef int kernel_shared_limit(void *kernel, int num_bytes, int ordinal) except? -1 nogil:
    return cydriver.cuKernelSetAttribute(cydriver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, num_bytes,
                                         <cydriver.CUkernel>kernel, ordinal)


cdef int launch(void *kernel, unsigned int grid, unsigned int block, unsigned int shared_bytes, void *stream,
                const void *params) except? -1 nogil:
    cdef void *arguments = <void *>params  # a kernel has one argument: its struct, by value
    return cydriver.cuLaunchKernel(<cydriver.CUfunction>kernel, grid, 1, 1, block, 1, 1, shared_bytes,
                                   <cydriver.CUstream>stream, &arguments, NULL)


cdef int launch_overlapping(void *kernel, unsigned int grid, unsigned int block, unsigned int shared_bytes,
                            void *stream, const void *params) except? -1 nogil:
    cdef void *arguments = <void *>params
    cdef cydriver.CUlaunchConfig config
    cdef cydriver.CUlaunchAttribute attribute
    attribute.id = cydriver.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
    attribute.value.programmaticStreamSerializationAllowed = 1
    memset(&config, 0, sizeof(config))
    config.gridDimX = grid
    config.blockDimX = block
    config.gridDimY = config.gridDimZ = config.blockDimY = config.blockDimZ = 1
    config.sharedMemBytes = shared_bytes
    config.hStream = <cydriver.CUstream>stream
    config.attrs = &attribute
    config.numAttrs = 1
    return cydriver.cuLaunchKernelEx(&config, <cydriver.CUfunction>kernel, &arguments, NULL)


cdef int encode_tensor_map(unsigned char *map, void *base, const int64_t *extents, const int64_t *strides,
                           int box_bytes, int box_rows, int64_t dense_bytes) except? -1 nogil:
    cdef cydriver.CUtensorMap encoded
    cdef cydriver.cuuint64_t[5] sizes
    cdef cydriver.cuuint64_t[4] steps
    cdef cydriver.cuuint32_t[5] box
    cdef cydriver.cuuint32_t[5] ones
    cdef cydriver.CUtensorMapSwizzle swizzle = cydriver.CU_TENSOR_MAP_SWIZZLE_128B
    cdef cydriver.CUtensorMapL2promotion promotion = cydriver.CU_TENSOR_MAP_L2_PROMOTION_NONE
    cdef int axis, status
    for axis in range(5):
        sizes[axis] = <cydriver.cuuint64_t>extents[axis]
        box[axis] = ones[axis] = 1
        if axis < 4:
            steps[axis] = <cydriver.cuuint64_t>strides[axis]
    box[0] = box_bytes
    box[1] = box_rows
    if box_bytes == 64:
        swizzle = cydriver.CU_TENSOR_MAP_SWIZZLE_64B
    elif box_bytes == 32:
        swizzle = cydriver.CU_TENSOR_MAP_SWIZZLE_32B
    if dense_bytes >= 256:
        promotion = cydriver.CU_TENSOR_MAP_L2_PROMOTION_L2_256B
    elif dense_bytes >= 128:
        promotion = cydriver.CU_TENSOR_MAP_L2_PROMOTION_L2_128B
    status = cydriver.cuTensorMapEncodeTiled(
        &encoded, cydriver.CU_TENSOR_MAP_DATA_TYPE_UINT8, 5, base, sizes, steps, box, ones,
        cydriver.CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, promotion,
        cydriver.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
    )
    memcpy(map, &encoded, sizeof(encoded))
    return status


cdef int capture_begin(void *stream) except? -1 nogil:
    # Relaxed: a kernel that is called for the first time may be loaded, and other threads go on as they like.
    return cydriver.cuStreamBeginCapture(<cydriver.CUstream>stream, cydriver.CU_STREAM_CAPTURE_MODE_RELAXED)


cdef int capture_end(void *stream, void **graph) except? -1 nogil:
    return cydriver.cuStreamEndCapture(<cydriver.CUstream>stream, <cydriver.CUgraph *>graph)


cdef int graph_instantiate(void **executable, void *graph) except? -1 nogil:
    cdef int status = cydriver.cuGraphInstantiate(<cydriver.CUgraphExec *>executable, <cydriver.CUgraph>graph, 0)
    return graph_destroy(graph) if status == SUCCESS else status


cdef int graph_destroy(void *graph) except? -1 nogil:
    return cydriver.cuGraphDestroy(<cydriver.CUgraph>graph)


cdef int graph_launch(void *executable, void *stream) except? -1 nogil:
    return cydriver.cuGraphLaunch(<cydriver.CUgraphExec>executable, <cydriver.CUstream>stream)


cdef int executable_destroy(void *executable) except? -1 nogil:
    return cydriver.cuGraphExecDestroy(<cydriver.CUgraphExec>executable)


cdef int graph_create(void **graph) except? -1 nogil:
    return cydriver.cuGraphCreate(<cydriver.CUgraph *>graph, 0)


cdef int graph_add_kernel(void **made, void *graph, const KernelNode *node) except? -1 nogil:
    cdef void *arguments = <void *>node.params
    cdef cydriver.CUDA_KERNEL_NODE_PARAMS params
    set_node(&params, node, &arguments)
    return cydriver.cuGraphAddKernelNode(<cydriver.CUgraphNode *>made, <cydriver.CUgraph>graph, NULL, 0, &params)


cdef int graph_make_executable(void **executable, void *graph) except? -1 nogil:
    return cydriver.cuGraphInstantiate(<cydriver.CUgraphExec *>executable, <cydriver.CUgraph>graph, 0)


cdef int executable_set_kernel(void *executable, void *made, const KernelNode *node) except? -1 nogil:
    cdef void *arguments = <void *>node.params
    cdef cydriver.CUDA_KERNEL_NODE_PARAMS params
    set_node(&params, node, &arguments)
    return cydriver.cuGraphExecKernelNodeSetParams(<cydriver.CUgraphExec>executable, <cydriver.CUgraphNode>made,
                                                   &params)


cdef void set_node(cydriver.CUDA_KERNEL_NODE_PARAMS *params, const KernelNode *node, void **arguments) noexcept nogil:
    memset(params, 0, sizeof(params[0]))
    params.kern = <cydriver.CUkernel>node.kernel
    params.ctx = <cydriver.CUcontext>node.context
    params.gridDimX = node.grid
    params.blockDimX = node.block
    params.gridDimY = params.gridDimZ = params.blockDimY = params.blockDimZ = 1
    params.sharedMemBytes = node.shared_bytes
    params.kernelParams = arguments


cdef const char *name_of(int status) noexcept nogil:
    cdef const char *name = NULL
    with gil:
        try:
            cydriver.cuGetErrorName(<cydriver.CUresult>status, &name)
        except RuntimeError:
            return NULL
    return name


cdef void fill_table(DriverTable *table) noexcept:
    table.mem_alloc = mem_alloc
    table.mem_free = mem_free
    table.copy_to_device = copy_to_device
    table.copy_to_host = copy_to_host
    table.copy_on_device = copy_on_device
    table.copy_across = copy_across
    table.fill = fill
    table.stream_create = stream_create
    table.stream_destroy = stream_destroy
    table.stream_synchronize = stream_synchronize
    table.stream_query = stream_query
    table.stream_wait_event = stream_wait_event
    table.stream_is_capturing = stream_is_capturing
    table.event_create = event_create
    table.event_destroy = event_destroy
    table.event_record = event_record
    table.event_synchronize = event_synchronize
    table.event_query = event_query
    table.event_elapsed_ms = event_elapsed_ms
    table.context_current = context_current
    table.primary_retain = primary_retain
    table.context_push = context_push
    table.context_pop = context_pop
    table.context_id = context_id
    table.device_count = device_count
    table.device_name = device_name
    table.device_attribute = device_attribute
    table.device_memory = device_memory
    table.library_load = library_load
    table.library_unload = library_unload
    table.library_kernel = library_kernel
    table.kernel_shared_limit = kernel_shared_limit
    table.launch = launch
    table.launch_overlapping = launch_overlapping
    table.capture_begin = capture_begin
    table.capture_end = capture_end
    table.graph_instantiate = graph_instantiate
    table.graph_destroy = graph_destroy
    table.graph_launch = graph_launch
    table.executable_destroy = executable_destroy
    table.graph_create = graph_create
    table.graph_add_kernel = graph_add_kernel
    table.graph_make_executable = graph_make_executable
    table.executable_set_kernel = executable_set_kernel
