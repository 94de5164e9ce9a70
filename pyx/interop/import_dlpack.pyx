# cython: cdivision=True
"""Reads DLPack, never copying: by the C functions of a type, else by the capsule that an object gives."""
from cpython.exc cimport PyErr_Occurred
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid
from libc.stdint cimport int64_t, uintptr_t

from kvit._native.context cimport device_of
from kvit._native.dlpack cimport (
    DL_BFLOAT, DL_CPU, DL_CUDA, DL_CUDA_HOST, DL_CUDA_MANAGED, DL_FLAG_IS_COPIED, DL_FLAG_PADDED, DL_FLAG_READ_ONLY,
    DL_FLOAT, DL_FLOAT8_E4M3FN, DL_FLOAT8_E5M2, DL_INT, DL_UINT, DLDataType, DLManagedTensor,
    DLManagedTensorVersioned, DLTensor,
)
from kvit._native.elements cimport MAX_DIMS, bits_of, check_ndim, set_layout
from kvit._native.stream cimport adopt
from kvit._native.tensor cimport (
    KVIT_BF16, KVIT_F8E4M3, KVIT_F8E5M2, KVIT_F16, KVIT_F32, KVIT_F64, KVIT_I8, KVIT_I32, KVIT_I64, KVIT_U4, KVIT_U8,
    KVIT_U16, KVIT_U32, ON_CUDA, ON_HOST,
)

from kvit.dtypes import BY_CODE
from kvit.errors import DeviceError, DtypeError, LayoutError

cdef int64_t FURTHEST = 1 << 58            # elements from one to the next: their bits can still be counted


cdef Tensor from_dlpack(object source, ArrayType kind, void *stream):
    if kind.api != NULL:
        found = from_exchange(source, kind, stream)
        if found is not None:
            return found
    return from_capsule(source, kind, stream)


cdef Tensor from_exchange(object source, ArrayType kind, void *stream):
    """By the C functions of the type. None where these do not export it and __dlpack__ may do so, or say why not."""
    cdef Tensor tensor = Tensor.__new__(Tensor)
    cdef DLManagedTensorVersioned *managed = NULL
    cdef void *producer = NULL
    cdef int status
    try:
        if kind.has_dlpack and kind.has_gradients and source.requires_grad:  # which the functions do not look at
            return None
        status = kind.api.managed_tensor_from_py_object_no_sync(<void *>source, &managed)
        if status == 0:
            tensor.managed = managed  # given back with the tensor, whatever is raised from here on
        check(status)
        if managed == NULL:
            raise BufferError("its C function gives nothing")
        if kind.has_dlpack and managed.version.major == 1 and dtype_of_dlpack(managed.dl_tensor.dtype) < 0:
            return None
    except MemoryError:
        raise
    except Exception as error:
        if not kind.has_dlpack:
            raise refusal(source, error) from error
        tensor = None
    if tensor is None:
        return None
    read_managed(tensor, managed, source)
    if tensor.memory.device_type == ON_CUDA:
        try:
            check(kind.api.current_work_stream(managed.dl_tensor.device.device_type, tensor.memory.device_id,
                                               &producer))
        except Exception as error:
            raise refusal(source, error) from error
        order_after(tensor, producer, stream)
    return tensor


cdef int order_after(Tensor tensor, void *producer, void *stream) except -1:
    """Let `stream` wait for what the library's stream holds now, as __dlpack__ does for the stream that it is told."""
    if producer == stream or <uintptr_t>producer | <uintptr_t>stream == 1:  # 0 and 1 are the legacy default stream
        return 0
    device = device_of(tensor.device)
    # What is being captured runs when its graph is launched: whoever launches it orders that.
    if not adopt(<uintptr_t>producer, None, device).is_capturing:
        adopt(<uintptr_t>stream, None, device).order_after_handle(producer)
    return 0


cdef int check(int status) except -1:
    """Raise what a producer's function has set. `status` is what it returned."""
    if PyErr_Occurred() != NULL:
        return -1
    if status != 0:
        raise BufferError(f"its C function fails with {status} and does not say why")
    return 0


cdef Tensor from_capsule(object source, ArrayType kind, void *stream):
    cdef Tensor tensor = Tensor.__new__(Tensor)
    cdef int device_type
    try:
        device = source.__dlpack_device__()
        device_type = device[0]
        if device_type in (DL_CPU, DL_CUDA_HOST):
            capsule = ask(source, None)
        elif device_type in (DL_CUDA, DL_CUDA_MANAGED):
            # DLPack calls the legacy default stream 1: its 0 could mean either default.
            capsule = ask(source, <uintptr_t>stream if stream != NULL else 1)
        else:
            capsule = None
    except MemoryError:
        raise
    except Exception as error:  # a BufferError, says DLPack; some libraries raise their own
        raise refusal(source, error) from error
    if capsule is None:
        raise no_device(device_type)
    # The capsule stays unconsumed, so that its own destructor gives the memory back when this view goes.
    tensor.owner = capsule
    if PyCapsule_IsValid(capsule, "dltensor_versioned"):
        read_managed(tensor, <DLManagedTensorVersioned *>PyCapsule_GetPointer(capsule, "dltensor_versioned"), source)
    else:
        tensor.memory.readonly = not kind.is_mutable
        read_view(tensor, &(<DLManagedTensor *>PyCapsule_GetPointer(capsule, "dltensor")).dl_tensor)
    return tensor


cdef object ask(object source, object stream):
    try:
        return source.__dlpack__(stream=stream, max_version=(1, 3))
    except TypeError:  # from before DLPack 1.0: it does not know max_version
        pass
    return source.__dlpack__(stream=stream)


cdef object refusal(object source, object error):
    return LayoutError(f"the {type(source).__name__} does not lend its memory: {error}")


cdef object no_device(int device_type):
    return DeviceError(f"DLPack device type {device_type} is neither a CPU nor a CUDA GPU; copy to either")


cdef int read_managed(Tensor tensor, const DLManagedTensorVersioned *managed, object source) except -1:
    if managed.version.major != 1:
        raise LayoutError(f"DLPack {managed.version.major}.{managed.version.minor} is unknown; kvit reads 0, 1")
    if managed.flags & DL_FLAG_IS_COPIED:
        raise LayoutError(f"the {type(source).__name__} exports a copy of its memory; kvit works in place")
    if managed.flags & DL_FLAG_PADDED and managed.dl_tensor.dtype.bits < 8:
        raise LayoutError(f"the {type(source).__name__} holds 4-bit elements one per byte, kvit two; pack them first")
    tensor.memory.readonly = (managed.flags & DL_FLAG_READ_ONLY) != 0
    return read_view(tensor, &managed.dl_tensor)


cdef int read_view(Tensor tensor, const DLTensor *view) except -1:
    cdef int64_t[MAX_DIMS] strides
    cdef int dtype = dtype_of_dlpack(view.dtype)
    if view.device.device_type in (DL_CPU, DL_CUDA_HOST):
        tensor.memory.device_type = ON_HOST
    elif view.device.device_type in (DL_CUDA, DL_CUDA_MANAGED):
        tensor.memory.device_type = ON_CUDA
        tensor.memory.device_id = view.device.device_id
    else:
        raise no_device(view.device.device_type)
    if dtype < 0:
        raise DtypeError(
            f"DLPack type {view.dtype.code} with {view.dtype.bits} bits and {view.dtype.lanes} lanes has no dtype; "
            f"known are {', '.join(map(str, BY_CODE.values()))}"
        )
    check_ndim(view.ndim)
    if view.strides != NULL:
        set_byte_strides(strides, view)
    tensor.memory.data = <char *>view.data + view.byte_offset
    tensor.bits = bits_of(dtype)
    return set_layout(&tensor.memory, dtype, view.ndim, view.shape, NULL if view.strides == NULL else strides)


cdef int dtype_of_dlpack(DLDataType given) noexcept:
    """enum KvitDtype; -1 where there is none. int16 is raw bits, as uint16 is: kvit counts in neither."""
    cdef int bits = given.bits if given.lanes == 1 else 0
    if given.code == DL_FLOAT:
        return KVIT_F16 if bits == 16 else KVIT_F32 if bits == 32 else KVIT_F64 if bits == 64 else -1
    if given.code == DL_BFLOAT:
        return KVIT_BF16 if bits == 16 else -1
    if given.code == DL_INT:
        return (KVIT_I32 if bits == 32 else KVIT_I8 if bits == 8 else KVIT_I64 if bits == 64
                else KVIT_U16 if bits == 16 else -1)
    if given.code == DL_UINT:
        return (KVIT_U8 if bits == 8 else KVIT_U16 if bits == 16 else KVIT_U32 if bits == 32
                else KVIT_U4 if bits == 4 else -1)
    if bits == 8 and given.code == DL_FLOAT8_E4M3FN:
        return KVIT_F8E4M3
    return KVIT_F8E5M2 if bits == 8 and given.code == DL_FLOAT8_E5M2 else -1


cdef int set_byte_strides(int64_t *strides, const DLTensor *view) except -1:
    """Strides in bytes. That of a dense 4-bit axis is 0, as Tensor has it."""
    cdef int64_t step
    cdef int i
    for i in range(view.ndim):
        step = view.strides[i]
        if view.dtype.bits < 8 and i == view.ndim - 1 and (step == 1 or view.shape[i] <= 1):
            strides[i] = 0
            continue
        if not -FURTHEST < step < FURTHEST:
            raise LayoutError(f"stride {step} of axis {i} is larger than any memory")
        if step * view.dtype.bits % 8 != 0:
            raise LayoutError(f"4-bit rows begin inside a byte: stride {step} of axis {i} is odd")
        strides[i] = step * view.dtype.bits // 8
    return 0
