# Layers of a cache that owns its memory, for C: functions of kvit_api. All take the GIL, and then the cache's lock.
from libc.stdint cimport int32_t, int64_t

from kvit.capi cimport (
    kvit_attention_options, kvit_cache, kvit_layer_info, kvit_sequence, kvit_stream, kvit_tensor, kvit_view,
)

cdef int32_t layer_query(kvit_cache *cache, int32_t layer, kvit_layer_info *info) noexcept nogil
cdef int32_t layer_view(kvit_cache *cache, int32_t layer, kvit_view **view) noexcept nogil
cdef int32_t layer_attention(kvit_cache *cache, int32_t layer, kvit_sequence *const *sequences, int64_t count,
                             const kvit_tensor *q, const kvit_tensor *out, const kvit_tensor *lse,
                             const int64_t *new_tokens, const kvit_attention_options *options,
                             kvit_stream stream) noexcept nogil
cdef int32_t layer_gather(kvit_cache *cache, int32_t layer, kvit_sequence *const *sequences, int64_t count,
                          const kvit_tensor *k, const kvit_tensor *v, int32_t layout,
                          kvit_stream stream) noexcept nogil
cdef int32_t cache_append_layers(kvit_cache *cache, kvit_sequence *const *sequences, int64_t count,
                                 const kvit_tensor *const *k, const kvit_tensor *const *v, int32_t num_layers,
                                 const int64_t *new_tokens, kvit_stream stream) noexcept nogil
cdef int32_t cache_pages_needed(kvit_cache *cache, kvit_sequence *const *sequences, int64_t count,
                                const int64_t *new_tokens, int64_t *pages) noexcept nogil
cdef int32_t cache_shift(kvit_cache *cache, kvit_sequence *const *sequences, int64_t count, const int64_t *drop,
                         const int64_t *keep, int32_t rotate, kvit_stream stream) noexcept nogil
