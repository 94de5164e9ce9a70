"""Bytes from one tensor to another, wherever the two lie."""
from kvit._native.context cimport device_of
from kvit._native.driver_table cimport DriverTable
from kvit._native.errors cimport check
from kvit._native.tensor cimport ON_HOST


cdef int copy_bytes(Tensor target, Tensor source, Stream stream) except -1:
    cdef const DriverTable *driver = stream.dev.driver
    cdef size_t num_bytes = source.nbytes
    cdef bint from_host = source.memory.device_type == ON_HOST
    cdef bint to_host = target.memory.device_type == ON_HOST
    cdef bint waits = (from_host or to_host) and not stream.dev.is_host
    cdef void *target_context = NULL
    cdef void *source_context = NULL
    cdef int status, entered
    if not (from_host or to_host) and target.memory.device_id != source.memory.device_id:
        target_context = device_of(target.device).primary_context()
        source_context = device_of(source.device).primary_context()
    entered = stream.dev.enter()
    try:
        with nogil:
            if from_host:
                status = driver.copy_to_device(target.memory.data, source.memory.data, num_bytes, stream.c_stream)
            elif to_host:
                status = driver.copy_to_host(target.memory.data, source.memory.data, num_bytes, stream.c_stream)
            elif target_context != NULL:
                status = driver.copy_across(target.memory.data, target_context, source.memory.data, source_context,
                                            num_bytes, stream.c_stream)
            else:
                status = driver.copy_on_device(target.memory.data, source.memory.data, num_bytes, stream.c_stream)
        check(status, b"cuMemcpyAsync")
        if waits:
            with nogil:
                status = driver.stream_synchronize(stream.c_stream)
            check(status, b"cuStreamSynchronize")
    finally:
        stream.dev.leave(entered)
    return waits
