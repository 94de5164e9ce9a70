# Sequences of a cache that owns its memory, for C: functions of kvit_api.
from libc.stdint cimport int32_t, int64_t

from kvit._native.capi_object cimport CacheLock
from kvit.capi cimport kvit_cache, kvit_sequence, kvit_sequence_info

cdef int32_t sequence_create(kvit_cache *cache, kvit_sequence **sequence) noexcept nogil
cdef int32_t sequence_query(kvit_sequence *sequence, kvit_sequence_info *info) noexcept nogil
cdef int32_t sequence_pages(kvit_sequence *sequence, int32_t *pages, int64_t capacity, int64_t *count) noexcept nogil
cdef int32_t sequence_fork(kvit_sequence *sequence, kvit_sequence **fork) noexcept nogil
cdef int32_t sequence_truncate(kvit_sequence *sequence, int64_t length) noexcept nogil
cdef int32_t sequence_destroy(kvit_sequence *sequence) noexcept nogil

# A handle of a sequence, which is freed when that is destroyed, or where it raises MemoryError.
cdef kvit_sequence *publish_sequence(object sequence, CacheLock lock) except NULL
