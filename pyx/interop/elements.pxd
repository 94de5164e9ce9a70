# Where the elements of somebody's memory lie, in the words of kvit.h: no Python object but errors.
from libc.stdint cimport int64_t, uintptr_t

from kvit.capi cimport kvit_tensor

cdef enum:
    MAX_DIMS = 8

# Bits of an element of an enum KvitDtype; 0 where there is no such type.
cdef int bits_of(int dtype) noexcept nogil

cdef int64_t count_of(const kvit_tensor *memory) noexcept nogil

# Lowest byte touched, and one past the highest. Equal where there are no elements.
cdef void extent_of(const kvit_tensor *memory, uintptr_t *low, uintptr_t *high) noexcept nogil

# Raises LayoutError for more axes than kvit reads.
cdef int check_ndim(Py_ssize_t ndim) except -1

# Sets dtype, shape and byte strides (NULL: C-contiguous). Raises ShapeError, LayoutError.
cdef int set_layout(kvit_tensor *memory, int dtype, int ndim, const int64_t *shape, const int64_t *strides) except -1

# Raises LayoutError unless the elements of a packed type, the last axis of which is dense or not, fill whole bytes.
cdef int check_packed(const kvit_tensor *memory, bint is_dense) except -1

# Raises LayoutError unless every element lies at a multiple of its size, as a vector load needs it.
cdef int check_memory(const kvit_tensor *memory) except -1
