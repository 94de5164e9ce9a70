"""A point in a stream that other work can wait for, and that tells the time."""
cimport cython

from kvit._native.context cimport device_of
from kvit._native.driver_table cimport NOT_READY
from kvit._native.errors cimport check
from kvit._native.stream cimport Stream

from kvit.errors import DeviceError


@cython.no_gc_clear
cdef class Event:
    """A point in a stream. Owned: destroyed with this object.

    device  where its streams are
    timing  whether elapsed_ms will be asked; an event without it costs less
    """

    def __init__(self, device="cuda:0", *, timing=True):
        cdef int entered
        if self.home is not None:
            raise RuntimeError("an Event is made once")
        self.home = device_of(device)
        self.has_timing = timing
        entered = self.home.enter()
        try:
            check(self.home.driver.event_create(&self.handle, self.has_timing), b"cuEventCreate")
        finally:
            self.home.leave(entered)

    def __dealloc__(self):
        cdef int entered
        if self.handle != NULL:
            try:
                entered = self.home.enter()
                self.home.driver.event_destroy(self.handle)
                self.home.leave(entered)
            except Exception:  # the driver is going away with the process
                pass

    @property
    def device(self) -> str:
        """"host" or "cuda:N"."""
        return self.home.spec

    def record(self, Stream stream not None):
        """Mark the current end of `stream`, which is on this event's device."""
        if stream.home is not self.home:
            raise DeviceError(f"the event is on {self.home}, the stream on {stream.home}; they must be the same")
        cdef int entered = self.home.enter()
        try:
            check(self.home.driver.event_record(self.handle, stream.handle), b"cuEventRecord")
        finally:
            self.home.leave(entered)

    def wait(self, Stream stream not None):
        """Make later work of `stream` wait for this point. Does not stop the caller."""
        cdef int entered = stream.home.enter()
        try:
            check(stream.home.driver.stream_wait_event(stream.handle, self.handle), b"cuStreamWaitEvent")
        finally:
            stream.home.leave(entered)

    def synchronize(self):
        """Return when the work before this point is done."""
        cdef int status
        cdef int entered = self.home.enter()
        try:
            with nogil:
                status = self.home.driver.event_synchronize(self.handle)
            check(status, b"cuEventSynchronize")
        finally:
            self.home.leave(entered)

    def is_done(self) -> bool:
        """Whether the work before this point is done. Does not wait."""
        cdef int status
        cdef int entered = self.home.enter()
        try:
            status = self.home.driver.event_query(self.handle)
            if status != NOT_READY:
                check(status, b"cuEventQuery")
        finally:
            self.home.leave(entered)
        return status != NOT_READY

    def elapsed_ms(self, Event end not None) -> float:
        """Milliseconds from this point to `end`. Both are recorded, with timing, on one device, and done."""
        cdef float elapsed = 0
        cdef int entered
        if not (self.has_timing and end.has_timing):
            raise DeviceError("an event made with timing=False keeps no time; leave timing at True")
        if end.home is not self.home:
            raise DeviceError(f"the events are on {self.home} and {end.home}; time is kept per device")
        entered = self.home.enter()
        try:
            check(self.home.driver.event_elapsed_ms(&elapsed, self.handle, end.handle), b"cuEventElapsedTime")
        finally:
            self.home.leave(entered)
        return elapsed
