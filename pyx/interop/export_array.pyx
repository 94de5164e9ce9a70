"""Exports a Tensor's memory to other libraries: DLPack, the buffer protocol, numpy, __cuda_array_interface__."""
from cpython.buffer cimport PyBUF_FORMAT
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cpython.object cimport PyObject
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid, PyCapsule_New
from cpython.ref cimport Py_INCREF, Py_XDECREF
from libc.stdint cimport int64_t, uintptr_t
from libc.string cimport memset

from kvit._native.dlpack cimport (
    DL_BFLOAT, DL_FLAG_READ_ONLY, DL_FLOAT, DL_FLOAT8_E4M3FN, DL_FLOAT8_E5M2, DL_INT, DL_UINT, DLManagedTensor,
    DLManagedTensorVersioned, DLTensor,
)
from kvit._native.tensor cimport (
    KVIT_BF16, KVIT_F8E4M3, KVIT_F8E5M2, KVIT_F16, KVIT_F32, KVIT_F64, KVIT_I8, KVIT_I32, KVIT_I64, KVIT_U4, KVIT_U8,
    KVIT_U16, KVIT_U32, Tensor,
)

from kvit.dtypes import numpy_dtype

# What the struct module and the array interfaces call a type; those missing here only ml_dtypes knows.
cdef dict FORMATS = {
    KVIT_F32: b"f", KVIT_F16: b"e", KVIT_F64: b"d", KVIT_U8: b"B", KVIT_U16: b"H", KVIT_U32: b"I", KVIT_I8: b"b",
    KVIT_I32: b"i", KVIT_I64: b"q",
}


cdef extern from "Python.h":
    bint Py_IsInitialized() noexcept nogil


# One block of memory per capsule: the managed tensor, whose shape and strides point behind it.
cdef struct Exported:
    DLManagedTensor managed
    int64_t[8] shape
    int64_t[8] strides


cdef struct ExportedVersioned:
    DLManagedTensorVersioned managed
    int64_t[8] shape
    int64_t[8] strides


cdef object dlpack_capsule(Tensor tensor, bint is_versioned):
    cdef Exported *exported
    cdef ExportedVersioned *versioned
    if is_versioned:
        versioned = <ExportedVersioned *>PyMem_RawMalloc(sizeof(ExportedVersioned))
        if versioned == NULL:
            raise MemoryError
        memset(versioned, 0, sizeof(ExportedVersioned))
        describe(&versioned.managed.dl_tensor, tensor, versioned.shape, versioned.strides)
        versioned.managed.version.major = 1
        versioned.managed.version.minor = 1
        versioned.managed.flags = DL_FLAG_READ_ONLY if tensor.memory.readonly else 0
        versioned.managed.manager_ctx = <void *>tensor
        versioned.managed.deleter = delete_versioned
        Py_INCREF(tensor)
        return PyCapsule_New(versioned, "dltensor_versioned", drop_versioned)
    exported = <Exported *>PyMem_RawMalloc(sizeof(Exported))
    if exported == NULL:
        raise MemoryError
    memset(exported, 0, sizeof(Exported))
    describe(&exported.managed.dl_tensor, tensor, exported.shape, exported.strides)
    exported.managed.manager_ctx = <void *>tensor
    exported.managed.deleter = delete
    Py_INCREF(tensor)
    return PyCapsule_New(exported, "dltensor", drop)


cdef void describe(DLTensor *view, Tensor tensor, int64_t *shape, int64_t *strides) noexcept:
    cdef int i
    view.data = tensor.memory.data
    view.device.device_type = tensor.memory.device_type
    view.device.device_id = tensor.memory.device_id
    view.ndim = tensor.memory.ndim
    view.dtype.bits = tensor.bits
    view.dtype.lanes = 1
    if tensor.memory.dtype in (KVIT_F16, KVIT_F32, KVIT_F64):
        view.dtype.code = DL_FLOAT
    elif tensor.memory.dtype in (KVIT_I8, KVIT_I32, KVIT_I64):
        view.dtype.code = DL_INT
    elif tensor.memory.dtype == KVIT_BF16:
        view.dtype.code = DL_BFLOAT
    elif tensor.memory.dtype == KVIT_F8E4M3:
        view.dtype.code = DL_FLOAT8_E4M3FN
    elif tensor.memory.dtype == KVIT_F8E5M2:
        view.dtype.code = DL_FLOAT8_E5M2
    else:
        view.dtype.code = DL_UINT
    view.shape = shape
    view.strides = strides
    for i in range(tensor.memory.ndim):
        shape[i] = tensor.memory.shape[i]
        # Bytes to elements; on the packed axis of a 4-bit type, whose byte stride is 0, neighbours are one apart.
        strides[i] = tensor.memory.strides[i] * 8 // tensor.bits or 1


# A deleter runs on any thread, with or without the GIL, and perhaps after the interpreter has gone.

cdef void delete(DLManagedTensor *managed) noexcept nogil:
    decref(<PyObject *>managed.manager_ctx)
    PyMem_RawFree(managed)


cdef void delete_versioned(DLManagedTensorVersioned *managed) noexcept nogil:
    decref(<PyObject *>managed.manager_ctx)
    PyMem_RawFree(managed)


cdef void decref(PyObject *tensor) noexcept nogil:
    if Py_IsInitialized():
        with gil:
            Py_XDECREF(tensor)


# A consumer renames the capsule it takes; one that still has its name was taken by nobody.

cdef void drop(object capsule) noexcept:
    if PyCapsule_IsValid(capsule, "dltensor"):
        delete(<DLManagedTensor *>PyCapsule_GetPointer(capsule, "dltensor"))


cdef void drop_versioned(object capsule) noexcept:
    if PyCapsule_IsValid(capsule, "dltensor_versioned"):
        delete_versioned(<DLManagedTensorVersioned *>PyCapsule_GetPointer(capsule, "dltensor_versioned"))


cdef int fill_view(Tensor tensor, Py_buffer *view, int flags) except -1:
    cdef bytes kind = FORMATS.get(tensor.memory.dtype)
    if kind is None:
        raise BufferError(f"the buffer protocol has no name for {tensor.dtype}; use numpy.asarray, or DLPack")
    view.obj = tensor
    view.buf = tensor.memory.data
    view.len = tensor.nbytes
    view.itemsize = tensor.bits // 8
    view.readonly = tensor.memory.readonly
    view.format = <char *>kind if flags & PyBUF_FORMAT else NULL  # FORMATS keeps the bytes
    view.ndim = tensor.memory.ndim
    view.shape = <Py_ssize_t *>tensor.memory.shape
    view.strides = <Py_ssize_t *>tensor.memory.strides
    view.suboffsets = NULL
    view.internal = NULL
    return 0


cdef dict cuda_array(Tensor tensor, uintptr_t stream):
    if tensor.memory.dtype not in FORMATS:
        return None
    return {
        "shape": tensor.shape,
        "typestr": numpy_dtype(tensor.dtype).str,
        "data": (<uintptr_t>tensor.memory.data, tensor.memory.readonly != 0),
        "strides": None,
        "stream": stream or 1,
        "version": 3,
    }


cdef object numpy_array(Tensor tensor, object raw):
    import numpy

    if tensor.memory.dtype == KVIT_U4:
        raw = numpy.stack((raw & 15, raw >> 4), axis=-1)
    return raw.view(numpy_dtype(tensor.dtype)).reshape(tensor.shape)
