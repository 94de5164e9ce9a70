# cython: cdivision=True
"""Where the elements of somebody's memory lie: shape, byte strides and type, laid out and checked."""
from kvit._native.whole_numbers cimport tuple_of

from kvit.dtypes import BY_CODE
from kvit.errors import LayoutError, ShapeError

cdef enum:
    NUM_DTYPES = 64                        # more than there are in enum KvitDtype

cdef int64_t MOST_BITS = 0x7FFFFFFFFFFFFFFF

cdef int[NUM_DTYPES] BITS                  # of an element, by enum KvitDtype
for _dtype in BY_CODE.values():
    BITS[_dtype.code] = _dtype.bits


cdef int bits_of(int dtype) noexcept nogil:
    return BITS[dtype] if 0 <= dtype < NUM_DTYPES else 0


cdef int64_t count_of(const kvit_tensor *memory) noexcept nogil:
    cdef int64_t count = 1
    cdef int i
    for i in range(memory.ndim):
        count *= memory.shape[i]
    return count


cdef void extent_of(const kvit_tensor *memory, uintptr_t *low, uintptr_t *high) noexcept nogil:
    cdef uintptr_t last = <uintptr_t>memory.data
    cdef int64_t reach
    cdef int bits = bits_of(memory.dtype)
    cdef int i
    low[0] = high[0] = last
    for i in range(memory.ndim):
        if memory.shape[i] == 0:
            return
    for i in range(memory.ndim):
        reach = (memory.shape[i] - 1) * memory.strides[i]
        if reach < 0:
            low[0] += reach
        else:
            last += reach
    # A packed 4-bit row ends half as many bytes after it begins as it has elements; all else after its last element.
    high[0] = last + (bits // 8 if bits >= 8 else memory.shape[memory.ndim - 1] * bits // 8)


cdef int check_ndim(Py_ssize_t ndim) except -1:
    if not 0 <= ndim <= MAX_DIMS:
        raise LayoutError(f"{ndim} dimensions are too many; kvit reads at most {MAX_DIMS}")
    return 0


cdef int set_layout(kvit_tensor *memory, int dtype, int ndim, const int64_t *shape, const int64_t *strides) except -1:
    cdef int i
    check_ndim(ndim)
    memory.dtype = dtype
    memory.ndim = ndim
    for i in range(ndim):
        memory.shape[i] = shape[i]
        if shape[i] < 0:
            raise ShapeError(f"shape {tuple_of(shape, ndim)} has a negative length")
    if not fits_memory(memory):
        raise ShapeError(f"shape {tuple_of(shape, ndim)} of {BY_CODE[dtype]} is larger than any memory")
    if strides == NULL:
        return set_contiguous(memory)
    for i in range(ndim):
        memory.strides[i] = strides[i]
    return 0 if bits_of(dtype) >= 8 else check_packed(memory, ndim > 0 and strides[ndim - 1] == 0)


cdef bint fits_memory(const kvit_tensor *memory) noexcept nogil:
    cdef int64_t bits = bits_of(memory.dtype)
    cdef bint fits = True
    cdef int i
    for i in range(memory.ndim):
        if memory.shape[i] == 0:
            return True
        if bits > MOST_BITS // memory.shape[i]:
            fits = False
        else:
            bits *= memory.shape[i]
    return fits


cdef int set_contiguous(kvit_tensor *memory) except -1:
    cdef int i = memory.ndim - 1
    cdef int bits = bits_of(memory.dtype)
    cdef int64_t step = bits // 8
    if bits < 8:
        check_packed(memory, memory.ndim > 0)
        memory.strides[i] = 0
        step = memory.shape[i] * bits // 8
        i -= 1
    while i >= 0:
        memory.strides[i] = step
        step *= memory.shape[i]
        i -= 1
    return 0


cdef int check_packed(const kvit_tensor *memory, bint is_dense) except -1:
    if not is_dense or memory.shape[memory.ndim - 1] % 2 != 0:
        raise LayoutError(
            "4-bit elements are packed in pairs: the last axis of "
            f"{tuple_of(memory.shape, memory.ndim)} must be dense and even"
        )
    return 0


cdef int check_memory(const kvit_tensor *memory) except -1:
    cdef int64_t size = bits_of(memory.dtype) // 8
    cdef int i
    if count_of(memory) == 0:
        return 0
    if memory.data == NULL:
        raise LayoutError(f"shape {tuple_of(memory.shape, memory.ndim)} at address 0")
    if size > 1:
        if <uintptr_t>memory.data % size != 0:
            raise LayoutError(
                f"{BY_CODE[memory.dtype]} at address {<uintptr_t>memory.data:#x}, no multiple of {size}; copy it first"
            )
        for i in range(memory.ndim):
            if memory.shape[i] > 1 and memory.strides[i] % size != 0:
                strides = tuple_of(memory.strides, memory.ndim)
                raise LayoutError(f"{BY_CODE[memory.dtype]}, strides {strides}, no multiples of {size}; copy it first")
    return 0
