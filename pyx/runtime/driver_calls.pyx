"""The CUDA driver's functions, as a DriverTable has them: each forwards to cydriver, which finds libcuda by then.

Memory, streams, events, contexts and devices; what is of kernels is in driver_kernels.
"""
from cuda.bindings cimport cydriver
from libc.stdint cimport uint64_t

from kvit._native.driver_kernels cimport fill_kernels
from kvit._native.driver_table cimport CAPTURE_UNSUPPORTED, NOT_FOUND, SUCCESS


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


ctypedef int (*ElapsedTime)(float *, cydriver.CUevent, cydriver.CUevent) noexcept nogil


cdef int event_elapsed_ms(float *elapsed_ms, void *start, void *end) except? -1 nogil:
    # Newer cuda-bindings know the function of CUDA 12.8 alone. All drivers have that of 12.0.
    cdef void *found = NULL
    cdef int status = cydriver.cuGetProcAddress(b"cuEventElapsedTime", &found, 12000, 0, NULL)
    if status != SUCCESS:
        return status
    if found == NULL:
        return NOT_FOUND
    return (<ElapsedTime>found)(elapsed_ms, <cydriver.CUevent>start, <cydriver.CUevent>end)


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


cdef const char *name_of(int status) noexcept nogil:
    cdef const char *name = NULL
    with gil:
        try:
            cydriver.cuGetErrorName(<cydriver.CUresult>status, &name)
        except RuntimeError:
            name = NULL
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
    fill_kernels(table)
