# Launches that are prepared first, and given to the driver together.
from kvit._native.driver_table cimport LaunchConfig
from kvit._native.module cimport Kernel
from kvit._native.spans cimport Spans


cdef class PreparedLaunch:
    cdef Kernel kernel
    cdef LaunchConfig config
    cdef void *params
    cdef Spans spans


# Copies the struct of a launch, and the spans that it may touch.
cdef PreparedLaunch prepare(Kernel kernel, unsigned int ctas, const void *params, size_t num_bytes, const Spans *spans)
