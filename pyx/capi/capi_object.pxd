# Objects of Python behind handles: caches that own their memory, and what belongs to them; ropes.
from libc.stdint cimport int32_t, int64_t

from kvit._native.capi_handle cimport Drop
from kvit.capi cimport kvit_sequence


# Makes whole calls follow one another, which the GIL alone does not.
cdef class CacheLock:
    cdef void *lock
    cdef int32_t num_forks             # when it was made: what a thread of the parent has no child can give up

    # Waits, without the GIL, until nobody else has it. Raises MemoryError.
    cdef int acquire(self) except -1
    cdef void release(self) noexcept


cdef class ObjectRef:
    cdef object value                  # a cache, or a sequence, step or batch of one; a swapped sequence, a rope
    cdef CacheLock lock                # of the cache, if it is of one

cdef ObjectRef hold(object value, CacheLock lock)

# A new handle, which counts as a reference. `drop` ends with decref.
cdef void *hand_out(int kind, ObjectRef ref, Drop drop) except NULL
cdef int32_t decref(void *state) noexcept

# The object of a handle; it lives on while a call has it, whoever destroys the handle. Raises where there is none.
cdef ObjectRef find(const void *handle, int kind)

# Those of so many sequences. Raises ArgumentError too.
cdef list find_all(kvit_sequence *const *sequences, int64_t count)
