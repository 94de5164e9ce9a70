# Work captured from a stream, to be launched as a whole.
from kvit._native.context cimport Device
from kvit._native.stream cimport Stream

cdef enum GraphState:
    NEW
    CAPTURING
    READY
    OVER                               # the block did not end well


# What has memory that a launch on the host leaves in disorder where it does not come to its end.
cdef class Restorable:
    # Puts the memory into the state that every launch finds. Asks for no memory: there may be none.
    cdef void restore(self) noexcept


cdef class Graph:
    cdef Device dev
    cdef Stream stream                 # that it is captured from
    cdef void *executable              # CUgraphExec; NULL until it is ready
    cdef GraphState state
    cdef list kept                     # tensors that its kernels touch, and what to restore when one fails on the host

    cdef int end(self, bint is_whole) except -1
