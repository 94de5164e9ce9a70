# Bytes from one tensor to another, wherever the two lie.
from kvit._native.stream cimport Stream
from kvit._native.tensor cimport Tensor

# Copies all bytes of `source`, in the order of `stream`, on the GPU that either lies on. 1: it waited, as it does where
# one of them is on the host; 0: the copy is under way, or recorded.
cdef int copy_bytes(Tensor target, Tensor source, Stream stream) except -1
