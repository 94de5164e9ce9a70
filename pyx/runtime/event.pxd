# A point in a stream.
from kvit._native.context cimport Device


cdef class Event:
    cdef void *handle
    cdef Device dev
    cdef bint has_timing
