"""How the C API says what went wrong: a status, and words that each thread has for itself."""
import threading

from cpython.exc cimport PyErr_SetObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdio cimport snprintf
from libc.string cimport memcpy

from kvit.capi cimport (
    KVIT_ERROR_ARGUMENT, KVIT_ERROR_CACHE_FULL, KVIT_ERROR_DEVICE, KVIT_ERROR_DRIVER, KVIT_ERROR_DTYPE,
    KVIT_ERROR_HOST_BACKEND, KVIT_ERROR_INTERNAL, KVIT_ERROR_INTERRUPTED, KVIT_ERROR_KERNEL_MISSING,
    KVIT_ERROR_LAYOUT, KVIT_ERROR_NO_GPU, KVIT_ERROR_OUT_OF_MEMORY, KVIT_ERROR_PAGE_TABLE, KVIT_ERROR_SEQUENCE_FREED,
    KVIT_ERROR_SHAPE, KVIT_ERROR_STEP,
)

from kvit import errors

cdef extern from *:
    """
    static _Thread_local char kvit_error_text[2048];
    static const char *kvit_type_name(PyObject *object) { return Py_TYPE(object)->tp_name; }
    """
    char *kvit_error_text
    const char *kvit_type_name(object) noexcept

cdef extern from "Python.h":
    ctypedef struct PyFrameObject
    PyFrameObject *PyEval_GetFrame() noexcept
    int Py_AddPendingCall(int (*call)(void *) noexcept, void *argument) noexcept
    unsigned long PyThread_get_thread_ident() noexcept


class ArgumentError(errors.KvitError, ValueError):
    """An argument of the C API that C alone can get wrong: NULL, a struct of an unknown size, an unknown option."""


cdef class CallFailed(Exception):
    """Something whose words the thread has already; `status` is what its call returns."""

    cdef int32_t status

    def __init__(self, int32_t status):
        self.status = status


# Where handlers of signals run: in no other thread.
cdef unsigned long main_thread = threading.main_thread().ident

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
    (errors.KvitError, KVIT_ERROR_STEP),  # those that have no kind of their own: what steps and growing sequences raise
    (MemoryError, KVIT_ERROR_OUT_OF_MEMORY),
]
# What CPython 3.11 raises where it has no memory for a frame; and where it has none for these words either.
cdef tuple _NO_MEMORY = (("error return without exception set",), ())


cdef char *error_text() noexcept nogil:
    return kvit_error_text


cdef int32_t set_last_error(object error, kvit_fault *fault=NULL) noexcept:
    cdef int32_t status
    if isinstance(error, CallFailed):
        return (<CallFailed>error).status
    status = status_of(error)
    try:
        write_words(error, status)
        if fault != NULL and status == KVIT_ERROR_PAGE_TABLE:
            fault.sequence, fault.slot, fault.value = error.sequence, error.slot, error.value
    except BaseException:
        snprintf(error_text(), ERROR_BYTES, b"%s: no memory was left for its words", kvit_type_name(error))
    if status == KVIT_ERROR_INTERRUPTED:
        raise_in_caller(error)
    return status


cdef int32_t status_of(object error) noexcept:
    for kind, code in _STATUSES:
        if isinstance(error, kind):
            return code
    if isinstance(error, SystemError) and error.args in _NO_MEMORY:
        return KVIT_ERROR_OUT_OF_MEMORY
    # kvit raises nothing that is no Exception: KeyboardInterrupt and SystemExit come from handlers of signals.
    return KVIT_ERROR_INTERNAL if isinstance(error, Exception) else KVIT_ERROR_INTERRUPTED


cdef int write_words(object error, int32_t status) except -1:
    cdef bytes words
    text = f"{type(error).__name__}: {error}"
    if status == KVIT_ERROR_INTERRUPTED:
        text = (
            f"{type(error).__name__}: the handler of a signal raised it during the call. A cache has changed as a "
            "whole or not at all, as sequence_query tells, and no page is lost; a handle that was to be destroyed is "
            "gone. What was not done can be called again"
        )
    words = text.encode(errors="replace")
    if len(words) >= ERROR_BYTES:
        words = words[:ERROR_BYTES - 1].decode(errors="ignore").encode()  # no half of a character at the end
    memcpy(error_text(), <const char *>words, len(words) + 1)
    return 0


cdef void raise_in_caller(object error) noexcept:
    """Have Python raise what a handler raised, once the call is back in Python code. C alone has the status only."""
    if PyEval_GetFrame() == NULL or PyThread_get_thread_ident() != main_thread:
        return
    Py_INCREF(error)
    if Py_AddPendingCall(raise_again, <void *>error) != 0:
        Py_DECREF(error)


cdef int raise_again(void *argument) noexcept:
    error = <object>argument
    PyErr_SetObject(type(error), error)
    Py_DECREF(error)
    return -1
