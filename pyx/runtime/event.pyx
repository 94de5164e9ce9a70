"""A point in a stream that other work can wait for, and that tells the time."""
cimport cython

from kvit._native.context cimport device_of, no_device
from kvit._native.driver_table cimport NOT_READY
from kvit._native.errors cimport check
from kvit._native.stream cimport Stream

from kvit.errors import DeviceError, refuse_copy


@cython.no_gc_clear
cdef class Event:
    """A point in a stream. Owned: destroyed with this object.

    device  where its streams are
    timing  whether elapsed_ms will be asked; an event without it costs less
    """

    def __cinit__(self):
        self.dev = no_device()

    def __init__(self, device="cuda:0", *, timing=True):
        cdef int entered
        if self.dev is not no_device():
            raise RuntimeError("an Event is made once")
        self.dev = device_of(device)
        try:
            self.has_timing = bool(timing)
        except (TypeError, ValueError):  # an array is neither true nor false
            raise TypeError(f"timing is a {type(timing).__name__}; give True or False") from None
        entered = self.dev.enter()
        try:
            check(self.dev.driver.event_create(&self.handle, self.has_timing), b"cuEventCreate")
        finally:
            self.dev.leave(entered)

    def __dealloc__(self):
        cdef int entered
        if self.handle != NULL:
            try:
                entered = self.dev.enter()
                self.dev.driver.event_destroy(self.handle)
                self.dev.leave(entered)
            except Exception:  # the driver is going away with the process
                pass

    @property
    def device(self) -> str:
        """"host" or "cuda:N"."""
        return self.dev.spec

    def record(self, Stream stream not None):
        """Mark the current end of `stream`, which is on this event's device."""
        if stream.dev is not self.dev:
            raise DeviceError(f"the event is on {self.dev}, the stream on {stream.dev}; they must be the same")
        cdef int entered = self.dev.enter()
        try:
            check(self.dev.driver.event_record(self.handle, stream.c_stream), b"cuEventRecord")
        finally:
            self.dev.leave(entered)

    def wait(self, Stream stream not None):
        """Make later work of `stream` wait for this point. Does not stop the caller."""
        cdef int entered = stream.dev.enter()
        try:
            check(stream.dev.driver.stream_wait_event(stream.c_stream, self.handle), b"cuStreamWaitEvent")
        finally:
            stream.dev.leave(entered)

    def synchronize(self):
        """Return when the work before this point is done."""
        cdef int status
        cdef int entered = self.dev.enter()
        try:
            with nogil:
                status = self.dev.driver.event_synchronize(self.handle)
            check(status, b"cuEventSynchronize")
        finally:
            self.dev.leave(entered)

    @property
    def is_done(self) -> bool:
        """Whether the work before this point is done. Does not wait."""
        cdef int status
        cdef int entered = self.dev.enter()
        try:
            status = self.dev.driver.event_query(self.handle)
            if status != NOT_READY:
                check(status, b"cuEventQuery")
        finally:
            self.dev.leave(entered)
        return status != NOT_READY

    def __reduce_ex__(self, protocol):
        refuse_copy(self, "it is a point in a stream of the driver; Event(device) makes another")

    def elapsed_ms(self, Event end not None) -> float:
        """Milliseconds from this point to `end`. Both are recorded, with timing, on one device, and done."""
        cdef float elapsed = 0
        cdef int entered
        if not (self.has_timing and end.has_timing):
            raise DeviceError("an event made with timing=False keeps no time; leave timing at True")
        if end.dev is not self.dev:
            raise DeviceError(f"the events are on {self.dev} and {end.dev}; time is kept per device")
        entered = self.dev.enter()
        try:
            check(self.dev.driver.event_elapsed_ms(&elapsed, self.handle, end.handle), b"cuEventElapsedTime")
        finally:
            self.dev.leave(entered)
        return elapsed
