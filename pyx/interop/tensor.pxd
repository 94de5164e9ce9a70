# A view of somebody's memory: what every operation takes. Imports nothing of kvit but errors and dtypes.
from libc.stdint cimport int64_t, uintptr_t

from kvit._native.dlpack cimport DLManagedTensorVersioned
from kvit.capi cimport kvit_tensor

cdef extern from "abi/dtype.h":
    enum:
        KVIT_F32
        KVIT_F16
        KVIT_BF16
        KVIT_U8
        KVIT_U4
        KVIT_F8E4M3
        KVIT_F8E5M2
        KVIT_I32
        KVIT_I64
        KVIT_U16
        KVIT_U32
        KVIT_F64
        KVIT_I8

cdef enum:
    ON_HOST = 1                        # DLPack's numbers
    ON_CUDA = 2

cdef class Tensor:
    cdef object owner                  # keeps the memory alive
    cdef DLManagedTensorVersioned *managed  # so does this, until it is given back with the tensor; NULL: there is none
    # Address, shape, byte strides, dtype (enum KvitDtype) and device (ON_HOST, ON_CUDA): what a C caller hands in, too.
    # The stride of the packed last axis of a 4-bit type is 0.
    cdef kvit_tensor memory
    cdef int bits                      # of an element
    cdef uintptr_t ready_stream        # stream whose work fills the memory (__cuda_array_interface__); 0: none

    cdef bint is_contiguous(self) noexcept
    cdef bint is_dense_last(self) noexcept        # neighbours on the last axis are neighbours in memory
    cdef int64_t num_elements(self) noexcept
    # Lowest byte touched, and one past the highest. Equal where there are no elements.
    cdef void extent(self, uintptr_t *low, uintptr_t *high) noexcept

# Sets dtype, shape and byte strides (None: C-contiguous) of a new Tensor. Raises ShapeError, LayoutError.
cdef int lay_out(Tensor tensor, int dtype, tuple shape, object strides) except -1

# The same bytes as another type; `source` itself where it has that type. Raises DtypeError, LayoutError.
cdef Tensor reinterpret(Tensor source, object dtype)
