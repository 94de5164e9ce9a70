# Objects of Python behind handles: the caches that own their memory, and their sequences.
from libc.stdint cimport int32_t, int64_t

from kvit._native.capi_handle cimport Drop
from kvit.capi cimport kvit_sequence


cdef class Held:
    cdef object thing                  # kvit.PagedCache or kvit.Sequence
    cdef object lock                   # of the cache

cdef Held hold(object thing, object lock)

# A new handle, which counts as a reference. `drop` ends with let_go.
cdef void *hand_out(int kind, Held held, Drop drop) except NULL
cdef int32_t let_go(void *state) noexcept

# The object of a handle; it lives on while a call has it, whoever destroys the handle. Raises where there is none.
cdef Held find(const void *handle, int kind)

# Those of so many sequences. Raises ArgumentError too.
cdef list find_all(kvit_sequence *const *sequences, int64_t count)
