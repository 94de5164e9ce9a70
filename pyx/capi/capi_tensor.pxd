# The tensors that C hands in, with the Tensor that says why one is refused.
from libc.stdint cimport int32_t

from kvit._native.checks cimport DeviceId
from kvit._native.stream cimport Stream
from kvit._native.tensor cimport Tensor
from kvit.capi cimport kvit_stream, kvit_tensor

# The Tensor for the Python operations; None for NULL where that is allowed. Raises ArgumentError, ShapeError,
# DtypeError, DeviceError, LayoutError, naming the tensor.
cdef Tensor to_tensor(const kvit_tensor *tensor, str name, bint is_optional=*)

# Whether work of this device can be given to the stream: what CUDA's handles are only the driver knows.
cdef bint is_stream(kvit_stream stream, DeviceId device) noexcept nogil

# The Stream of a handle: NULL is the default one. Raises DeviceError.
cdef Stream to_stream(kvit_stream stream, DeviceId device)

# "host" or "cuda:N". Raises DeviceError.
cdef str to_device(int32_t device_type, int32_t device_id)
