"""Reads the protocol of somebody's array, once, and never copies: numpy, DLPack, __cuda_array_interface__, buffers."""
from cpython.buffer cimport PyBUF_RECORDS_RO, PyBuffer_Release, PyObject_GetBuffer
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid
from libc.stdint cimport int64_t, uintptr_t

from kvit._native.dlpack cimport (
    DL_BFLOAT, DL_CPU, DL_CUDA, DL_CUDA_HOST, DL_CUDA_MANAGED, DL_FLAG_READ_ONLY, DL_FLOAT, DL_FLOAT8_E4M3FN,
    DL_FLOAT8_E5M2, DL_INT, DL_UINT, DLManagedTensor, DLManagedTensorVersioned, DLTensor,
)
from kvit._native.driver cimport gpu_of
from kvit._native.tensor cimport (
    KVIT_BF16, KVIT_F8E4M3, KVIT_F8E5M2, KVIT_F16, KVIT_F32, KVIT_F64, KVIT_I8, KVIT_I32, KVIT_I64, KVIT_U4, KVIT_U8,
    KVIT_U16, KVIT_U32, ON_CUDA, ON_HOST, Tensor, check_memory, lay_out, reinterpret,
)
from kvit._native.whole_numbers cimport number_in, tuple_of

from kvit.dtypes import BY_CODE, dtype_of
from kvit.errors import DeviceError, DtypeError, LayoutError

cdef enum:
    ARRAY_WRITEABLE = 0x400
    MOST_TYPES = 64                        # that are remembered: a program may make types without end


# What numpy's __array_struct__ points to (numpy.org/doc, "The array interface protocol").
cdef struct ArrayStruct:
    int two
    int ndim
    char kind
    int itemsize
    int flags
    Py_ssize_t *shape
    Py_ssize_t *strides
    void *data


# (DLPack type code, bits) -> KvitDtype
_DLPACK_TYPES = {
    (DL_FLOAT, 32): KVIT_F32, (DL_FLOAT, 16): KVIT_F16, (DL_FLOAT, 64): KVIT_F64, (DL_BFLOAT, 16): KVIT_BF16,
    (DL_FLOAT8_E4M3FN, 8): KVIT_F8E4M3, (DL_FLOAT8_E5M2, 8): KVIT_F8E5M2,
    (DL_UINT, 4): KVIT_U4, (DL_UINT, 8): KVIT_U8, (DL_UINT, 16): KVIT_U16, (DL_UINT, 32): KVIT_U32,
    (DL_INT, 8): KVIT_I8, (DL_INT, 16): KVIT_U16, (DL_INT, 32): KVIT_I32, (DL_INT, 64): KVIT_I64,
}
# (kind, bytes) of an array interface typestr -> KvitDtype
_ARRAY_TYPES = {
    ("f", 2): KVIT_F16, ("f", 4): KVIT_F32, ("f", 8): KVIT_F64,
    ("u", 1): KVIT_U8, ("u", 2): KVIT_U16, ("u", 4): KVIT_U32,
    ("i", 1): KVIT_I8, ("i", 2): KVIT_U16,      # raw bits: kvit counts in no int16
    ("i", 4): KVIT_I32, ("i", 8): KVIT_I64,
    ("V", 1): KVIT_U8, ("V", 2): KVIT_U16,      # raw bytes: how numpy spells a type that only the caller knows
}
# struct format character -> kind
_FORMAT_KINDS = {
    "e": "f", "f": "f", "d": "f", "B": "u", "H": "u", "I": "u", "L": "u", "Q": "u",
    "b": "i", "h": "i", "i": "i", "l": "i", "q": "i",
}

# Libraries whose arrays may be written. Of others' DLPack from before 1.0, which cannot say that memory is read-only,
# JAX's for one, kvit reads.
_MUTABLE = frozenset(("cupy", "numba", "numpy", "paddle", "torch"))

_TAKES = "give a kvit.Buffer, a numpy array, or an object with DLPack, __cuda_array_interface__ or the buffer protocol"

cdef object plain_array = None             # numpy.ndarray, once one was seen
cdef dict mutable_types = {}               # type of DLPack producers -> whether their memory may be written
cdef dict numpy_codes = {}                 # numpy dtype -> KvitDtype: numpy works out a dtype's name anew at every call


def view(source, dtype=None, stream=0) -> Tensor:
    """Tensor.wrap, which says what it does."""
    return as_tensor(source, dtype, <void *><uintptr_t>number_in("stream", stream, 0, 2**64 - 1))


cdef Tensor as_tensor(object source, object dtype=None, void *stream=NULL):
    cdef Tensor tensor
    if isinstance(source, Tensor):
        tensor = <Tensor>source
        return tensor if dtype is None else reinterpret(tensor, dtype)
    kind = type(source)
    if hasattr(kind, "__array_struct__"):
        tensor = from_numpy(source)
    elif hasattr(kind, "__dlpack__"):
        tensor = from_dlpack(source, stream)
    elif hasattr(source, "__cuda_array_interface__"):
        tensor = from_cuda_array(source, dtype)
    else:
        tensor = from_buffer(source)
    check_memory(tensor)
    return tensor if dtype is None else reinterpret(tensor, dtype)


cdef Tensor from_numpy(object source):
    cdef Tensor tensor = Tensor.__new__(Tensor)
    # __array_struct__ says what __array_interface__ says, without building a dict of Python objects.
    capsule = source.__array_struct__
    cdef ArrayStruct *interface = <ArrayStruct *>PyCapsule_GetPointer(capsule, NULL)
    dtype = source.dtype
    code = numpy_codes.get(dtype)
    if code is None:
        code = numpy_codes[dtype] = code_of(dtype)
    if type(source) is not plain_array:
        refuse_mask(source)
    if code == KVIT_U4:
        raise LayoutError(
            "numpy holds uint4 one per byte, kvit two; use Buffer.from_numpy, or give packed uint8 with dtype='uint4'"
        )
    tensor.owner = capsule  # which keeps the array
    tensor.memory.device_type = ON_HOST
    tensor.memory.data = interface.data
    tensor.memory.readonly = not interface.flags & ARRAY_WRITEABLE
    lay_out(tensor, code, numbers_of(interface.shape, interface.ndim), numbers_of(interface.strides, interface.ndim))
    return tensor


cdef tuple numbers_of(const Py_ssize_t *numbers, int count):
    return tuple_of(<const int64_t *>numbers, count)


cdef int refuse_mask(object source) except -1:
    """Raise LayoutError for an array with a mask; remember numpy's own class, whose arrays have none."""
    global plain_array
    if type(source).__module__ == "numpy" and type(source).__name__ == "ndarray":
        plain_array = type(source)
    elif getattr(source, "mask", None) is not None:
        raise LayoutError("the array has a mask; kvit reads plain arrays: give array.filled(value)")
    return 0


cdef object code_of(object dtype):
    """The code of a numpy dtype. int16 is raw bits, as uint16 is."""
    return KVIT_U16 if dtype.kind == "i" and dtype.itemsize == 2 and dtype.isnative else dtype_of(dtype).code


cdef bint is_mutable(object kind) except -1:
    found = mutable_types.get(kind)
    if found is None:
        found = False
        for base in kind.__mro__:
            found = found or base.__module__.partition(".")[0] in _MUTABLE
        if len(mutable_types) < MOST_TYPES:
            mutable_types[kind] = found
    return found


cdef Tensor from_dlpack(object source, void *stream):
    cdef Tensor tensor = Tensor.__new__(Tensor)
    cdef DLManagedTensorVersioned *versioned
    cdef DLTensor *view
    capsule = capsule_of(source, stream, tensor)
    if PyCapsule_IsValid(capsule, "dltensor_versioned"):
        versioned = <DLManagedTensorVersioned *>PyCapsule_GetPointer(capsule, "dltensor_versioned")
        if versioned.version.major != 1:
            raise LayoutError(f"DLPack {versioned.version.major}.{versioned.version.minor} is unknown; kvit reads 0, 1")
        tensor.memory.readonly = (versioned.flags & DL_FLAG_READ_ONLY) != 0
        view = &versioned.dl_tensor
    else:
        view = &(<DLManagedTensor *>PyCapsule_GetPointer(capsule, "dltensor")).dl_tensor
        tensor.memory.readonly = not is_mutable(type(source))

    # The capsule stays unconsumed, so that its own destructor gives the memory back when this view goes.
    tensor.owner = capsule
    tensor.memory.data = <char *>view.data + view.byte_offset
    code = _DLPACK_TYPES.get((view.dtype.code, view.dtype.bits)) if view.dtype.lanes == 1 else None
    if code is None:
        raise DtypeError(
            f"DLPack type {view.dtype.code} with {view.dtype.bits} bits and {view.dtype.lanes} lanes has no dtype; "
            f"known are {', '.join(map(str, BY_CODE.values()))}"
        )
    lay_out(tensor, code, tuple_of(view.shape, view.ndim), byte_strides(view))
    return tensor


cdef object byte_strides(DLTensor *view):
    """Strides in bytes; None where DLPack leaves them out. That of a dense 4-bit axis is 0, as Tensor has it."""
    cdef int i
    if view.strides == NULL:
        return None
    strides = []
    for i in range(view.ndim):
        is_packed = view.dtype.bits < 8 and i == view.ndim - 1 and (view.strides[i] == 1 or view.shape[i] <= 1)
        if view.strides[i] * view.dtype.bits % 8 != 0 and not is_packed:
            raise LayoutError(f"4-bit rows begin inside a byte: stride {view.strides[i]} of axis {i} is odd")
        strides.append(0 if is_packed else view.strides[i] * view.dtype.bits // 8)
    return tuple(strides)


cdef object capsule_of(object source, void *stream, Tensor tensor):
    """The capsule of a DLPack producer; sets the tensor's device."""
    try:
        device_type, device_id = source.__dlpack_device__()
        if device_type in (DL_CPU, DL_CUDA_HOST):
            tensor.memory.device_type = ON_HOST
            return ask_dlpack(source, None)
        if device_type in (DL_CUDA, DL_CUDA_MANAGED):
            tensor.memory.device_type = ON_CUDA
            tensor.memory.device_id = device_id
            # DLPack calls the legacy default stream 1: its 0 could mean either default.
            return ask_dlpack(source, <uintptr_t>stream if stream != NULL else 1)
    except Exception as error:  # a BufferError, says DLPack; some libraries raise their own
        raise LayoutError(f"the {type(source).__name__} does not lend its memory: {error}") from error
    raise DeviceError(f"DLPack device type {int(device_type)} is neither a CPU nor a CUDA GPU; copy to either")


cdef object ask_dlpack(object source, object stream):
    try:
        return source.__dlpack__(stream=stream, max_version=(1, 1))
    except TypeError:  # from before DLPack 1.0: it does not know max_version
        pass
    return source.__dlpack__(stream=stream)


cdef Tensor from_cuda_array(object source, object dtype):
    cdef Tensor tensor = Tensor.__new__(Tensor)
    interface = source.__cuda_array_interface__
    if interface.get("mask") is not None:
        raise LayoutError("the __cuda_array_interface__ has a mask; kvit reads plain arrays")
    typestr = interface["typestr"]
    if typestr[0] == ">":
        raise DtypeError(f"typestr {typestr!r} has its bytes in the other order")
    code = _ARRAY_TYPES.get((typestr[1], int(typestr[2:])))
    if code is None or (typestr[1] == "V" and dtype is None):
        raise DtypeError(f"typestr {typestr!r} has no kvit dtype; say with dtype= what it is")
    tensor.owner = source
    tensor.memory.device_type = ON_CUDA
    tensor.memory.data = <void *><uintptr_t>interface["data"][0]
    tensor.memory.device_id = gpu_of(tensor.memory.data)  # the interface does not name it
    tensor.memory.readonly = bool(interface["data"][1])
    tensor.ready_stream = <uintptr_t>(interface.get("stream") or 0)
    lay_out(tensor, code, interface["shape"], interface.get("strides"))
    return tensor


cdef Tensor from_buffer(object source):
    cdef Tensor tensor = Tensor.__new__(Tensor)
    cdef Py_buffer raw
    try:
        view = memoryview(source)
    except TypeError:
        raise DtypeError(f"a {type(source).__name__} is no tensor; {_TAKES}") from None
    kind = _FORMAT_KINDS.get(view.format.lstrip("@=<"))
    code = _ARRAY_TYPES.get((kind, view.itemsize))
    if code is None:
        raise DtypeError(f"buffer format {view.format!r} has no kvit dtype; {_TAKES}")
    if view.suboffsets:
        raise LayoutError("the buffer is an array of pointers; kvit reads one block of memory")
    PyObject_GetBuffer(view, &raw, PyBUF_RECORDS_RO)
    tensor.memory.data = raw.buf
    PyBuffer_Release(&raw)  # the memoryview goes on holding the memory
    tensor.owner = view
    tensor.memory.device_type = ON_HOST
    tensor.memory.readonly = view.readonly
    lay_out(tensor, code, view.shape, view.strides)
    return tensor
