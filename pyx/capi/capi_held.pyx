"""Objects of Python behind handles: the caches that own their memory, and their sequences."""
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int32_t, int64_t

from kvit._native.capi_handle cimport HANDLE_SEQUENCE, Slot, pin, publish, unpin
from kvit.capi cimport KVIT_OK

from kvit._native.capi_error import ArgumentError, Told


cdef class Held:
    """What a handle of a cache or a sequence stands for."""


cdef Held hold(object thing, object lock):
    cdef Held held = Held.__new__(Held)
    held.thing, held.lock = thing, lock
    return held


cdef void *hand_out(int kind, Held held, Drop drop) except NULL:
    Py_INCREF(held)
    return publish(kind, <void *>held, drop)


cdef int32_t let_go(void *state) noexcept:
    Py_DECREF(<object>state)
    return KVIT_OK


cdef Held find(const void *handle, int kind):
    """The object of a handle; it lives on while a call has it, whoever destroys the handle."""
    cdef Slot *slot
    cdef Held held
    cdef int32_t status = pin(handle, kind, &slot)
    if status != KVIT_OK:
        raise Told(status)
    held = <Held>slot.state
    unpin(slot)
    return held


cdef list find_all(kvit_sequence *const *sequences, int64_t count):
    if count < 0 or (sequences == NULL and count != 0):
        raise ArgumentError(f"sequences is {'NULL' if sequences == NULL else 'there'} and count {count}; "
                            "give as many handles as count says")
    return [find(sequences[i], HANDLE_SEQUENCE).thing for i in range(count)]
