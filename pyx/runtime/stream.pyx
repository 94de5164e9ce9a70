"""An ordered queue of work on one device."""
cimport cython
from libc.stdint cimport uintptr_t

from kvit._native.context cimport Device, device_of, no_device
from kvit._native.driver_table cimport NOT_READY
from kvit._native.errors cimport check
from kvit._native.tensor cimport Tensor

from kvit.errors import DeviceError, refuse_copy

cdef Stream nowhere = None


@cython.no_gc_clear
cdef class Stream:
    """An ordered queue of work on one device: new and owned, or somebody's whose handle is used.

    `Stream("cuda:0")` makes one that does not wait for the legacy default stream. A call that is given no stream uses
    `Stream.default(device)`: the legacy default stream, which is ordered with every blocking stream of the process, and
    is the default of PyTorch, CuPy and the runtime API too. On the host all work is done when a call returns.
    """

    def __cinit__(self):
        self.dev = no_device()

    def __init__(self, device="cuda:0"):
        cdef int entered
        if self.dev is not no_device():
            raise RuntimeError("a Stream is made once")
        self.dev = device_of(device)
        entered = self.dev.enter()
        try:
            check(self.dev.driver.stream_create(&self.c_stream), b"cuStreamCreate")
            self.is_owned = True
        finally:
            self.dev.leave(entered)

    def __dealloc__(self):
        cdef int entered
        if self.is_owned:
            try:
                entered = self.dev.enter()
                self.dev.driver.stream_destroy(self.c_stream)
                self.dev.leave(entered)
            except Exception:  # the driver is going away with the process
                pass

    @staticmethod
    def default(device="cuda:0") -> Stream:
        """The stream of calls that name none: the device's legacy default stream."""
        return stream_of(None, device_of(device))

    @staticmethod
    def wrap(stream, device="cuda:0") -> Stream:
        """Somebody's stream on `device`: an int handle, an object with __cuda_stream__, a torch or CuPy stream.

        The object is kept alive; the stream behind an int is the caller's to keep. Raises DeviceError for others.
        """
        return stream_of(stream, device_of(device))

    @property
    def device(self) -> str:
        """"host" or "cuda:N"."""
        return self.dev.spec

    @property
    def handle(self) -> int:
        """What kvit.h takes as a kvit_stream: the CUstream, or the host's stream. 0 is the default one."""
        return <uintptr_t>self.c_stream

    def __cuda_stream__(self):
        if self.dev.is_host:
            raise DeviceError("this stream is the host's; it has no CUDA handle")
        return 0, <uintptr_t>self.c_stream

    def synchronize(self):
        """Return when all work given to the stream so far is done."""
        cdef int status
        cdef int entered = self.dev.enter()
        try:
            with nogil:
                status = self.dev.driver.stream_synchronize(self.c_stream)
            check(status, b"cuStreamSynchronize")
        finally:
            self.dev.leave(entered)

    @property
    def is_done(self) -> bool:
        """Whether all work given to the stream so far is done. Does not wait."""
        cdef int status
        cdef int entered = self.dev.enter()
        try:
            status = self.dev.driver.stream_query(self.c_stream)
            if status != NOT_READY:
                check(status, b"cuStreamQuery")
        finally:
            self.dev.leave(entered)
        return status != NOT_READY

    @property
    def is_capturing(self) -> bool:
        """Whether a CUDA graph is being captured from the stream."""
        cdef int capturing = 0
        cdef int entered = self.dev.enter()
        try:
            check(self.dev.driver.stream_is_capturing(self.c_stream, &capturing), b"cuStreamIsCapturing")
        finally:
            self.dev.leave(entered)
        return capturing != 0

    cdef int order_after_handle(self, void *other) except -1:
        cdef void *event = NULL
        cdef int is_capturing = 0
        cdef int entered
        # Both 0 and 1 are the legacy default stream.
        if other == self.c_stream or self.dev.is_host or <uintptr_t>other | <uintptr_t>self.c_stream == 1:
            return 0
        entered = self.dev.enter()
        try:
            # A graph cannot wait for work outside of it: whoever launches it orders that.
            if self.dev.driver.stream_is_capturing(self.c_stream, &is_capturing) == 0 and is_capturing:
                return 0
            check(self.dev.driver.event_create(&event, 0), b"cuEventCreate")
            check(self.dev.driver.event_record(event, other), b"cuEventRecord")
            check(self.dev.driver.stream_wait_event(self.c_stream, event), b"cuStreamWaitEvent")
        finally:
            if event != NULL:
                self.dev.driver.event_destroy(event)  # the driver keeps it until the wait is over
            self.dev.leave(entered)
        return 0

    cdef int order_after(self, Tensor tensor) except -1:
        if tensor.ready_stream == 0:
            return 0
        return self.order_after_handle(<void *>tensor.ready_stream)

    cdef int keep(self, Tensor tensor) except -1:
        if self.kept is not None:
            self.kept.append(tensor)
        return 0

    def __reduce_ex__(self, protocol):
        refuse_copy(self, "it is a queue of the driver; Stream(device) makes another")

    def __repr__(self):
        return f"Stream(device={self.dev.spec!r}, handle={self.handle:#x})"


cdef Stream stream_of(object stream, Device device):
    cdef Stream found
    if stream is None:
        if device.default_stream is None:
            device.default_stream = adopt(0, None, device)
        return <Stream>device.default_stream
    if isinstance(stream, Stream):
        found = <Stream>stream
        if found.dev is not device:
            raise DeviceError(f"the stream is on {found.dev}, the call on {device}; give a stream of {device}")
        return found
    if device.is_host:
        raise DeviceError(f"stream is {stream!r}, but the call is on the host; give none, or a Stream of the host")
    if isinstance(stream, int):
        return adopt(stream, None, device)
    if hasattr(stream, "__cuda_stream__"):
        method = stream.__cuda_stream__
        return adopt((method() if callable(method) else method)[1], stream, device)
    for name in ("cuda_stream", "ptr"):  # PyTorch, CuPy
        handle = getattr(stream, name, None)
        if isinstance(handle, int):
            return adopt(handle, stream, device)
    raise DeviceError(
        f"a {type(stream).__name__} is no stream; give a kvit.Stream, an int handle, or an object with __cuda_stream__"
    )


cdef Stream no_stream():
    global nowhere
    if nowhere is None:
        nowhere = Stream.__new__(Stream)
    return nowhere


cdef Stream adopt(object handle, object owner, Device device):
    cdef Stream stream = Stream.__new__(Stream)
    stream.dev = device
    stream.c_stream = <void *><uintptr_t>handle
    stream.owner = owner
    return stream
