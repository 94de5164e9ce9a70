"""Bytes from one tensor to another, wherever the two lie."""
from kvit._native.context cimport device_of
from kvit._native.driver_table cimport DriverTable
from kvit._native.errors cimport check
from kvit._native.tensor cimport ON_HOST


cdef int copy_bytes(Tensor target, Tensor source, Stream queue) except -1:
    cdef const DriverTable *driver = queue.home.driver
    cdef size_t num_bytes = source.nbytes
    cdef bint from_host = source.device_type == ON_HOST
    cdef bint to_host = target.device_type == ON_HOST
    cdef bint waits = (from_host or to_host) and not queue.home.is_host
    cdef void *target_context = NULL
    cdef void *source_context = NULL
    cdef int status, entered
    if not (from_host or to_host) and target.device_id != source.device_id:
        target_context = device_of(target.device).primary_context()
        source_context = device_of(source.device).primary_context()
    entered = queue.home.enter()
    try:
        with nogil:
            if from_host:
                status = driver.copy_to_device(target.data, source.data, num_bytes, queue.handle)
            elif to_host:
                status = driver.copy_to_host(target.data, source.data, num_bytes, queue.handle)
            elif target_context != NULL:
                status = driver.copy_across(target.data, target_context, source.data, source_context, num_bytes,
                                            queue.handle)
            else:
                status = driver.copy_on_device(target.data, source.data, num_bytes, queue.handle)
        check(status, b"cuMemcpyAsync")
        if waits:
            with nogil:
                status = driver.stream_synchronize(queue.handle)
            check(status, b"cuStreamSynchronize")
    finally:
        queue.home.leave(entered)
    return waits
