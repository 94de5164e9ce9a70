"""Objects of Python behind handles: the caches that own their memory, and their sequences."""
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int32_t, int64_t

from kvit._native.capi_handle cimport HANDLE_SEQUENCE, Slot, pin, publish, unpin
from kvit.capi cimport KVIT_OK

from kvit._native.capi_error import ArgumentError, CallFailed


cdef class ObjectRef:
    """What a handle of a cache or a sequence stands for."""


cdef ObjectRef hold(object value, object lock):
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
    return [find(sequences[i], HANDLE_SEQUENCE).value for i in range(count)]
