# Memory that kvit owns, on a GPU or on the host. It is a Tensor, so every operation takes it as it is.
from libc.stdint cimport int64_t

from kvit._native.context cimport Device
from kvit._native.stream cimport Stream
from kvit._native.tensor cimport Tensor


cdef class Buffer(Tensor):
    cdef Device dev
    cdef Stream freed_on               # memory is taken and given back in the order of this stream
    cdef void *allocation              # NULL where another Buffer owns the memory

    cdef int read_into(self, Tensor target) except -1
    cdef int transfer(self, Tensor target, Tensor source, Stream stream) except -1
    cdef int used_by(self, Stream stream) except -1
    cdef Buffer part(self, int dtype, tuple shape, int64_t offset)
    cdef Buffer as_bytes(self)

# C-contiguous, uninitialised. `dtype` is an enum KvitDtype.
cdef Buffer empty_buffer(tuple shape, int dtype, Device device, Stream stream)
