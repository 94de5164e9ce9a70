# Lends a Tensor's memory to other libraries as a DLPack capsule.
from kvit._native.tensor cimport Tensor

# A capsule that keeps `tensor` alive until its consumer, or nobody, lets go of it. Versioned: DLPack 1.0's form.
cdef object dlpack_capsule(Tensor tensor, bint is_versioned)
