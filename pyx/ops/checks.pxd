# Whether tensors fit a call as they are: the same questions for Python and for C, asked without the GIL.
#
# They are as strict as the checks of the Python operations, or stricter: a tensor that fails one is shown to those
# checks, which word the refusal, or make of it what does fit. NULL never fits. A length of -1 is any.
from libc.stdint cimport int32_t, int64_t

from kvit._native.tensor cimport Tensor
from kvit.capi cimport kvit_tensor

cdef extern from *:
    """
    #define KVIT_FURTHEST ((int64_t)1 << 47)
    """
    int64_t FURTHEST "KVIT_FURTHEST"   # bytes from one end of a tensor to the other: no address space is larger


cdef struct DeviceId:
    int32_t type                       # enum kvit_device_type, which are DLPack's numbers
    int32_t ordinal                    # of the GPU; 0 on the host

cdef DeviceId device_id_of(Tensor tensor) noexcept

cdef bint is_on(const kvit_tensor *memory, DeviceId device) noexcept nogil

# [tokens, heads, channels] of 16 or 32 bits that kernels can move in vectors; not read-only where it is written.
cdef bint are_rows(const kvit_tensor *memory, DeviceId device, int dtype, int64_t tokens, int64_t heads,
                   int64_t channels, bint is_written) noexcept nogil

# [..., channels] of any type, with so many axes: rows that kernels can move in vectors.
cdef bint are_pool(const kvit_tensor *memory, DeviceId device, int ndim) noexcept nogil

# float32 [tokens, heads], any strides, written.
cdef bint are_lse(const kvit_tensor *memory, DeviceId device, int64_t tokens, int64_t heads) noexcept nogil

# int32 [length], or [rows, slots] with any stride between rows; entries side by side.
cdef bint are_entries(const kvit_tensor *memory, DeviceId device, int64_t length) noexcept nogil
cdef bint are_entry_rows(const kvit_tensor *memory, DeviceId device, int64_t rows) noexcept nogil

# [rows, columns] of such elements, one after the other.
cdef bint are_words(const kvit_tensor *memory, DeviceId device, int dtype, int64_t rows, int64_t columns) noexcept nogil

# int64 [tokens, 1 or 2]: the words of a tree.
cdef bint is_tree(const kvit_tensor *memory, DeviceId device, int64_t tokens) noexcept nogil

# How many of the rows each sequence has; 0 where indptr, int32 [sequences + 1], says it; -1 where rows, sequences and
# indptr do not fit each other. indptr NULL: all sequences have as many.
cdef int rows_of_each(int64_t rows, int32_t sequences, const kvit_tensor *indptr, DeviceId device) noexcept nogil
