"""A view of somebody's memory: what every operation takes."""
from libc.stdint cimport int64_t, uintptr_t

from kvit._native.elements cimport (
    MAX_DIMS, bits_of, check_memory, check_ndim, check_packed, count_of, extent_of, set_layout,
)
from kvit._native.whole_numbers cimport number_in, numbers_in, tuple_of

from kvit.dtypes import BY_CODE, dtype_of
from kvit.errors import DeviceError, DtypeError, LayoutError, refuse_copy

# Types whose bits may be declared to be something else: plain integers, in which others' formats travel.
_RAW_CODES = frozenset((KVIT_U8, KVIT_I8, KVIT_U16, KVIT_U32))

cdef object view = None


cdef class Tensor:
    """Where somebody's elements lie: address, shape, strides in bytes, dtype, device. Keeps their owner alive.

    A 4-bit type is packed two per byte along its last axis, element 0 in the low half; that axis has an even length and
    its stride reads 0.
    """

    def __cinit__(self):
        set_type(self, KVIT_U8)  # of one that nobody fills: no elements, on the host
        self.memory.device_type = ON_HOST
        self.memory.ndim = 1

    def __init__(self):
        raise TypeError("Tensor.wrap(array) or Tensor.from_pointer(...) makes one")

    def __dealloc__(self):
        if self.managed != NULL and self.managed.deleter != NULL:
            self.managed.deleter(self.managed)

    @staticmethod
    def wrap(source, dtype=None, stream=0) -> Tensor:
        """View `source` where it is.

        source  a Tensor (a kvit.Buffer is one), a numpy array (ml_dtypes types too), or an object with DLPack,
                __cuda_array_interface__ or the buffer protocol
        dtype   what the bytes are, where the source can only say "integers": same width, or uint8 read as packed uint4
        stream  handle of the CUDA stream that will use the memory; 0 is the legacy default stream

        Raises DtypeError (no kvit type fits), LayoutError (not readable in place), DeviceError (neither CPU nor CUDA).
        """
        global view
        if view is None:  # import_array needs this module first
            from kvit._native.import_array import view
        return view(source, dtype, stream)

    @staticmethod
    def from_pointer(pointer, shape, dtype, device="host", *, strides=None, readonly=False, owner=None) -> Tensor:
        """View raw memory: `pointer` is an address on `device` ("host", "cuda:N"), `strides` are in bytes.

        The caller answers for the address; `owner` is kept alive with the view.
        Raises LayoutError for a shape and strides that do not fit, or an address out of alignment.
        """
        cdef Tensor tensor = Tensor.__new__(Tensor)
        tensor.memory.data = <void *><uintptr_t>number_in("pointer", pointer, 0, 2**64 - 1)
        tensor.owner = owner
        try:
            tensor.memory.readonly = bool(readonly)
        except (TypeError, ValueError):  # an array is neither true nor false
            raise TypeError(f"readonly is a {type(readonly).__name__}; give True or False") from None
        tensor.memory.device_type, tensor.memory.device_id = parse_device(str(device))
        lay_out(tensor, dtype_of(dtype).code, numbers_in("shape", shape),
                None if strides is None else numbers_in("strides", strides))
        check_memory(&tensor.memory)
        return tensor

    cdef bint is_contiguous(self) noexcept:
        cdef int64_t step = self.bits // 8
        cdef int i = self.memory.ndim - 1
        if self.num_elements() == 0:
            return True
        if self.bits < 8:
            if self.memory.ndim == 0 or self.memory.strides[i] != 0:
                return False
            step = self.memory.shape[i] * self.bits // 8
            i -= 1
        while i >= 0:
            if self.memory.shape[i] != 1 and self.memory.strides[i] != step:
                return False
            step *= self.memory.shape[i]
            i -= 1
        return True

    cdef bint is_dense_last(self) noexcept:
        cdef int last = self.memory.ndim - 1
        return last < 0 or self.memory.shape[last] <= 1 or self.memory.strides[last] == self.bits // 8

    cdef int64_t num_elements(self) noexcept:
        return count_of(&self.memory)

    cdef void extent(self, uintptr_t *low, uintptr_t *high) noexcept:
        extent_of(&self.memory, low, high)

    def span(self) -> tuple:
        """(lowest address touched, one past the highest); equal where there are no elements."""
        cdef uintptr_t low, high
        self.extent(&low, &high)
        return low, high

    @property
    def shape(self) -> tuple:
        """Elements along each axis."""
        return tuple_of(self.memory.shape, self.memory.ndim)

    @property
    def strides(self) -> tuple:
        """Bytes from one index to the next, along each axis."""
        return tuple_of(self.memory.strides, self.memory.ndim)

    @property
    def dtype(self):
        """kvit.dtypes.Dtype of the elements."""
        return BY_CODE[self.memory.dtype]

    @property
    def device(self) -> str:
        """"host" or "cuda:N"."""
        return "host" if self.memory.device_type == ON_HOST else f"cuda:{self.memory.device_id}"

    @property
    def pointer(self) -> int:
        """Address of element [0, 0, ...]."""
        return <uintptr_t>self.memory.data

    @property
    def nbytes(self) -> int:
        """Bytes of all elements, gaps between them not counted."""
        return (self.num_elements() * self.bits + 7) // 8

    @property
    def readonly(self) -> bool:
        """Whether the source forbids writing."""
        return self.memory.readonly != 0

    @property
    def ndim(self) -> int:
        """How many axes there are."""
        return self.memory.ndim

    @property
    def size(self) -> int:
        """How many elements there are."""
        return self.num_elements()

    @property
    def itemsize(self) -> int:
        """Bytes of an element. Missing for uint4, two of which share a byte."""
        if self.bits < 8:
            raise AttributeError(f"an element of {self.dtype} is half a byte; nbytes tells the bytes of all")
        return self.bits // 8

    def __reduce_ex__(self, protocol):
        refuse_copy(self, "it stands for memory at an address; Buffer.from_numpy and copy_from copy the elements")

    def __repr__(self):
        return f"{type(self).__name__}(shape={self.shape}, dtype={self.dtype}, device={self.device!r})"


cdef Tensor reinterpret(Tensor source, object dtype):
    cdef Tensor tensor
    cdef int last = source.memory.ndim - 1
    wanted = dtype_of(dtype)
    if wanted.code == source.memory.dtype:
        return source
    packs = source.memory.dtype == KVIT_U8 and wanted.bits == 4
    if source.memory.dtype not in _RAW_CODES or not (packs or wanted.bits == source.bits):
        raise DtypeError(f"{source.dtype} cannot be read as {wanted}; only integers of its width, or uint8 as uint4")
    tensor = Tensor.__new__(Tensor)
    tensor.owner = source
    tensor.memory = source.memory
    tensor.bits = source.bits
    tensor.ready_stream = source.ready_stream
    if packs:
        if last >= 0:
            tensor.memory.shape[last] *= 2
        check_packed(&tensor.memory, last >= 0 and source.is_dense_last())
        tensor.memory.strides[last] = 0
    set_type(tensor, wanted.code)
    return tensor


cdef void set_type(Tensor tensor, int dtype) noexcept:
    tensor.memory.dtype = dtype
    tensor.bits = bits_of(dtype)


cdef int lay_out(Tensor tensor, int dtype, tuple shape, object strides) except -1:
    cdef int64_t[MAX_DIMS] lengths
    cdef int64_t[MAX_DIMS] steps
    cdef int i
    cdef int ndim = len(shape)
    check_ndim(ndim)
    if strides is not None and len(strides) != ndim:
        raise LayoutError(f"shape {shape} and strides {tuple(strides)} differ in length")
    for i in range(ndim):
        lengths[i] = shape[i]
        if strides is not None:
            steps[i] = strides[i]
    tensor.bits = bits_of(dtype)
    return set_layout(&tensor.memory, dtype, ndim, lengths, NULL if strides is None else steps)


cdef tuple parse_device(str device):
    if device == "host":
        return ON_HOST, 0
    if device == "cuda":
        return ON_CUDA, 0
    if device.startswith("cuda:") and device[5:].isdecimal():
        return ON_CUDA, int(device[5:])
    raise DeviceError(f'device is {device!r}; give "host", "cuda" (the first GPU) or "cuda:N"')
