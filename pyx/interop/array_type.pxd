# What a type of arrays offers, found out once for all of its objects.
from kvit._native.dlpack cimport DLPackExchangeAPI


cdef class ArrayType:
    cdef bint has_struct               # numpy's __array_struct__
    cdef bint is_plain                 # numpy.ndarray itself, whose arrays have no mask
    cdef bint has_dlpack               # __dlpack__ and __dlpack_device__
    cdef bint has_gradients            # objects may say `requires_grad`
    cdef bint is_mutable               # its memory may be written, where the way in cannot say it
    cdef const DLPackExchangeAPI *api  # NULL: none that kvit knows
    cdef object capsule                # of the api

# What is known of type(source). Remembered for a bounded number of types, and of no object.
cdef ArrayType array_type_of(object kind)
