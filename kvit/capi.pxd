# kvit.h for Cython: `from kvit.capi cimport kvit_api, kvit_import`, compiled with include_dirs=[kvit.get_include()].
from libc.stdint cimport int32_t, int64_t, uint32_t

from kvit.capi_types cimport *


cdef extern from "kvit.h" nogil:
    enum:
        KVIT_API_VERSION

    ctypedef struct kvit_api:
        uint32_t size
        uint32_t version

        const char *(*last_error)() noexcept nogil

        int32_t (*view_create)(const kvit_view_options *options, kvit_view **view) noexcept nogil
        int32_t (*view_query)(kvit_view *view, kvit_view_info *info) noexcept nogil
        int32_t (*view_destroy)(kvit_view *view) noexcept nogil

        int32_t (*op_create)(const kvit_op_options *options, kvit_op **op) noexcept nogil
        int32_t (*op_query)(kvit_op *op, kvit_op_info *info) noexcept nogil
        int32_t (*op_explain)(kvit_op *op, char *text, size_t capacity, size_t *length) noexcept nogil
        int32_t (*op_check)(kvit_op *op, kvit_stream stream, kvit_fault *fault) noexcept nogil
        int32_t (*op_destroy)(kvit_op *op) noexcept nogil

        int32_t (*attention)(kvit_op *op, kvit_view *view, const kvit_page_table *table, const kvit_tensor *q,
                             const kvit_tensor *out, const kvit_tensor *lse, const kvit_tensor *query_indptr,
                             kvit_stream stream) noexcept nogil
        int32_t (*append)(kvit_op *op, kvit_view *view, const kvit_page_table *table, const kvit_tensor *k,
                          const kvit_tensor *v, const kvit_tensor *query_indptr, kvit_stream stream) noexcept nogil
        int32_t (*gather)(kvit_op *op, kvit_view *view, const kvit_page_table *table, const kvit_tensor *k,
                          const kvit_tensor *v, const kvit_tensor *query_indptr, kvit_stream stream) noexcept nogil
        int32_t (*merge_states)(const kvit_tensor *out_a, const kvit_tensor *lse_a, const kvit_tensor *out_b,
                                const kvit_tensor *lse_b, const kvit_tensor *out, const kvit_tensor *lse,
                                kvit_stream stream) noexcept nogil

        int32_t (*cache_create)(const kvit_cache_options *options, kvit_cache **cache) noexcept nogil
        int32_t (*cache_query)(kvit_cache *cache, kvit_cache_info *info) noexcept nogil
        int32_t (*cache_destroy)(kvit_cache *cache) noexcept nogil
        int32_t (*cache_append)(kvit_cache *cache, kvit_sequence *const *sequences, int64_t count, const kvit_tensor *k,
                                const kvit_tensor *v, const int64_t *new_tokens, kvit_stream stream) noexcept nogil
        int32_t (*cache_attention)(kvit_cache *cache, kvit_sequence *const *sequences, int64_t count,
                                   const kvit_tensor *q, const kvit_tensor *out, const kvit_tensor *lse,
                                   const int64_t *new_tokens, float scale, int32_t mask,
                                   kvit_stream stream) noexcept nogil
        int32_t (*cache_check)(kvit_cache *cache, kvit_stream stream, kvit_fault *fault) noexcept nogil

        int32_t (*sequence_create)(kvit_cache *cache, kvit_sequence **sequence) noexcept nogil
        int32_t (*sequence_query)(kvit_sequence *sequence, kvit_sequence_info *info) noexcept nogil
        int32_t (*sequence_fork)(kvit_sequence *sequence, kvit_sequence **fork) noexcept nogil
        int32_t (*sequence_truncate)(kvit_sequence *sequence, int64_t length) noexcept nogil
        int32_t (*sequence_destroy)(kvit_sequence *sequence) noexcept nogil

        int32_t (*cache_gather)(kvit_cache *cache, kvit_sequence *const *sequences, int64_t count, const kvit_tensor *k,
                                const kvit_tensor *v, kvit_stream stream) noexcept nogil
        int32_t (*cache_view)(kvit_cache *cache, kvit_view **view) noexcept nogil
        int32_t (*sequence_pages)(kvit_sequence *sequence, int32_t *pages, int64_t capacity,
                                  int64_t *count) noexcept nogil
        int32_t (*attention_masked)(kvit_op *op, kvit_view *view, const kvit_page_table *table, const kvit_tensor *q,
                                    const kvit_tensor *out, const kvit_tensor *lse, const kvit_tensor *query_indptr,
                                    const kvit_tensor *spans, const kvit_tensor *tree,
                                    kvit_stream stream) noexcept nogil

        int32_t (*rope_create)(const kvit_rope_options *options, kvit_rope **rope) noexcept nogil
        int32_t (*rope_destroy)(kvit_rope *rope) noexcept nogil
        int32_t (*append_rotated)(kvit_op *op, kvit_view *view, const kvit_page_table *table, const kvit_tensor *k,
                                  const kvit_tensor *v, const kvit_tensor *query_indptr,
                                  const kvit_append_extras *extras, kvit_stream stream) noexcept nogil
        int32_t (*copy_pages)(kvit_view *view, const kvit_tensor *source, const kvit_tensor *target,
                              kvit_stream stream) noexcept nogil
        int32_t (*convert_pages)(kvit_view *source, kvit_view *target, const kvit_tensor *source_pages,
                                 const kvit_tensor *target_pages, kvit_stream stream) noexcept nogil
        int32_t (*cache_append_rotated)(kvit_cache *cache, kvit_sequence *const *sequences, int64_t count,
                                        const kvit_tensor *k, const kvit_tensor *v, const kvit_tensor *q,
                                        const kvit_tensor *q_out, const int64_t *new_tokens,
                                        kvit_stream stream) noexcept nogil
        int32_t (*cache_gather_layout)(kvit_cache *cache, kvit_sequence *const *sequences, int64_t count,
                                       const kvit_tensor *k, const kvit_tensor *v, int32_t layout,
                                       kvit_stream stream) noexcept nogil
        int32_t (*cache_defragment)(kvit_cache *cache, int64_t *moved, kvit_stream stream) noexcept nogil
        int32_t (*cache_requantise)(kvit_cache *cache, int32_t k_dtype, int32_t v_dtype, const kvit_tensor *k_scale,
                                    const kvit_tensor *v_scale, kvit_stream stream) noexcept nogil

        int32_t (*layer_query)(kvit_cache *cache, int32_t layer, kvit_layer_info *info) noexcept nogil
        int32_t (*layer_view)(kvit_cache *cache, int32_t layer, kvit_view **view) noexcept nogil
        int32_t (*layer_attention)(kvit_cache *cache, int32_t layer, kvit_sequence *const *sequences, int64_t count,
                                   const kvit_tensor *q, const kvit_tensor *out, const kvit_tensor *lse,
                                   const int64_t *new_tokens, const kvit_attention_options *options,
                                   kvit_stream stream) noexcept nogil
        int32_t (*layer_gather)(kvit_cache *cache, int32_t layer, kvit_sequence *const *sequences, int64_t count,
                                const kvit_tensor *k, const kvit_tensor *v, int32_t layout,
                                kvit_stream stream) noexcept nogil
        int32_t (*cache_append_layers)(kvit_cache *cache, kvit_sequence *const *sequences, int64_t count,
                                       const kvit_tensor *const *k, const kvit_tensor *const *v, int32_t num_layers,
                                       const int64_t *new_tokens, kvit_stream stream) noexcept nogil
        int32_t (*cache_pages_needed)(kvit_cache *cache, kvit_sequence *const *sequences, int64_t count,
                                      const int64_t *new_tokens, int64_t *pages) noexcept nogil
        int32_t (*cache_shift)(kvit_cache *cache, kvit_sequence *const *sequences, int64_t count, const int64_t *drop,
                               const int64_t *keep, int32_t rotate, kvit_stream stream) noexcept nogil

        int32_t (*step_create)(kvit_cache *cache, kvit_sequence *const *sequences, int64_t count,
                               const int64_t *new_tokens, kvit_stream stream, kvit_step **step) noexcept nogil
        int32_t (*step_append)(kvit_step *step, int32_t layer, const kvit_tensor *k, const kvit_tensor *v,
                               const kvit_tensor *q, const kvit_tensor *q_out) noexcept nogil
        int32_t (*step_attention)(kvit_step *step, int32_t layer, const kvit_tensor *q, const kvit_tensor *out,
                                  const kvit_tensor *lse, const int64_t *new_tokens,
                                  const kvit_attention_options *options) noexcept nogil
        int32_t (*step_commit)(kvit_step *step) noexcept nogil
        int32_t (*step_destroy)(kvit_step *step) noexcept nogil

        int32_t (*op_copy_pages)(kvit_op *op, kvit_view *view, const kvit_tensor *source, const kvit_tensor *target,
                                 const kvit_tensor *chains, kvit_stream stream) noexcept nogil
        int32_t (*op_convert_pages)(kvit_op *op, kvit_view *source, kvit_view *target, const kvit_tensor *source_pages,
                                    const kvit_tensor *target_pages, kvit_stream stream) noexcept nogil

        int32_t (*batch_create)(kvit_cache *cache, kvit_sequence *const *sequences, int64_t count,
                                const kvit_batch_options *options, kvit_batch **batch) noexcept nogil
        int32_t (*batch_query)(kvit_batch *batch, kvit_batch_info *info) noexcept nogil
        int32_t (*batch_use)(kvit_batch *batch, kvit_sequence *const *sequences, int64_t count) noexcept nogil
        int32_t (*batch_step)(kvit_batch *batch, const int64_t *new_tokens, kvit_step **step) noexcept nogil
        int32_t (*batch_attention)(kvit_batch *batch, int32_t layer, const kvit_tensor *q, const kvit_tensor *out,
                                   const kvit_tensor *lse, const int64_t *new_tokens,
                                   const kvit_attention_options *options) noexcept nogil
        int32_t (*batch_destroy)(kvit_batch *batch) noexcept nogil

        int32_t (*cache_swap_out)(kvit_cache *cache, kvit_sequence *sequence, kvit_stream stream,
                                  kvit_swapped **swapped) noexcept nogil
        int32_t (*cache_swap_in)(kvit_cache *cache, kvit_swapped *swapped, kvit_stream stream,
                                 kvit_sequence **sequence) noexcept nogil
        int32_t (*swapped_query)(kvit_swapped *swapped, kvit_swapped_info *info) noexcept nogil
        int32_t (*swapped_destroy)(kvit_swapped *swapped) noexcept nogil

    kvit_tensor kvit_dense(void *data, int32_t dtype, int32_t device_type, int32_t device_id, int32_t ndim,
                           const int64_t *shape)


cdef extern from "kvit.h":
    # These two take the GIL's holder: they raise ImportError.
    int kvit_check_api(const kvit_api *api) except -1
    const kvit_api *kvit_import() except NULL
