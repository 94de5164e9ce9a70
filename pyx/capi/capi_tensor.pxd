# The tensors that C hands in, with the Tensor that says why one is refused.
from libc.stdint cimport int32_t, int64_t

from kvit._native.host cimport KvitSpan
from kvit._native.stream cimport Stream
from kvit._native.tensor cimport Tensor
from kvit.capi cimport kvit_stream, kvit_tensor


cdef struct Place:
    int32_t device_type                # enum kvit_device_type
    int32_t device_id

# The questions below are as strict as the checks of the Python operations, or stricter: a tensor that fails one is
# shown to those checks, which word the refusal. `length` -1 is any length.

# [tokens, heads, channels] that kernels can move in vectors; not read-only where it is written.
cdef bint are_rows(const kvit_tensor *tensor, Place place, int dtype, int64_t tokens, int64_t heads, int64_t channels,
                   bint is_written) noexcept nogil

# float32 [tokens, heads], any strides, written.
cdef bint are_lse(const kvit_tensor *tensor, Place place, int64_t tokens, int64_t heads) noexcept nogil

# int32 [length], or [rows, length] with any stride between rows; entries side by side.
cdef bint are_entries(const kvit_tensor *tensor, Place place, int64_t length) noexcept nogil
cdef bint are_entry_rows(const kvit_tensor *tensor, Place place, int64_t rows) noexcept nogil

# The bytes of a tensor that passed, and of a Tensor.
cdef KvitSpan span_of(const kvit_tensor *tensor, bint is_written) noexcept nogil
cdef KvitSpan extent_of(Tensor tensor, bint is_written) noexcept

# The Tensor for the Python operations; None for NULL where that is allowed. Raises ArgumentError, ShapeError,
# DtypeError, DeviceError, LayoutError, naming the tensor.
cdef Tensor to_tensor(const kvit_tensor *tensor, str name, bint is_optional=*)

# Whether work of this place can be given to the stream: what CUDA's handles are only the driver knows.
cdef bint is_stream(kvit_stream stream, Place place) noexcept nogil

# The Stream of a handle: NULL is the default one. Raises DeviceError.
cdef Stream to_stream(kvit_stream stream, Place place)

# "host" or "cuda:N". Raises DeviceError.
cdef str to_device(int32_t device_type, int32_t device_id)

# (device_type, device_id) of a Tensor's device, as C says it.
cdef Place place_of(Tensor tensor) noexcept
