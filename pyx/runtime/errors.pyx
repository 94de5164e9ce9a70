"""Turns a driver status into a Python exception."""
from kvit.errors import DriverError

cdef StatusName status_name = NULL

# The statuses that a reader can do something about, and what.
_NEXT_STEPS = {
    1: "an argument is out of its range",
    2: "the device has no memory left: free some, or ask for less",
    3: "this process was forked after CUDA was used in its parent: start it by spawn, or use CUDA in the child alone",
    201: "the stream or handle belongs to another context",
    400: "the stream, event or kernel belongs to another device, or is gone",
    700: "a kernel touched memory outside its buffers; the context is lost, and the process has to start again",
    701: "the kernel needs more registers or shared memory than this GPU has",
    716: "a kernel touched memory out of alignment; the context is lost, and the process has to start again",
    719: "a kernel failed; the context is lost, and the process has to start again",
    801: "this device or its driver does not support the call",
    900: "the call cannot be made on a stream that is being captured: allocate, copy from or to the host, and wait "
         "before or after",
    901: "something was called meanwhile that cannot be captured, as its own error said; capture again without it",
}


cdef int check(int status, const char *call) except -1 nogil:
    if status == 0:
        return 0
    with gil:
        return fail(status, call, "")


cdef int fail(int status, const char *call, str detail) except -1:
    cdef const char *name = NULL
    if status_name != NULL:
        name = status_name(status)
    message = f"{call.decode()} failed with CUresult {status}"
    if name != NULL:
        message += f" ({name.decode()})"
    if detail:
        message += f" for {detail}"
    if status in _NEXT_STEPS:
        message += f": {_NEXT_STEPS[status]}"
    raise DriverError(message, status, call.decode())
