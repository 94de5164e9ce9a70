# Steps of a cache that owns its memory, for C: functions of kvit_api. All take the GIL, and then the cache's lock.
from libc.stdint cimport int32_t, int64_t

from kvit._native.capi_object cimport CacheLock
from kvit.capi cimport (
    kvit_attention_options, kvit_cache, kvit_sequence, kvit_step, kvit_stream, kvit_tensor,
)

cdef int32_t step_create(kvit_cache *cache, kvit_sequence *const *sequences, int64_t count, const int64_t *new_tokens,
                         kvit_stream stream, kvit_step **step) noexcept nogil
cdef int32_t step_append(kvit_step *step, int32_t layer, const kvit_tensor *k, const kvit_tensor *v,
                         const kvit_tensor *q, const kvit_tensor *q_out) noexcept nogil
cdef int32_t step_attention(kvit_step *step, int32_t layer, const kvit_tensor *q, const kvit_tensor *out,
                            const kvit_tensor *lse, const int64_t *new_tokens,
                            const kvit_attention_options *options) noexcept nogil
cdef int32_t step_commit(kvit_step *step) noexcept nogil
cdef int32_t step_destroy(kvit_step *step) noexcept nogil

# A handle of a step, whose pages go back when that is destroyed, or where it raises MemoryError.
cdef kvit_step *publish_step(object step, CacheLock lock) except NULL

# Attention to a layer of what a handle of kind HANDLE_STEP or HANDLE_BATCH stands for. Returns a kvit_status.
cdef int32_t attention_of(const void *handle, int kind, int32_t layer, const kvit_tensor *q, const kvit_tensor *out,
                          const kvit_tensor *lse, const int64_t *new_tokens,
                          const kvit_attention_options *options) noexcept nogil
