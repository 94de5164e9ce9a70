"""Memory that kvit owns, on a GPU or on the host."""
from operator import index as as_index

cimport cython
from cpython.number cimport PyIndex_Check
from libc.stdint cimport int64_t, uintptr_t

from kvit._native.import_array cimport as_tensor
from kvit._native.context cimport Device, device_of, no_device
from kvit._native.copies cimport copy_bytes
from kvit._native.errors cimport check, fail
from kvit._native.export_array cimport cuda_array, dlpack_capsule, fill_view, numpy_array
from kvit._native.stream cimport Stream, no_stream, stream_of
from kvit._native.tensor cimport KVIT_U4, KVIT_U8, ON_CUDA, ON_HOST, Tensor, lay_out
from kvit._native.whole_numbers cimport number_in, numbers_in

from kvit.dtypes import dtype_of
from kvit.errors import DeviceError, DtypeError, LayoutError, ShapeError


@cython.no_gc_clear
cdef class Buffer(Tensor):
    """Owned memory: C-contiguous, on one device, at least 256-byte aligned.

    Taken and given back in the order of one stream. Work on another stream must be over, or ordered before that stream
    by an Event, when the last reference goes. numpy.asarray reads a host buffer in place, DLPack exports any.
    """

    def __cinit__(self):
        self.dev = no_device()
        self.freed_on = no_stream()

    def __init__(self):
        raise TypeError("Buffer.empty(shape, dtype, device) or Buffer.from_numpy(array, device) makes one")

    def __dealloc__(self):
        cdef int entered
        if self.allocation != NULL:
            try:
                if self.freed_on.kept is not None:
                    self.freed_on.kept.append(heir_of(self))
                    return
                entered = self.dev.enter()
                self.dev.driver.mem_free(self.allocation, self.freed_on.c_stream)
                self.dev.leave(entered)
            except Exception:  # the driver is going away with the process
                pass

    @staticmethod
    def empty(shape, dtype, device="cuda:0", stream=None) -> Buffer:
        """Uninitialised memory. On the host it is full of 0xFF: NaN in every float type.

        shape   a length, or a sequence of them; the last is even for uint4
        stream  in whose order the memory comes and goes; the device's default if absent

        Raises ShapeError, DtypeError, DeviceError, NoGpuError; DriverError where memory is short.
        """
        cdef Device dev = device_of(device)
        return empty_buffer(to_shape(shape), dtype_of(dtype).code, dev, stream_of(stream, dev))

    @staticmethod
    def from_numpy(array, device="cuda:0", stream=None) -> Buffer:
        """A copy of a numpy array, ml_dtypes types too (uint4, which numpy holds one per byte, is packed).

        Raises DtypeError for a type that kvit has no code for. Returns when the copy is done.
        """
        import numpy

        cdef Buffer buffer
        if getattr(array, "mask", None) is not None:
            raise LayoutError("the array has a mask; kvit reads plain arrays: give array.filled(value)")
        array = numpy.asarray(array, order="C")
        dtype = dtype_of(array.dtype)
        buffer = Buffer.empty(array.shape, dtype, device, stream)
        if dtype.code == KVIT_U4:
            codes = array.view(numpy.uint8) & 15
            buffer.as_bytes().copy_from((codes[..., 0::2] | codes[..., 1::2] << 4).reshape(-1))
        else:
            buffer.copy_from(array)
        return buffer

    def numpy(self):
        """A copy as a numpy array, bfloat16 and the like through ml_dtypes. Waits for this buffer's stream."""
        import numpy

        raw = numpy.empty(self.nbytes, numpy.uint8)
        self.read_into(as_tensor(raw))
        return numpy_array(self, raw)

    def copy_from(self, source, stream=None):
        """Copy the elements of any tensor, anywhere, that has this buffer's shape and dtype and is C-contiguous.

        stream  on the GPU involved; absent: this buffer's, or that of the source where this buffer is on the host

        Waits for the copy if either side is on the host. Raises ShapeError, DtypeError, LayoutError, having written
        nothing.
        """
        cdef Device gpu
        cdef Stream on_stream
        cdef Tensor other = as_tensor(source)
        cdef Buffer owned = other if isinstance(other, Buffer) else None
        if other.shape != self.shape:
            raise ShapeError(f"the source has shape {other.shape}, the buffer {self.shape}; they must be the same")
        if other.memory.dtype != self.memory.dtype:
            raise DtypeError(f"the source is {other.dtype}, the buffer {self.dtype}; they must be the same")
        if not other.is_contiguous():
            raise LayoutError(f"the source has strides {other.strides}; make it C-contiguous first")
        if not self.dev.is_host or other.memory.device_type == ON_HOST:
            on_stream = self.freed_on if stream is None else stream_of(stream, self.dev)
        else:
            gpu = device_of(other.device)
            on_stream = owned.freed_on if stream is None and owned is not None else stream_of(stream, gpu)
        on_stream.order_after(other)
        if owned is not None and not owned.dev.is_host:
            on_stream.order_after_handle(owned.freed_on.c_stream)
        self.transfer(self, other, on_stream)

    def fill_bytes(self, value, stream=None):
        """Set every byte to `value`, 0 to 255. 0xFF makes every float a NaN."""
        cdef unsigned char byte = number_in("value", value, 0, 255)
        self.dev.table()
        cdef Stream on_stream = self.freed_on if stream is None else stream_of(stream, self.dev)
        cdef size_t num_bytes = self.nbytes
        cdef int status
        cdef int entered = self.dev.enter()
        try:
            on_stream.order_after_handle(self.freed_on.c_stream)
            with nogil:
                status = self.dev.driver.fill(self.memory.data, byte, num_bytes, on_stream.c_stream)
            check(status, b"cuMemsetD8Async")
            self.used_by(on_stream)
        finally:
            self.dev.leave(entered)

    cdef int read_into(self, Tensor target) except -1:
        """Copy all bytes to host memory and wait."""
        cdef int status
        self.transfer(target, self, self.freed_on)
        if self.dev.is_host:  # where a copy does not wait, and may have been recorded instead of done
            with nogil:
                status = self.dev.driver.stream_synchronize(self.freed_on.c_stream)
            check(status, b"cuStreamSynchronize")
        return 0

    cdef int transfer(self, Tensor target, Tensor source, Stream stream) except -1:
        """Copy all bytes; one of the two tensors is this buffer. Waits if either is on the host and a GPU copies."""
        if source.nbytes == 0:
            return 0
        if not self.dev.is_host and stream is not self.freed_on:
            stream.order_after_handle(self.freed_on.c_stream)
        if not copy_bytes(target, source, stream):
            stream.keep(target if source is self else source)
            self.used_by(stream)
        return 0

    cdef int used_by(self, Stream stream) except -1:
        """Give the memory back after what the stream holds now. A graph that is captured from it keeps the buffer."""
        return self.freed_on.order_after_handle(stream.c_stream) if stream.kept is None else stream.keep(self)

    cdef Buffer part(self, int dtype, tuple shape, int64_t offset):
        """A Buffer over some of this memory, from byte `offset` on."""
        cdef Buffer part = Buffer.__new__(Buffer)
        lay_out(part, dtype, shape, None)
        part.memory.data = <char *>self.memory.data + offset
        part.memory.device_type = self.memory.device_type
        part.memory.device_id = self.memory.device_id
        part.dev = self.dev
        part.freed_on = self.freed_on
        part.owner = self
        return part

    cdef Buffer as_bytes(self):
        """The same memory as uint8 [nbytes]."""
        return self.part(KVIT_U8, (self.nbytes,), 0)

    def __len__(self):
        if self.memory.ndim == 0:
            raise ShapeError("a buffer without axes has no length")
        return self.memory.shape[0]

    def __getitem__(self, key) -> Buffer:
        """Part of the leading axis, sharing memory: buffer[i] without the axis, buffer[i:j] with it."""
        cdef Py_ssize_t row, length = len(self)
        if self.bits < 8 and self.memory.ndim == 1:
            raise LayoutError("a packed 4-bit axis cannot be cut")
        if isinstance(key, slice):
            start, stop, step = key.indices(length)
            if step != 1:
                raise LayoutError(f"step is {step}; a part of a buffer is dense, so only 1 will do")
            return self.part(self.memory.dtype, (max(stop - start, 0), *self.shape[1:]), start * self.memory.strides[0])
        row = as_index(key)
        if not -length <= row < length:
            raise IndexError(f"index {row} is outside of {length} rows")
        return self.part(self.memory.dtype, self.shape[1:], row % length * self.memory.strides[0])

    @property
    def stream(self) -> Stream:
        """In whose order the memory was taken and is given back."""
        return self.freed_on

    def __getbuffer__(self, Py_buffer *view, int flags):
        if not self.dev.is_host:
            raise BufferError(f"the buffer is on {self.dev}; numpy() copies it to the host")
        fill_view(self, view, flags)

    def __array__(self, dtype=None, copy=None):
        """numpy's view of a host buffer: in place, but for uint4, which numpy holds one per byte."""
        import numpy

        if not self.dev.is_host:
            raise DeviceError(f"the buffer is on {self.dev}; numpy() copies it to the host")
        if copy is False and self.memory.dtype == KVIT_U4:
            raise ValueError("uint4 is packed; numpy cannot read it in place")
        array = numpy_array(self, numpy.asarray(self.as_bytes()))
        if dtype is not None and array.dtype != dtype:
            return array.astype(dtype)
        return array.copy() if copy else array

    @property
    def __cuda_array_interface__(self) -> dict:
        """Version 3. Missing on the host, and for types that it has no name for."""
        found = None if self.dev.is_host else cuda_array(self, <uintptr_t>self.freed_on.c_stream)
        if found is None:
            raise AttributeError(f"__cuda_array_interface__ cannot describe {self.dtype} on {self.dev}; DLPack can")
        return found

    def __dlpack_device__(self) -> tuple:
        """(1, 0) on the host, (2, ordinal) on a GPU."""
        return self.memory.device_type, self.memory.device_id

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        """A DLPack capsule of this memory; the consumer's `stream` waits for this buffer's (-1: it does so itself).

        Raises BufferError where another device or a copy is asked for.
        """
        if copy:
            raise BufferError("kvit lends its memory and does not copy; ask with copy=None")
        if dl_device is not None and tuple(dl_device) != self.__dlpack_device__():
            raise BufferError(f"the buffer is on DLPack device {self.__dlpack_device__()}, not {tuple(dl_device)}")
        if not self.dev.is_host and stream != -1:
            stream_of(stream or 0, self.dev).order_after_handle(self.freed_on.c_stream)
        return dlpack_capsule(self, max_version is not None and max_version[0] >= 1)


cdef Buffer heir_of(Buffer buffer):
    """A Buffer that owns the memory instead: to give it back cannot be captured."""
    cdef Buffer heir = Buffer.__new__(Buffer)
    heir.dev = buffer.dev
    heir.freed_on = buffer.freed_on
    heir.allocation = buffer.allocation
    return heir


cdef tuple to_shape(object shape):
    return numbers_in("shape", (shape,) if PyIndex_Check(shape) else shape)


cdef Buffer empty_buffer(tuple shape, int dtype, Device device, Stream stream):
    cdef Buffer buffer = Buffer.__new__(Buffer)
    cdef void *data = NULL
    cdef size_t num_bytes
    cdef int status, entered
    lay_out(buffer, dtype, shape, None)
    buffer.memory.device_type = ON_HOST if device.is_host else ON_CUDA
    buffer.memory.device_id = 0 if device.is_host else device.ordinal
    buffer.dev = device
    buffer.freed_on = stream
    num_bytes = max(buffer.nbytes, 1)  # an address even where there is nothing: no consumer has to think about NULL
    entered = device.enter()
    try:
        with nogil:
            status = device.driver.mem_alloc(&data, num_bytes, stream.c_stream)
        if status != 0:
            fail(status, b"posix_memalign" if device.is_host else b"cuMemAllocAsync", f"{num_bytes} bytes on {device}")
    finally:
        device.leave(entered)
    buffer.memory.data = buffer.allocation = data
    return buffer
