# Whether the elements of two tensors share memory. All was checked by the caller: lengths, strides, addresses.
from libc.stdint cimport int64_t, uintptr_t

from kvit._native.elements cimport bits_of, extent_of
from kvit.capi cimport kvit_tensor


# [low, high) of the addresses of some memory; none where they are equal.
cdef struct Extent:
    uintptr_t low
    uintptr_t high

cdef inline Extent extent_at(const kvit_tensor *memory) noexcept nogil:
    cdef Extent found
    extent_of(memory, &found.low, &found.high)
    return found

cdef inline bint cross(const Extent *a, const Extent *b) noexcept nogil:
    return a.low < b.high and b.low < a.high and a.low < a.high and b.low < b.high

# Whether elements of a tensor may share a byte, asked in an instant: no for rows in the order of their axes.
cdef inline bint may_meet_itself(const kvit_tensor *memory) noexcept nogil:
    cdef int64_t inner = bits_of(memory.dtype) // 8
    cdef int i = memory.ndim
    while i > 0:
        i -= 1
        if memory.strides[i] < inner or inner == 0:
            return True
        inner = memory.shape[i] * memory.strides[i]
    return False

# Whether any byte belongs to an element of both; also where strides do not tell them apart. False for NULL. Exact for
# slices of one array along any axes, and quick for what lies apart.
cdef bint meet(const kvit_tensor *a, const kvit_tensor *b) noexcept nogil

# Whether both are the same elements of the same memory, in the same places.
cdef bint are_same(const kvit_tensor *a, const kvit_tensor *b) noexcept nogil

# Whether two elements of one tensor share a byte; also where strides do not tell them apart. False for NULL.
cdef bint meets_itself(const kvit_tensor *memory) noexcept nogil
