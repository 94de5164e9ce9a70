# Work captured from a stream, to be launched as a whole.
from kvit._native.context cimport Device
from kvit._native.stream cimport Stream

cdef enum GraphState:
    NEW
    CAPTURING
    READY
    OVER                               # the block did not end well


cdef class Graph:
    cdef Device dev
    cdef Stream stream                 # that it is captured from
    cdef void *executable              # CUgraphExec; NULL until it is ready
    cdef GraphState state
    cdef list kept                     # tensors that its kernels touch

    cdef int end(self, bint is_whole) except -1
