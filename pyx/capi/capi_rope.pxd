# How keys and queries turn with their positions, for C: kvit.Rope behind a handle.
from libc.stdint cimport int32_t

from kvit.capi cimport kvit_rope, kvit_rope_options

# The functions of kvit_api.
cdef int32_t rope_create(const kvit_rope_options *options, kvit_rope **rope) noexcept nogil
cdef int32_t rope_destroy(kvit_rope *rope) noexcept nogil

# The kvit.Rope of a handle; None for NULL. Raises where there is none.
cdef object to_rope(kvit_rope *rope)
