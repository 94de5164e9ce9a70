# Objects of Python behind handles: the caches that own their memory, and their sequences.
from libc.stdint cimport int32_t, int64_t

from kvit._native.capi_handle cimport Drop
from kvit.capi cimport kvit_sequence


cdef class ObjectRef:
    cdef object value                  # kvit.PagedCache or kvit.Sequence
    cdef object lock                   # of the cache

cdef ObjectRef hold(object value, object lock)

# A new handle, which counts as a reference. `drop` ends with decref.
cdef void *hand_out(int kind, ObjectRef ref, Drop drop) except NULL
cdef int32_t decref(void *state) noexcept

# The object of a handle; it lives on while a call has it, whoever destroys the handle. Raises where there is none.
cdef ObjectRef find(const void *handle, int kind)

# Those of so many sequences. Raises ArgumentError too.
cdef list find_all(kvit_sequence *const *sequences, int64_t count)
