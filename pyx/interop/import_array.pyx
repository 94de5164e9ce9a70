"""Reads the protocol of somebody's array, once, and never copies: numpy, DLPack, __cuda_array_interface__, buffers."""
from cpython.memoryview cimport PyMemoryView_FromObject, PyMemoryView_GET_BUFFER
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport int64_t, uintptr_t

from kvit._native.array_type cimport ArrayType, array_type_of
from kvit._native.driver cimport gpu_of
from kvit._native.elements cimport bits_of, check_memory, check_ndim, set_layout
from kvit._native.import_dlpack cimport from_dlpack
from kvit._native.tensor cimport (
    KVIT_F16, KVIT_F32, KVIT_F64, KVIT_I8, KVIT_I32, KVIT_I64, KVIT_U4, KVIT_U8, KVIT_U16, KVIT_U32, ON_CUDA, ON_HOST,
    Tensor, lay_out, reinterpret,
)
from kvit._native.whole_numbers cimport number_in

from kvit.dtypes import dtype_of
from kvit.errors import DtypeError, LayoutError

cdef enum:
    ARRAY_WRITEABLE = 0x400


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

_TAKES = "give a kvit.Buffer, a numpy array, or an object with DLPack, __cuda_array_interface__ or the buffer protocol"

cdef dict numpy_codes = {}                 # numpy dtype -> KvitDtype: numpy works out a dtype's name anew at every call


def view(source, dtype=None, stream=0) -> Tensor:
    """Tensor.wrap, which says what it does."""
    return as_tensor(source, dtype, <void *><uintptr_t>number_in("stream", stream, 0, 2**64 - 1))


cdef Tensor as_tensor(object source, object dtype=None, void *stream=NULL):
    cdef Tensor tensor
    cdef ArrayType kind
    if isinstance(source, Tensor):
        tensor = <Tensor>source
        return tensor if dtype is None else reinterpret(tensor, dtype)
    kind = array_type_of(type(source))
    if kind.has_struct:
        tensor = from_numpy(source, kind)
    elif kind.has_dlpack or kind.api != NULL:
        tensor = from_dlpack(source, kind, stream)
    elif hasattr(source, "__cuda_array_interface__"):
        tensor = from_cuda_array(source, dtype)
    else:
        tensor = from_buffer(source)
    check_memory(&tensor.memory)
    return tensor if dtype is None else reinterpret(tensor, dtype)


cdef Tensor from_numpy(object source, ArrayType kind):
    cdef Tensor tensor = Tensor.__new__(Tensor)
    cdef int code
    # __array_struct__ says what __array_interface__ says, without building a dict of Python objects.
    capsule = source.__array_struct__
    cdef const ArrayStruct *interface = <const ArrayStruct *>PyCapsule_GetPointer(capsule, NULL)
    dtype = source.dtype
    found = numpy_codes.get(dtype)
    if found is None:
        found = numpy_codes[dtype] = code_of(dtype)
    if not kind.is_plain and getattr(source, "mask", None) is not None:
        raise LayoutError("the array has a mask; kvit reads plain arrays: give array.filled(value)")
    code = found
    if code == KVIT_U4:
        raise LayoutError(
            "numpy holds uint4 one per byte, kvit two; use Buffer.from_numpy, or give packed uint8 with dtype='uint4'"
        )
    tensor.owner = capsule  # which keeps the array
    tensor.memory.device_type = ON_HOST
    tensor.memory.data = interface.data
    tensor.memory.readonly = not interface.flags & ARRAY_WRITEABLE
    place(tensor, code, interface.ndim, interface.shape, interface.strides)
    return tensor


cdef int place(Tensor tensor, int dtype, int ndim, const Py_ssize_t *shape, const Py_ssize_t *strides) except -1:
    check_ndim(ndim)
    tensor.bits = bits_of(dtype)
    return set_layout(&tensor.memory, dtype, ndim, <const int64_t *>shape, <const int64_t *>strides)


cdef object code_of(object dtype):
    """The code of a numpy dtype. int16 is raw bits, as uint16 is."""
    return KVIT_U16 if dtype.kind == "i" and dtype.itemsize == 2 and dtype.isnative else dtype_of(dtype).code


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
    cdef const Py_buffer *raw
    try:
        tensor.owner = PyMemoryView_FromObject(source)
    except TypeError:
        raise DtypeError(f"a {type(source).__name__} is no tensor; {_TAKES}") from None
    raw = PyMemoryView_GET_BUFFER(tensor.owner)
    text = "B" if raw.format == NULL else (<const char *>raw.format).decode()
    code = _ARRAY_TYPES.get((_FORMAT_KINDS.get(text.lstrip("@=<")), raw.itemsize))
    if code is None:
        raise DtypeError(f"buffer format {text!r} has no kvit dtype; {_TAKES}")
    if raw.suboffsets != NULL:
        raise LayoutError("the buffer is an array of pointers; kvit reads one block of memory")
    tensor.memory.data = raw.buf
    tensor.memory.device_type = ON_HOST
    tensor.memory.readonly = raw.readonly
    place(tensor, code, raw.ndim, raw.shape, raw.strides)
    return tensor
