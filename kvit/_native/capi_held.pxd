# Objects of Python behind handles: the caches that own their memory, and their sequences.
from libc.stdint cimport int32_t, int64_t

from kvit.capi cimport kvit_fault, kvit_sequence


cdef class Held:
    cdef object thing                  # kvit.PagedCache or kvit.Sequence
    cdef object lock                   # of the cache

cdef Held hold(object thing, object lock)

# A new handle, which counts as a reference.
cdef void *hand_out(int kind, Held held) except NULL

# The object of a handle; it lives on while a call has it, whoever destroys the handle. Raises where there is none.
cdef Held find(const void *handle, int kind)

# Those of so many sequences. Raises ArgumentError too.
cdef list find_all(kvit_sequence *const *sequences, int64_t count)

# The status of an exception, whose words the thread keeps.
cdef int32_t refuse(object error, kvit_fault *fault=*) noexcept
