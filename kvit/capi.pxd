# kvit.h for Cython: `from kvit.capi cimport kvit_api, kvit_import`, compiled with include_dirs=[kvit.get_include()].
from libc.stdint cimport int32_t, int64_t, uint32_t


cdef extern from "kvit.h" nogil:
    enum:
        KVIT_API_VERSION
        KVIT_MAX_NDIM

    enum:
        KVIT_OK
        KVIT_ERROR_SHAPE
        KVIT_ERROR_DTYPE
        KVIT_ERROR_DEVICE
        KVIT_ERROR_LAYOUT
        KVIT_ERROR_CACHE_FULL
        KVIT_ERROR_SEQUENCE_FREED
        KVIT_ERROR_PAGE_TABLE
        KVIT_ERROR_KERNEL_MISSING
        KVIT_ERROR_DRIVER
        KVIT_ERROR_NO_GPU
        KVIT_ERROR_HOST_BACKEND
        KVIT_ERROR_ARGUMENT
        KVIT_ERROR_HANDLE
        KVIT_ERROR_BUSY
        KVIT_ERROR_OUT_OF_MEMORY
        KVIT_ERROR_NO_INTERPRETER
        KVIT_ERROR_INTERNAL
        KVIT_ERROR_INTERRUPTED

    enum:
        KVIT_DTYPE_F32
        KVIT_DTYPE_F16
        KVIT_DTYPE_BF16
        KVIT_DTYPE_U8
        KVIT_DTYPE_U4
        KVIT_DTYPE_F8E4M3
        KVIT_DTYPE_F8E5M2
        KVIT_DTYPE_I32
        KVIT_DTYPE_I64
        KVIT_DTYPE_U16
        KVIT_DTYPE_U32
        KVIT_DTYPE_F64
        KVIT_DTYPE_I8
        KVIT_HADAMARD

    enum:
        KVIT_DEVICE_HOST
        KVIT_DEVICE_CUDA

    enum:
        KVIT_LAYOUT_DEFAULT
        KVIT_LAYOUT_NHD
        KVIT_LAYOUT_HND

    enum:
        KVIT_OP_ATTENTION
        KVIT_OP_APPEND
        KVIT_OP_GATHER

    enum:
        KVIT_MASK_CAUSAL
        KVIT_MASK_NONE

    enum:
        KVIT_LAUNCH_DIRECT
        KVIT_LAUNCH_GRAPH

    ctypedef struct kvit_tensor:
        void *data
        int64_t[8] shape
        int64_t[8] strides
        int32_t ndim
        int32_t dtype
        int32_t device_type
        int32_t device_id
        int32_t readonly

    ctypedef struct kvit_page_table:
        const kvit_tensor *pages
        const kvit_tensor *indptr
        const kvit_tensor *lengths

    ctypedef struct kvit_fault:
        int32_t sequence
        int32_t slot
        int32_t value

    # Incomplete in C: only pointers to them exist.
    struct CUstream_st:
        pass
    ctypedef CUstream_st *kvit_stream
    ctypedef struct kvit_view:
        pass
    ctypedef struct kvit_op:
        pass
    ctypedef struct kvit_cache:
        pass
    ctypedef struct kvit_sequence:
        pass
    ctypedef struct kvit_rope:
        pass

    ctypedef struct kvit_view_options:
        uint32_t size
        int32_t layout
        const kvit_tensor *k
        const kvit_tensor *v
        int64_t page_size
        const kvit_tensor *k_params
        const kvit_tensor *v_params
        const kvit_tensor *k_scale
        const kvit_tensor *v_scale
        int32_t k_dtype
        int32_t v_dtype
        int32_t dtype

    ctypedef struct kvit_view_info:
        uint32_t size
        int32_t dtype
        int32_t k_dtype
        int32_t v_dtype
        int64_t num_pages
        int64_t page_size
        int32_t kv_heads
        int32_t head_dim
        int32_t device_type
        int32_t device_id

    ctypedef struct kvit_op_options:
        uint32_t size
        int32_t kind
        kvit_view *view
        int32_t query_heads
        int32_t dtype
        float scale
        int32_t mask
        int32_t tokens_per_sequence
        int32_t split_tokens
        const kvit_tensor *workspace
        int32_t launch
        int32_t reads_ahead
        int32_t window_left
        int32_t window_right
        int32_t chunk
        float softcap
        int32_t takes_spans
        int32_t takes_tree
        const kvit_tensor *sinks
        const kvit_tensor *alibi
        const kvit_tensor *temperature
        kvit_rope *rope
        const kvit_tensor *k_norm
        const kvit_tensor *q_norm
        float norm_eps
        float norm_offset

    ctypedef struct kvit_op_info:
        uint32_t size
        int32_t kind
        int64_t workspace_bytes
        int32_t dtype
        int32_t k_dtype
        int32_t v_dtype
        int32_t query_heads
        int32_t kv_heads
        int32_t head_dim
        int32_t device_type
        int32_t device_id

    ctypedef struct kvit_cache_options:
        uint32_t size
        int32_t layout
        int64_t pages
        int64_t page_size
        int32_t kv_heads
        int32_t head_dim
        int32_t dtype
        int32_t k_dtype
        int32_t v_dtype
        int32_t device_type
        int32_t device_id
        const kvit_tensor *k_scale
        const kvit_tensor *v_scale
        kvit_rope *rope

    ctypedef struct kvit_cache_info:
        uint32_t size
        int32_t dtype
        int32_t k_dtype
        int32_t v_dtype
        int64_t num_pages
        int64_t num_free_pages
        int64_t page_size
        int64_t bytes
        int32_t kv_heads
        int32_t head_dim
        int32_t device_type
        int32_t device_id

    ctypedef struct kvit_rope_options:
        uint32_t size
        int32_t head_dim
        int32_t rotary_dim
        int32_t interleaved
        double base
        const char *scaling

    ctypedef struct kvit_append_extras:
        uint32_t size
        const kvit_tensor *q
        const kvit_tensor *q_out
        const kvit_tensor *positions
        const kvit_tensor *prefix_lengths
        const kvit_tensor *k_bias
        const kvit_tensor *v_bias
        const kvit_tensor *q_bias

    ctypedef struct kvit_sequence_info:
        uint32_t size
        int64_t length
        int64_t num_pages

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

    kvit_tensor kvit_dense(void *data, int32_t dtype, int32_t device_type, int32_t device_id, int32_t ndim,
                           const int64_t *shape)


cdef extern from "kvit.h":
    # These two take the GIL's holder: they raise ImportError.
    int kvit_check_api(const kvit_api *api) except -1
    const kvit_api *kvit_import() except NULL
