"""The tensors that C hands in, with the Tensor that says why one is refused."""
from libc.stdint cimport uintptr_t

from kvit._native cimport host_stream
from kvit._native.capi_option cimport to_dtype
from kvit._native.checks cimport FURTHEST
from kvit._native.context cimport Device, device_of
from kvit._native.stream cimport adopt, stream_of
from kvit._native.whole_numbers cimport tuple_of
from kvit.capi cimport KVIT_DEVICE_CUDA, KVIT_DEVICE_HOST, KVIT_MAX_NDIM

from kvit._native.capi_error import ArgumentError
from kvit.errors import DeviceError, DtypeError, KvitError, LayoutError


cdef Tensor to_tensor(const kvit_tensor *tensor, str name, bint is_optional=False):
    if tensor == NULL:
        if is_optional:
            return None
        raise ArgumentError(f"{name} is NULL; give a kvit_tensor")
    if not 0 <= tensor.ndim <= KVIT_MAX_NDIM:
        raise LayoutError(f"{name} has ndim {tensor.ndim}; a kvit_tensor has 0 to {KVIT_MAX_NDIM} axes")
    shape, strides = tuple_of(tensor.shape, tensor.ndim), tuple_of(tensor.strides, tensor.ndim)
    reach = 0
    for length, stride in zip(shape, strides, strict=True):
        reach += max(length - 1, 0) * abs(stride)
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


cdef bint is_stream(kvit_stream stream, DeviceId device) noexcept nogil:
    return stream == NULL or device.type != KVIT_DEVICE_HOST or host_stream.is_stream(stream)


cdef Stream to_stream(kvit_stream stream, DeviceId device):
    if not is_stream(stream, device):
        raise DeviceError(
            f"stream is {<uintptr_t>stream:#x}, which is none of the host's; give NULL, or the handle of "
            'a kvit.Stream("host") that lives'
        )
    cdef Device found = device_of(to_device(device.type, device.ordinal))
    return stream_of(None, found) if stream == NULL else adopt(<uintptr_t>stream, None, found)


cdef str to_device(int32_t device_type, int32_t device_id):
    if device_type == KVIT_DEVICE_HOST and device_id == 0:
        return "host"
    if device_type == KVIT_DEVICE_CUDA and device_id >= 0:
        return f"cuda:{device_id}"
    raise DeviceError(
        f"device_type is {device_type} and device_id {device_id}; give KVIT_DEVICE_HOST (1) and 0, or KVIT_DEVICE_CUDA "
        "(2) and the GPU's ordinal"
    )
