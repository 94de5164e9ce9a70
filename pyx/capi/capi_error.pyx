"""How the C API says what went wrong: a status, and words that each thread has for itself."""
from libc.stdio cimport snprintf
from libc.string cimport memcpy

from kvit.capi cimport (
    KVIT_ERROR_ARGUMENT, KVIT_ERROR_CACHE_FULL, KVIT_ERROR_DEVICE, KVIT_ERROR_DRIVER, KVIT_ERROR_DTYPE,
    KVIT_ERROR_HOST_BACKEND, KVIT_ERROR_INTERNAL, KVIT_ERROR_KERNEL_MISSING, KVIT_ERROR_LAYOUT,
    KVIT_ERROR_NO_GPU, KVIT_ERROR_OUT_OF_MEMORY, KVIT_ERROR_PAGE_TABLE, KVIT_ERROR_SEQUENCE_FREED, KVIT_ERROR_SHAPE,
)

from kvit import errors

cdef extern from *:
    """
    static _Thread_local char kvit_error_text[2048];
    """
    char *kvit_error_text

cdef extern from "Python.h":
    int Py_IsInitialized() noexcept nogil


class ArgumentError(errors.KvitError, ValueError):
    """An argument of the C API that C alone can get wrong: NULL, a struct of an unknown size, an unknown option."""


class CallFailed(Exception):
    """Something whose words the thread has already; `status` is what its call returns."""

    def __init__(self, int32_t status):
        self.status = status


cdef list _STATUSES = [
    (errors.ShapeError, KVIT_ERROR_SHAPE),
    (errors.DtypeError, KVIT_ERROR_DTYPE),
    (errors.DeviceError, KVIT_ERROR_DEVICE),
    (errors.LayoutError, KVIT_ERROR_LAYOUT),
    (errors.CacheFull, KVIT_ERROR_CACHE_FULL),
    (errors.SequenceFreed, KVIT_ERROR_SEQUENCE_FREED),
    (errors.PageTableError, KVIT_ERROR_PAGE_TABLE),
    (errors.KernelMissing, KVIT_ERROR_KERNEL_MISSING),
    (errors.DriverError, KVIT_ERROR_DRIVER),
    (errors.NoGpuError, KVIT_ERROR_NO_GPU),
    (errors.HostBackendError, KVIT_ERROR_HOST_BACKEND),
    (ArgumentError, KVIT_ERROR_ARGUMENT),
    (MemoryError, KVIT_ERROR_OUT_OF_MEMORY),
]


cdef char *error_text() noexcept nogil:
    return kvit_error_text


cdef bint has_python() noexcept nogil:
    if Py_IsInitialized():
        return True
    snprintf(error_text(), ERROR_BYTES, b"NoInterpreter: Python has ended; call kvit before Py_Finalize")
    return False


cdef int32_t set_last_error(object error, kvit_fault *fault=NULL) noexcept:
    cdef bytes words
    cdef int32_t status = KVIT_ERROR_INTERNAL
    if isinstance(error, CallFailed):
        return error.status
    for kind, code in _STATUSES:
        if isinstance(error, kind):
            status = code
            break
    if fault != NULL and isinstance(error, errors.PageTableError):
        fault.sequence, fault.slot, fault.value = error.sequence, error.slot, error.value
    words = f"{type(error).__name__}: {error}".encode(errors="replace")
    if len(words) >= ERROR_BYTES:
        words = words[:ERROR_BYTES - 1].decode(errors="ignore").encode()  # no half of a character at the end
    memcpy(error_text(), <const char *>words, len(words) + 1)
    return status
