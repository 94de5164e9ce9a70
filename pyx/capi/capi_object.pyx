"""Objects of Python behind handles: caches that own their memory, and what belongs to them; ropes."""
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int32_t, int64_t

from kvit._native.capi_handle cimport HANDLE_SEQUENCE, Slot, pin, publish, unpin
from kvit._native.forks cimport num_forks
from kvit.capi cimport KVIT_OK

from kvit._native.capi_error import ArgumentError, CallFailed


cdef extern from "Python.h":
    ctypedef void *PyThread_type_lock
    PyThread_type_lock PyThread_allocate_lock() noexcept
    void PyThread_free_lock(PyThread_type_lock lock) noexcept
    int PyThread_acquire_lock(PyThread_type_lock lock, int waits) noexcept nogil
    void PyThread_release_lock(PyThread_type_lock lock) noexcept


cdef class CacheLock:
    """Makes whole calls follow one another, which the GIL alone does not."""

    def __cinit__(self):
        self.num_forks = num_forks() - 1  # made when it is first wanted

    def __dealloc__(self):
        if self.lock != NULL:
            PyThread_free_lock(self.lock)

    cdef int acquire(self) except -1:
        if self.num_forks != num_forks():
            self.lock = PyThread_allocate_lock()  # the old one stays as it is: its thread is not here
            if self.lock == NULL:
                raise MemoryError("no memory for the lock of a cache")
            self.num_forks = num_forks()
        if not PyThread_acquire_lock(self.lock, False):
            with nogil:
                PyThread_acquire_lock(self.lock, True)
        return 0

    # Allocates nothing and runs no Python code: it cannot fail, whatever made the call end.
    cdef void release(self) noexcept:
        PyThread_release_lock(self.lock)


cdef class ObjectRef:
    """What a handle stands for, but those of views and operations."""


cdef ObjectRef hold(object value, CacheLock lock):
    cdef ObjectRef ref = ObjectRef.__new__(ObjectRef)
    ref.value, ref.lock = value, lock
    return ref


cdef void *hand_out(int kind, ObjectRef ref, Drop drop) except NULL:
    Py_INCREF(ref)
    return publish(kind, <void *>ref, drop)


cdef int32_t decref(void *state) noexcept:
    Py_DECREF(<object>state)
    return KVIT_OK


cdef ObjectRef find(const void *handle, int kind):
    """The object of a handle; it lives on while a call has it, whoever destroys the handle."""
    cdef Slot *slot
    cdef ObjectRef ref
    cdef int32_t status = pin(handle, kind, &slot)
    if status != KVIT_OK:
        raise CallFailed(status)
    ref = <ObjectRef>slot.state
    unpin(slot)
    return ref


cdef list find_all(kvit_sequence *const *sequences, int64_t count):
    if count < 0 or (sequences == NULL and count != 0):
        raise ArgumentError(f"sequences is {'NULL' if sequences == NULL else 'there'} and count {count}; "
                            "give as many handles as count says")
    found = []
    for i in range(count):
        found.append(find(sequences[i], HANDLE_SEQUENCE).value)
    return found
