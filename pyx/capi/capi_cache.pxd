# The cache that owns its memory, for C: kvit.PagedCache behind a handle.
from libc.stdint cimport int32_t, int64_t

from kvit.capi cimport (
    kvit_cache, kvit_cache_info, kvit_cache_options, kvit_fault, kvit_sequence, kvit_stream, kvit_tensor, kvit_view,
)

# The functions of kvit_api. All take the GIL, and then the cache's lock.
cdef int32_t cache_create(const kvit_cache_options *options, kvit_cache **cache) noexcept nogil
cdef int32_t cache_query(kvit_cache *cache, kvit_cache_info *info) noexcept nogil
cdef int32_t cache_destroy(kvit_cache *cache) noexcept nogil
cdef int32_t cache_append(kvit_cache *cache, kvit_sequence *const *sequences, int64_t count, const kvit_tensor *k,
                          const kvit_tensor *v, const int64_t *new_tokens, kvit_stream stream) noexcept nogil
cdef int32_t cache_append_rotated(kvit_cache *cache, kvit_sequence *const *sequences, int64_t count,
                                  const kvit_tensor *k, const kvit_tensor *v, const kvit_tensor *q,
                                  const kvit_tensor *q_out, const int64_t *new_tokens,
                                  kvit_stream stream) noexcept nogil
cdef int32_t cache_attention(kvit_cache *cache, kvit_sequence *const *sequences, int64_t count, const kvit_tensor *q,
                             const kvit_tensor *out, const kvit_tensor *lse, const int64_t *new_tokens, float scale,
                             int32_t mask, kvit_stream stream) noexcept nogil
cdef int32_t cache_check(kvit_cache *cache, kvit_stream stream, kvit_fault *fault) noexcept nogil
cdef int32_t cache_gather(kvit_cache *cache, kvit_sequence *const *sequences, int64_t count, const kvit_tensor *k,
                          const kvit_tensor *v, kvit_stream stream) noexcept nogil
cdef int32_t cache_gather_layout(kvit_cache *cache, kvit_sequence *const *sequences, int64_t count,
                                 const kvit_tensor *k, const kvit_tensor *v, int32_t layout,
                                 kvit_stream stream) noexcept nogil
cdef int32_t cache_view(kvit_cache *cache, kvit_view **view) noexcept nogil
