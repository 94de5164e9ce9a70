# cython: cdivision=True
"""Whether tensors fit a call as they are: the same questions for Python and for C, asked without the GIL."""
from libc.stdint cimport uintptr_t

from kvit._native.elements cimport bits_of, count_of
from kvit._native.tensor cimport KVIT_BF16, KVIT_F16, KVIT_F32, KVIT_I32, KVIT_I64

cdef enum:
    VECTOR_BYTES = 16          # what kernels move rows in; kvit/_checks.py says it too
    ENTRY_BYTES = 4            # of an int32, and of a float32
    MOST = 0x7FFFFFFF          # kernels count rows and pages in int32


cdef DeviceId device_id_of(Tensor tensor) noexcept:
    return DeviceId(tensor.memory.device_type, tensor.memory.device_id)


cdef bint is_on(const kvit_tensor *memory, DeviceId device) noexcept nogil:
    return memory.device_type == device.type and memory.device_id == device.ordinal


cdef bint is_placed(const kvit_tensor *memory, DeviceId device, int dtype, int ndim) noexcept nogil:
    """Of this type, on this device, with so many axes that lengths and strides can be multiplied."""
    cdef int i
    cdef double reach                  # exact enough, and cannot overflow
    if memory == NULL or memory.ndim != ndim or memory.dtype != dtype or not is_on(memory, device):
        return False
    for i in range(ndim):
        if memory.shape[i] < 0 or memory.shape[i] > MOST:
            return False
        reach = <double>(memory.shape[i] - 1) * <double>memory.strides[i]
        if memory.shape[i] > 1 and (reach > FURTHEST or reach < -FURTHEST):
            return False
    return True


cdef bint lies_at(const kvit_tensor *memory, int last, int64_t alignment) noexcept nogil:
    """Whether it has an address, and that and the strides of its axes before `last` are multiples of `alignment`."""
    cdef int i
    if memory.data == NULL or <uintptr_t>memory.data % alignment != 0:
        return False
    for i in range(last):
        if memory.shape[i] > 1 and memory.strides[i] % alignment != 0:
            return False
    return True


cdef bint are_rows(const kvit_tensor *memory, DeviceId device, int dtype, int64_t tokens, int64_t heads,
                   int64_t channels, bint is_written) noexcept nogil:
    if not is_placed(memory, device, dtype, 3) or (is_written and memory.readonly):
        return False
    if memory.shape[1] != heads or memory.shape[2] != channels or (tokens >= 0 and memory.shape[0] != tokens):
        return False
    if memory.shape[0] == 0:
        return True
    return (
        dtype in (KVIT_F16, KVIT_BF16, KVIT_F32) and (channels <= 1 or memory.strides[2] == bits_of(dtype) // 8)
        and lies_at(memory, 2, VECTOR_BYTES)
    )


cdef bint are_pool(const kvit_tensor *memory, DeviceId device, int ndim) noexcept nogil:
    cdef int last = ndim - 1
    if not is_placed(memory, device, memory.dtype, ndim):
        return False
    return count_of(memory) == 0 or (
        (memory.shape[last] == 1 or memory.strides[last] == bits_of(memory.dtype) // 8)
        and lies_at(memory, last, VECTOR_BYTES)
    )


cdef bint are_lse(const kvit_tensor *memory, DeviceId device, int64_t tokens, int64_t heads) noexcept nogil:
    if not is_placed(memory, device, KVIT_F32, 2) or memory.readonly:
        return False
    if memory.shape[0] != tokens or memory.shape[1] != heads:
        return False
    return tokens == 0 or lies_at(memory, 2, ENTRY_BYTES)


cdef bint are_entries(const kvit_tensor *memory, DeviceId device, int64_t length) noexcept nogil:
    if not is_placed(memory, device, KVIT_I32, 1) or (length >= 0 and memory.shape[0] != length):
        return False
    if memory.shape[0] == 0:
        return True
    return (memory.shape[0] == 1 or memory.strides[0] == ENTRY_BYTES) and lies_at(memory, 0, ENTRY_BYTES)


cdef bint are_entry_rows(const kvit_tensor *memory, DeviceId device, int64_t rows) noexcept nogil:
    if not is_placed(memory, device, KVIT_I32, 2) or memory.shape[0] != rows:
        return False
    if memory.shape[0] == 0 or memory.shape[1] == 0:
        return True
    return (memory.shape[1] == 1 or memory.strides[1] == ENTRY_BYTES) and lies_at(memory, 1, ENTRY_BYTES)


cdef bint are_words(const kvit_tensor *memory, DeviceId device, int dtype, int64_t rows,
                    int64_t columns) noexcept nogil:
    cdef int64_t size = bits_of(dtype) // 8
    if not is_placed(memory, device, dtype, 2) or memory.shape[0] != rows or memory.shape[1] != columns:
        return False
    return rows == 0 or (
        (columns == 1 or memory.strides[1] == size) and (rows == 1 or memory.strides[0] == columns * size)
        and lies_at(memory, 0, size)
    )


cdef bint is_tree(const kvit_tensor *memory, DeviceId device, int64_t tokens) noexcept nogil:
    return memory != NULL and memory.ndim == 2 and 1 <= memory.shape[1] <= 2 and are_words(
        memory, device, KVIT_I64, tokens, memory.shape[1]
    )


cdef int rows_of_each(int64_t rows, int32_t sequences, const kvit_tensor *indptr, DeviceId device) noexcept nogil:
    if indptr != NULL:
        return 0 if are_entries(indptr, device, <int64_t>sequences + 1) else -1
    if sequences == 0:
        return 0 if rows == 0 else -1
    return <int>(rows // sequences) if rows % sequences == 0 else -1
