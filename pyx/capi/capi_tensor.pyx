# cython: cdivision=True
"""The tensors that C hands in, with the Tensor that says why one is refused."""
from libc.stdint cimport uintptr_t

from kvit._native cimport host_stream
from kvit._native.capi_option cimport to_dtype
from kvit._native.context cimport device_of
from kvit._native.stream cimport adopt, stream_of
from kvit._native.tensor cimport ON_CUDA
from kvit.capi cimport (
    KVIT_DEVICE_CUDA, KVIT_DEVICE_HOST, KVIT_DTYPE_BF16, KVIT_DTYPE_F16, KVIT_DTYPE_F32, KVIT_DTYPE_I32,
    KVIT_MAX_NDIM,
)

from kvit._native.capi_error import ArgumentError
from kvit.errors import DeviceError, DtypeError, KvitError, LayoutError

cdef enum:
    VECTOR_BYTES = 16          # what kernels move rows in
    ENTRY_BYTES = 4            # of an int32, and of a float32
    MOST = 0x7FFFFFFF          # kernels count rows and pages in int32

cdef int64_t FURTHEST = <int64_t>1 << 47   # bytes from one end of a tensor to the other: no address space is larger


cdef bint is_placed(const kvit_tensor *tensor, Place place, int dtype, int ndim) noexcept nogil:
    """Of this type, on this device, with so many axes that lengths and strides can be multiplied."""
    cdef int i
    cdef double reach                  # exact enough, and cannot overflow
    if tensor == NULL or tensor.ndim != ndim or tensor.dtype != dtype:
        return False
    if tensor.device_type != place.device_type or tensor.device_id != place.device_id:
        return False
    for i in range(ndim):
        if tensor.shape[i] < 0 or tensor.shape[i] > MOST:
            return False
        reach = <double>(tensor.shape[i] - 1) * <double>tensor.strides[i]
        if tensor.shape[i] > 1 and (reach > FURTHEST or reach < -FURTHEST):
            return False
    return True


cdef bint lies_at(const kvit_tensor *tensor, int last, int64_t alignment) noexcept nogil:
    """Whether it has an address, and that and the strides of its axes before `last` are multiples of `alignment`."""
    cdef int i
    if tensor.data == NULL or <uintptr_t>tensor.data % alignment != 0:
        return False
    for i in range(last):
        if tensor.shape[i] > 1 and tensor.strides[i] % alignment != 0:
            return False
    return True


cdef bint are_rows(const kvit_tensor *tensor, Place place, int dtype, int64_t tokens, int64_t heads, int64_t channels,
                   bint is_written) noexcept nogil:
    cdef int64_t size
    if not is_placed(tensor, place, dtype, 3) or (is_written and tensor.readonly):
        return False
    if tensor.shape[1] != heads or tensor.shape[2] != channels or (tokens >= 0 and tensor.shape[0] != tokens):
        return False
    if tensor.shape[0] == 0:
        return True
    if dtype == KVIT_DTYPE_F16 or dtype == KVIT_DTYPE_BF16:
        size = 2
    elif dtype == KVIT_DTYPE_F32:
        size = 4
    else:
        return False
    return (channels <= 1 or tensor.strides[2] == size) and lies_at(tensor, 2, VECTOR_BYTES)


cdef bint are_lse(const kvit_tensor *tensor, Place place, int64_t tokens, int64_t heads) noexcept nogil:
    if not is_placed(tensor, place, KVIT_DTYPE_F32, 2) or tensor.readonly:
        return False
    if tensor.shape[0] != tokens or tensor.shape[1] != heads:
        return False
    return tokens == 0 or lies_at(tensor, 2, ENTRY_BYTES)


cdef bint are_entries(const kvit_tensor *tensor, Place place, int64_t length) noexcept nogil:
    if not is_placed(tensor, place, KVIT_DTYPE_I32, 1) or (length >= 0 and tensor.shape[0] != length):
        return False
    if tensor.shape[0] == 0:
        return True
    return (tensor.shape[0] == 1 or tensor.strides[0] == ENTRY_BYTES) and lies_at(tensor, 0, ENTRY_BYTES)


cdef bint are_entry_rows(const kvit_tensor *tensor, Place place, int64_t rows) noexcept nogil:
    if not is_placed(tensor, place, KVIT_DTYPE_I32, 2) or tensor.shape[0] != rows:
        return False
    if tensor.shape[0] == 0 or tensor.shape[1] == 0:
        return True
    return (tensor.shape[1] == 1 or tensor.strides[1] == ENTRY_BYTES) and lies_at(tensor, 1, ENTRY_BYTES)


cdef KvitSpan span_of(const kvit_tensor *tensor, bint is_written) noexcept nogil:
    cdef KvitSpan span
    cdef uintptr_t low = <uintptr_t>tensor.data
    cdef uintptr_t high = low
    cdef int64_t reach
    cdef int i
    cdef bint is_empty = False
    for i in range(tensor.ndim):
        is_empty |= tensor.shape[i] == 0
        reach = (tensor.shape[i] - 1) * tensor.strides[i]
        if reach < 0:
            low += reach
        else:
            high += reach
    if tensor.dtype == KVIT_DTYPE_F16 or tensor.dtype == KVIT_DTYPE_BF16:
        high += 2
    else:
        high += ENTRY_BYTES
    span.base = <const void *>low
    span.bytes = 0 if is_empty else <int64_t>(high - low)
    span.writable = is_written
    span.any_time = 0
    return span


cdef KvitSpan extent_of(Tensor tensor, bint is_written) noexcept:
    cdef uintptr_t low, high
    cdef KvitSpan span
    tensor.extent(&low, &high)
    span.base = <const void *>low
    span.bytes = <int64_t>(high - low)
    span.writable = is_written
    span.any_time = 0
    return span


cdef Tensor to_tensor(const kvit_tensor *tensor, str name, bint is_optional=False):
    if tensor == NULL:
        if is_optional:
            return None
        raise ArgumentError(f"{name} is NULL; give a kvit_tensor")
    if not 0 <= tensor.ndim <= KVIT_MAX_NDIM:
        raise LayoutError(f"{name} has ndim {tensor.ndim}; a kvit_tensor has 0 to {KVIT_MAX_NDIM} axes")
    shape = tuple([tensor.shape[i] for i in range(tensor.ndim)])
    strides = tuple([tensor.strides[i] for i in range(tensor.ndim)])
    reach = sum([(length - 1) * abs(stride) for length, stride in zip(shape, strides, strict=True) if length > 1])
    if reach > FURTHEST:
        raise LayoutError(
            f"{name} has shape {list(shape)} and strides {list(strides)} bytes, which reach further than any memory"
        )
    device = to_device(tensor.device_type, tensor.device_id)
    dtype = to_dtype(tensor.dtype, name)
    if dtype is None:
        raise DtypeError(f"{name} has dtype 0, which is no type; set it to one of enum kvit_dtype")
    try:
        return Tensor.from_pointer(<uintptr_t>tensor.data, shape, dtype, device, strides=strides,
                                   readonly=tensor.readonly != 0)
    except KvitError as error:
        raise type(error)(f"{name}: {error}") from None


cdef bint is_stream(kvit_stream stream, Place place) noexcept nogil:
    return stream == NULL or place.device_type != KVIT_DEVICE_HOST or host_stream.is_stream(stream)


cdef Stream to_stream(kvit_stream stream, Place place):
    if not is_stream(stream, place):
        raise DeviceError(
            f"stream is {<uintptr_t>stream:#x}, which is none of the host's; give NULL, or c_handle of a "
            'kvit.Stream("host") that lives'
        )
    home = device_of(to_device(place.device_type, place.device_id))
    return stream_of(None, home) if stream == NULL else adopt(<uintptr_t>stream, None, home)


cdef str to_device(int32_t device_type, int32_t device_id):
    if device_type == KVIT_DEVICE_HOST and device_id == 0:
        return "host"
    if device_type == KVIT_DEVICE_CUDA and device_id >= 0:
        return f"cuda:{device_id}"
    raise DeviceError(
        f"device_type is {device_type} and device_id {device_id}; give KVIT_DEVICE_HOST (1) and 0, or KVIT_DEVICE_CUDA "
        "(2) and the GPU's ordinal"
    )


cdef Place place_of(Tensor tensor) noexcept:
    cdef Place place
    place.device_type = KVIT_DEVICE_CUDA if tensor.device_type == ON_CUDA else KVIT_DEVICE_HOST
    place.device_id = tensor.device_id
    return place
