# Reads the protocol of somebody's array: numpy, DLPack, __cuda_array_interface__, the buffer protocol.
from kvit._native.tensor cimport Tensor

# The Tensor that views `source` in place; a Tensor, kvit.Buffer among them, is returned as it is.
# dtype: what the bytes are, where the source cannot say. stream: handle of the CUDA stream that will use them.
cdef Tensor as_tensor(object source, object dtype=*, void *stream=*)
