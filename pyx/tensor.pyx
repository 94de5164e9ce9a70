"""A view of somebody's memory: what every operation takes. It reads the source's protocol once and never copies."""
from math import prod

from cpython.buffer cimport PyBUF_RECORDS_RO, PyBuffer_Release, PyObject_GetBuffer
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid
from libc.stdint cimport int64_t, uintptr_t

from kvit._native.dlpack cimport (
    DL_BFLOAT, DL_CPU, DL_CUDA, DL_CUDA_HOST, DL_CUDA_MANAGED, DL_FLAG_READ_ONLY, DL_FLOAT, DL_FLOAT8_E4M3FN,
    DL_FLOAT8_E5M2, DL_INT, DL_UINT, DLManagedTensor, DLManagedTensorVersioned, DLTensor,
)

from kvit.dtypes import BY_CODE, dtype_of
from kvit.errors import DeviceError, DtypeError, LayoutError, ShapeError

# (DLPack type code, bits) -> KvitDtype
_DLPACK_TYPES = {
    (DL_FLOAT, 32): KVIT_F32, (DL_FLOAT, 16): KVIT_F16, (DL_FLOAT, 64): KVIT_F64, (DL_BFLOAT, 16): KVIT_BF16,
    (DL_FLOAT8_E4M3FN, 8): KVIT_F8E4M3, (DL_FLOAT8_E5M2, 8): KVIT_F8E5M2,
    (DL_UINT, 4): KVIT_U4, (DL_UINT, 8): KVIT_U8, (DL_UINT, 16): KVIT_U16, (DL_UINT, 32): KVIT_U32,
    (DL_INT, 8): KVIT_I8, (DL_INT, 32): KVIT_I32, (DL_INT, 64): KVIT_I64,
}
# (kind, bytes) of an array interface typestr -> KvitDtype
_ARRAY_TYPES = {
    ("f", 2): KVIT_F16, ("f", 4): KVIT_F32, ("f", 8): KVIT_F64,
    ("u", 1): KVIT_U8, ("u", 2): KVIT_U16, ("u", 4): KVIT_U32,
    ("i", 1): KVIT_I8, ("i", 4): KVIT_I32, ("i", 8): KVIT_I64,
    ("V", 1): KVIT_U8, ("V", 2): KVIT_U16,      # raw bytes: how numpy spells a type that only the caller knows
}
# struct format character -> kind
_FORMAT_KINDS = {
    "e": "f", "f": "f", "d": "f", "B": "u", "H": "u", "I": "u", "L": "u", "Q": "u",
    "b": "i", "h": "i", "i": "i", "l": "i", "q": "i",
}
# Types whose bits may be declared to be something else: plain integers, in which others' formats travel.
_RAW_CODES = frozenset((KVIT_U8, KVIT_I8, KVIT_U16, KVIT_U32))

_TAKES = "give a kvit.Buffer, a numpy array, or an object with DLPack, __cuda_array_interface__ or the buffer protocol"


cdef class Tensor:
    """Where somebody's elements lie: address, shape, strides in bytes, dtype, device. Keeps their owner alive.

    A 4-bit type is packed two per byte along its last axis, element 0 in the low half; that axis has an even length and
    its stride reads 0.
    """

    def __init__(self):
        raise TypeError("Tensor.wrap(array) or Tensor.from_pointer(...) makes one")

    @staticmethod
    def wrap(source, dtype=None, stream=0) -> Tensor:
        """View `source` where it is.

        source  a Tensor (a kvit.Buffer is one), a numpy array (ml_dtypes types too), or an object with DLPack,
                __cuda_array_interface__ or the buffer protocol
        dtype   what the bytes are, where the source can only say "integers": same width, or uint8 read as packed uint4
        stream  handle of the CUDA stream that will use the memory; 0 is the legacy default stream

        Raises DtypeError (no kvit type fits), LayoutError (cannot be read in place), DeviceError (not CPU or CUDA memory).
        """
        return as_tensor(source, dtype, <void *><uintptr_t>stream)

    @staticmethod
    def from_pointer(pointer, shape, dtype, device="host", *, strides=None, readonly=False, owner=None) -> Tensor:
        """View raw memory: `pointer` is an address on `device` ("host", "cuda:N"), `strides` are in bytes.

        The caller answers for the address; `owner` is kept alive with the view.
        Raises LayoutError for a shape and strides that do not fit, or an address out of alignment.
        """
        cdef Tensor tensor = Tensor.__new__(Tensor)
        tensor.data = <void *><uintptr_t>pointer
        tensor.owner = owner
        tensor.is_readonly = readonly
        tensor.device_type, tensor.device_id = parse_device(str(device))
        lay_out(tensor, dtype_of(dtype).code, tuple(shape), None if strides is None else tuple(strides))
        check_memory(tensor)
        return tensor

    cdef bint is_contiguous(self) noexcept:
        cdef int64_t step = self.bits // 8
        cdef int i = self.ndim - 1
        if self.num_elements() == 0:
            return True
        if self.bits < 8:
            if self.ndim == 0 or self.steps[i] != 0:
                return False
            step = self.dims[i] * self.bits // 8
            i -= 1
        while i >= 0:
            if self.dims[i] != 1 and self.steps[i] != step:
                return False
            step *= self.dims[i]
            i -= 1
        return True

    cdef bint is_dense_last(self) noexcept:
        cdef int last = self.ndim - 1
        return last < 0 or self.dims[last] <= 1 or self.steps[last] == self.bits // 8

    cdef int64_t num_elements(self) noexcept:
        cdef int64_t count = 1
        for i in range(self.ndim):
            count *= self.dims[i]
        return count

    cdef void extent(self, uintptr_t *low, uintptr_t *high) noexcept:
        cdef uintptr_t first = <uintptr_t>self.data
        cdef uintptr_t last = first
        cdef int64_t reach
        low[0] = high[0] = first
        if self.num_elements() == 0:
            return
        for i in range(self.ndim):
            reach = (self.dims[i] - 1) * self.steps[i]
            if reach < 0:
                first += reach
            else:
                last += reach
        low[0] = first
        # A packed 4-bit row ends dims / 2 bytes after it begins; anything else one element after its last one does.
        high[0] = last + (self.bits // 8 if self.bits >= 8 else self.dims[self.ndim - 1] * self.bits // 8)

    def span(self) -> tuple:
        """(lowest address touched, one past the highest); equal where there are no elements."""
        cdef uintptr_t low, high
        self.extent(&low, &high)
        return low, high

    @property
    def shape(self) -> tuple:
        """Elements along each axis."""
        return tuple([self.dims[i] for i in range(self.ndim)])

    @property
    def strides(self) -> tuple:
        """Bytes from one index to the next, along each axis."""
        return tuple([self.steps[i] for i in range(self.ndim)])

    @property
    def dtype(self):
        """kvit.dtypes.Dtype of the elements."""
        return BY_CODE[self.code]

    @property
    def device(self) -> str:
        """"host" or "cuda:N"."""
        return "host" if self.device_type == ON_HOST else f"cuda:{self.device_id}"

    @property
    def pointer(self) -> int:
        """Address of element [0, 0, ...]."""
        return <uintptr_t>self.data

    @property
    def nbytes(self) -> int:
        """Bytes of all elements, gaps between them not counted."""
        return (self.num_elements() * self.bits + 7) // 8

    @property
    def readonly(self) -> bool:
        """Whether the source forbids writing."""
        return self.is_readonly

    def __repr__(self):
        return f"{type(self).__name__}(shape={self.shape}, dtype={self.dtype}, device={self.device!r})"


cdef Tensor as_tensor(object source, object dtype=None, void *stream=NULL):
    cdef Tensor tensor
    if isinstance(source, Tensor):
        tensor = <Tensor>source
        return tensor if dtype is None else reinterpret(tensor, dtype)
    kind = type(source)
    if hasattr(kind, "__array_interface__") and hasattr(kind, "dtype"):
        tensor = from_numpy(source)
    elif hasattr(kind, "__dlpack__"):
        tensor = from_dlpack(source, stream)
    elif hasattr(source, "__cuda_array_interface__"):
        tensor = from_cuda_array(source, dtype)
    else:
        tensor = from_buffer(source)
    check_memory(tensor)
    return tensor if dtype is None else reinterpret(tensor, dtype)


cdef Tensor raw_tensor(void *data, int ndim, const int64_t *dims, const int64_t *steps, int code, int device_type,
                       int device_id, object owner):
    cdef Tensor tensor = Tensor.__new__(Tensor)
    cdef int i
    check_ndim(ndim)
    tensor.data = data
    tensor.owner = owner
    tensor.device_type = device_type
    tensor.device_id = device_id
    set_type(tensor, code)
    tensor.ndim = ndim
    for i in range(ndim):
        tensor.dims[i] = dims[i]
        if steps != NULL:
            tensor.steps[i] = steps[i]
    if steps == NULL:
        set_contiguous(tensor)
    return tensor


cdef Tensor from_numpy(object source):
    cdef Tensor tensor = Tensor.__new__(Tensor)
    interface = source.__array_interface__
    code = dtype_of(source.dtype).code
    if code == KVIT_U4:
        raise LayoutError(
            "numpy holds uint4 one per byte, kvit two; Buffer.from_numpy packs it, or give packed uint8 with dtype='uint4'"
        )
    tensor.owner = source
    tensor.device_type = ON_HOST
    tensor.data = <void *><uintptr_t>interface["data"][0]
    tensor.is_readonly = interface["data"][1]
    lay_out(tensor, code, interface["shape"], interface.get("strides"))
    return tensor


cdef Tensor from_dlpack(object source, void *stream):
    cdef Tensor tensor = Tensor.__new__(Tensor)
    cdef DLManagedTensorVersioned *versioned
    cdef DLTensor *view
    cdef int i
    device_type, device_id = source.__dlpack_device__()
    if device_type in (DL_CPU, DL_CUDA_HOST):
        tensor.device_type = ON_HOST
        capsule = ask_dlpack(source, None)
    elif device_type in (DL_CUDA, DL_CUDA_MANAGED):
        tensor.device_type = ON_CUDA
        tensor.device_id = device_id
        # DLPack says 1 for the legacy default stream: 0 could be either default.
        capsule = ask_dlpack(source, <uintptr_t>stream if stream != NULL else 1)
    else:
        raise DeviceError(f"memory of DLPack device type {int(device_type)} cannot be read; move it to the CPU or a CUDA GPU")
    if PyCapsule_IsValid(capsule, "dltensor_versioned"):
        versioned = <DLManagedTensorVersioned *>PyCapsule_GetPointer(capsule, "dltensor_versioned")
        if versioned.version.major != 1:
            raise LayoutError(f"DLPack {versioned.version.major}.{versioned.version.minor} is not known; kvit reads 0 and 1")
        tensor.is_readonly = (versioned.flags & DL_FLAG_READ_ONLY) != 0
        view = &versioned.dl_tensor
    else:
        view = &(<DLManagedTensor *>PyCapsule_GetPointer(capsule, "dltensor")).dl_tensor

    # The capsule stays unconsumed, so that its own destructor gives the memory back when this view goes.
    tensor.owner = capsule
    tensor.data = <char *>view.data + view.byte_offset
    code = _DLPACK_TYPES.get((view.dtype.code, view.dtype.bits)) if view.dtype.lanes == 1 else None
    if code is None:
        raise DtypeError(
            f"DLPack type (code {view.dtype.code}, {view.dtype.bits} bits, {view.dtype.lanes} lanes) has no kvit dtype; "
            f"known are {', '.join(dtype.name for dtype in BY_CODE.values())}"
        )
    set_type(tensor, code)
    check_ndim(view.ndim)
    tensor.ndim = view.ndim
    for i in range(view.ndim):
        tensor.dims[i] = view.shape[i]
        if view.strides != NULL:
            tensor.steps[i] = view.strides[i] * tensor.bits // 8
    if view.strides == NULL:
        set_contiguous(tensor)
    elif tensor.bits < 8:
        check_packed(tensor, view.ndim > 0 and (view.strides[view.ndim - 1] == 1 or view.shape[view.ndim - 1] <= 1))
    return tensor


cdef object ask_dlpack(object source, object stream):
    try:
        try:
            return source.__dlpack__(stream=stream, max_version=(1, 1))
        except TypeError:  # from before DLPack 1.0: it does not know max_version
            return source.__dlpack__(stream=stream)
    except BufferError as error:
        raise LayoutError(f"the {type(source).__name__} does not lend its memory: {error}") from error


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
        raise DtypeError(f"typestr {typestr!r} of __cuda_array_interface__ has no kvit dtype; say what it is with dtype=")
    tensor.owner = source
    tensor.device_type = ON_CUDA
    # The interface does not name the GPU; an object that has one says so.
    tensor.device_id = device_id_of(source)
    tensor.data = <void *><uintptr_t>interface["data"][0]
    tensor.is_readonly = interface["data"][1]
    tensor.ready_stream = <uintptr_t>(interface.get("stream") or 0)
    lay_out(tensor, code, interface["shape"], interface.get("strides"))
    return tensor


cdef int device_id_of(object source) except? -1:
    device = getattr(source, "device", None)
    for name in ("index", "id"):
        number = getattr(device, name, None)
        if isinstance(number, int):
            return number
    return 0


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
    tensor.data = raw.buf
    PyBuffer_Release(&raw)  # the memoryview goes on holding the memory
    tensor.owner = view
    tensor.device_type = ON_HOST
    tensor.is_readonly = view.readonly
    lay_out(tensor, code, view.shape, view.strides)
    return tensor


cdef Tensor reinterpret(Tensor source, object dtype):
    """The same bytes as another type."""
    cdef Tensor tensor
    cdef int last = source.ndim - 1
    wanted = dtype_of(dtype)
    if wanted.code == source.code:
        return source
    packs = source.code == KVIT_U8 and wanted.bits == 4
    if source.code not in _RAW_CODES or not (packs or wanted.bits == source.bits):
        raise DtypeError(f"{source.dtype} cannot be read as {wanted}; only integers of the same width can (and uint8 as uint4)")
    tensor = raw_tensor(source.data, source.ndim, source.dims, source.steps, source.code, source.device_type,
                        source.device_id, source)
    tensor.is_readonly = source.is_readonly
    tensor.ready_stream = source.ready_stream
    if packs:
        if last >= 0:
            tensor.dims[last] *= 2
        check_packed(tensor, last >= 0 and source.is_dense_last())
        tensor.steps[last] = 0
    set_type(tensor, wanted.code)
    return tensor


cdef void set_type(Tensor tensor, int code):
    tensor.code = code
    tensor.bits = BY_CODE[code].bits


cdef int lay_out(Tensor tensor, int code, tuple shape, object strides) except -1:
    cdef int i
    set_type(tensor, code)
    check_ndim(len(shape))
    tensor.ndim = len(shape)
    for i in range(tensor.ndim):
        tensor.dims[i] = shape[i]
        if tensor.dims[i] < 0:
            raise ShapeError(f"shape {shape} has a negative length")
    if prod(shape) * tensor.bits >= 2**63:
        raise ShapeError(f"shape {shape} of {tensor.dtype} is larger than any memory")
    if strides is None:
        return set_contiguous(tensor)
    if len(strides) != len(shape):
        raise LayoutError(f"shape {shape} and strides {tuple(strides)} differ in length")
    for i in range(tensor.ndim):
        tensor.steps[i] = strides[i]
    if tensor.bits < 8:
        check_packed(tensor, tensor.ndim > 0 and tensor.steps[tensor.ndim - 1] == 0)
    return 0


cdef int set_contiguous(Tensor tensor) except -1:
    cdef int i = tensor.ndim - 1
    cdef int64_t step = tensor.bits // 8
    if tensor.bits < 8:
        check_packed(tensor, tensor.ndim > 0)
        tensor.steps[i] = 0
        step = tensor.dims[i] * tensor.bits // 8
        i -= 1
    while i >= 0:
        tensor.steps[i] = step
        step *= tensor.dims[i]
        i -= 1
    return 0


cdef int check_packed(Tensor tensor, bint is_dense) except -1:
    if not is_dense or tensor.dims[tensor.ndim - 1] % 2 != 0:
        raise LayoutError(f"a 4-bit type is packed two per byte: the last axis of {tensor.shape} must be dense and even")
    return 0


cdef int check_ndim(Py_ssize_t ndim) except -1:
    if ndim > MAX_DIMS:
        raise LayoutError(f"{ndim} dimensions are too many; kvit reads at most {MAX_DIMS}")
    return 0


cdef int check_memory(Tensor tensor) except -1:
    """Every element lies at a multiple of its size, as a vector load needs it."""
    cdef int64_t size = tensor.bits // 8
    if tensor.num_elements() == 0:
        return 0
    if tensor.data == NULL:
        raise LayoutError(f"shape {tensor.shape} at address 0")
    if size > 1:
        if <uintptr_t>tensor.data % size != 0:
            raise LayoutError(f"{tensor.dtype} at address {tensor.pointer:#x}, which is no multiple of {size}; copy it first")
        for i in range(tensor.ndim):
            if tensor.dims[i] > 1 and tensor.steps[i] % size != 0:
                raise LayoutError(f"{tensor.dtype} with byte strides {tensor.strides}, not multiples of {size}; copy it first")
    return 0


cdef tuple parse_device(str device):
    if device == "host":
        return ON_HOST, 0
    if device == "cuda":
        return ON_CUDA, 0
    if device.startswith("cuda:") and device[5:].isdecimal():
        return ON_CUDA, int(device[5:])
    raise DeviceError(f'device is {device!r}; give "host", "cuda" (the first GPU) or "cuda:N"')
