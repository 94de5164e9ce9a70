# Reads DLPack: by the C functions of a type, else by a capsule.
from kvit._native.array_type cimport ArrayType
from kvit._native.tensor cimport Tensor

# The Tensor that views `source`, of this type, in place. `stream`, a handle, waits for what fills the memory.
cdef Tensor from_dlpack(object source, ArrayType kind, void *stream)
