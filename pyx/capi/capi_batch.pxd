# Batches of a cache that owns its memory, for C: functions of kvit_api. All take the GIL, and then the cache's lock.
from libc.stdint cimport int32_t, int64_t

from kvit.capi cimport (
    kvit_attention_options, kvit_batch, kvit_batch_info, kvit_batch_options, kvit_cache, kvit_sequence, kvit_step,
    kvit_tensor,
)

cdef int32_t batch_create(kvit_cache *cache, kvit_sequence *const *sequences, int64_t count,
                          const kvit_batch_options *options, kvit_batch **batch) noexcept nogil
cdef int32_t batch_query(kvit_batch *batch, kvit_batch_info *info) noexcept nogil
cdef int32_t batch_use(kvit_batch *batch, kvit_sequence *const *sequences, int64_t count) noexcept nogil
cdef int32_t batch_step(kvit_batch *batch, const int64_t *new_tokens, kvit_step **step) noexcept nogil
cdef int32_t batch_attention(kvit_batch *batch, int32_t layer, const kvit_tensor *q, const kvit_tensor *out,
                             const kvit_tensor *lse, const int64_t *new_tokens,
                             const kvit_attention_options *options) noexcept nogil
cdef int32_t batch_destroy(kvit_batch *batch) noexcept nogil
