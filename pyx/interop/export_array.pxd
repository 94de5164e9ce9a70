# Exports a Tensor's memory to other libraries: DLPack, the buffer protocol, numpy, __cuda_array_interface__.
from libc.stdint cimport uintptr_t

from kvit._native.tensor cimport Tensor

# A capsule that keeps `tensor` alive until its consumer, or nobody, lets go of it. Versioned: DLPack 1.0's form.
cdef object dlpack_capsule(Tensor tensor, bint is_versioned)

# The buffer protocol, of a C-contiguous tensor on the host. Raises BufferError for a type that it has no name for.
cdef int fill_view(Tensor tensor, Py_buffer *view, int flags) except -1

# __cuda_array_interface__ of a C-contiguous tensor on a GPU, whose memory is ready when `stream` is; None for a type
# that it has no name for.
cdef dict cuda_array(Tensor tensor, uintptr_t stream)

# uint8 [nbytes] as a numpy array of the tensor's shape and dtype; in place, but for uint4.
cdef object numpy_array(Tensor tensor, object raw)
