"""The CUDA driver's functions for kernels, as a DriverTable has them: libraries, launches, tensor maps, graphs.

Each forwards to cydriver, and raises where libcuda, or a function in it, is missing.
"""
from cuda.bindings cimport cydriver
from libc.string cimport memcpy, memset

from kvit._native.driver_table cimport SUCCESS, KernelNode, LaunchConfig, has_attributes, has_clusters


cdef int library_load(void **library, const void *image) except? -1 nogil:
    return cydriver.cuLibraryLoadData(<cydriver.CUlibrary *>library, image, NULL, NULL, 0, NULL, NULL, 0)


cdef int library_unload(void *library) except? -1 nogil:
    return cydriver.cuLibraryUnload(<cydriver.CUlibrary>library)


cdef int library_kernel(void **kernel, void *library, const char *symbol) except? -1 nogil:
    return cydriver.cuLibraryGetKernel(<cydriver.CUkernel *>kernel, <cydriver.CUlibrary>library, symbol)


cdef int kernel_shared_limit(void *kernel, int num_bytes, int ordinal) except? -1 nogil:
    return cydriver.cuKernelSetAttribute(cydriver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, num_bytes,
                                         <cydriver.CUkernel>kernel, ordinal)


cdef int launch(void *kernel, const LaunchConfig *config, void *stream, const void *params) except? -1 nogil:
    cdef void *arguments = <void *>params  # a kernel has one argument: its struct, by value
    cdef cydriver.CUlaunchAttribute[2] attributes
    cdef cydriver.CUlaunchConfig wanted
    if not has_attributes(config):
        return cydriver.cuLaunchKernel(
            <cydriver.CUfunction>kernel, config.grid.x, config.grid.y, config.grid.z, config.block, 1, 1,
            config.shared_bytes, <cydriver.CUstream>stream, &arguments, NULL,
        )
    memset(&wanted, 0, sizeof(wanted))
    wanted.gridDimX = config.grid.x
    wanted.gridDimY = config.grid.y
    wanted.gridDimZ = config.grid.z
    wanted.blockDimX = config.block
    wanted.blockDimY = wanted.blockDimZ = 1
    wanted.sharedMemBytes = config.shared_bytes
    wanted.hStream = <cydriver.CUstream>stream
    wanted.attrs = attributes
    if config.overlap:
        attributes[0].id = cydriver.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        attributes[0].value.programmaticStreamSerializationAllowed = 1
        wanted.numAttrs = 1
    if has_clusters(config):
        attributes[wanted.numAttrs].id = cydriver.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
        attributes[wanted.numAttrs].value = cluster_of(config)
        wanted.numAttrs += 1
    return cydriver.cuLaunchKernelEx(&wanted, <cydriver.CUfunction>kernel, &arguments, NULL)


cdef cydriver.CUlaunchAttributeValue cluster_of(const LaunchConfig *config) noexcept nogil:
    cdef cydriver.CUlaunchAttributeValue value
    memset(&value, 0, sizeof(value))
    value.clusterDim.x = config.cluster.x
    value.clusterDim.y = config.cluster.y
    value.clusterDim.z = config.cluster.z
    return value


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
    cdef cydriver.CUlaunchAttributeValue cluster
    cdef int status
    set_node(&params, node, &arguments)
    status = cydriver.cuGraphAddKernelNode(<cydriver.CUgraphNode *>made, <cydriver.CUgraph>graph, NULL, 0, &params)
    if status != SUCCESS or not has_clusters(&node.config):
        return status
    cluster = cluster_of(&node.config)
    return cydriver.cuGraphKernelNodeSetAttribute(<cydriver.CUgraphNode>made[0],
                                                  cydriver.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, &cluster)


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
    params.gridDimX = node.config.grid.x
    params.gridDimY = node.config.grid.y
    params.gridDimZ = node.config.grid.z
    params.blockDimX = node.config.block
    params.blockDimY = params.blockDimZ = 1
    params.sharedMemBytes = node.config.shared_bytes
    params.kernelParams = arguments


cdef void fill_kernels(DriverTable *table) noexcept:
    table.library_load = library_load
    table.library_unload = library_unload
    table.library_kernel = library_kernel
    table.kernel_shared_limit = kernel_shared_limit
    table.launch = launch
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
