# What kvit.h speaks of, for Cython: kvit.capi has all of it too.
from libc.stdint cimport int32_t, int64_t, uint32_t


cdef extern from "kvit.h" nogil:
    enum:
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
        KVIT_ERROR_STEP

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
        KVIT_OP_COPY_PAGES
        KVIT_OP_CONVERT_PAGES

    enum:
        KVIT_STORAGE_LAYERS
        KVIT_STORAGE_PAGES

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
    ctypedef struct kvit_step:
        pass
    ctypedef struct kvit_batch:
        pass
    ctypedef struct kvit_swapped:
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
        int32_t v_dim

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
        kvit_view *target

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
        int32_t v_dim

    ctypedef struct kvit_layer_spec:
        uint32_t size
        int32_t count
        int32_t kv_heads
        int32_t head_dim
        int32_t v_dim
        int32_t k_dtype
        int32_t v_dtype
        int32_t shares_kv
        int32_t is_unturned
        int32_t window_left
        int32_t window_right
        kvit_rope *rope
        const kvit_tensor *k_scale
        const kvit_tensor *v_scale

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
        const kvit_layer_spec *specs
        int32_t num_specs
        int32_t num_layers
        int32_t v_dim
        int32_t shares_kv
        int32_t storage

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
        int32_t num_layers

    ctypedef struct kvit_layer_info:
        uint32_t size
        int32_t dtype
        int32_t k_dtype
        int32_t v_dtype
        int32_t kv_heads
        int32_t head_dim
        int32_t v_dim
        int32_t shares_kv
        int32_t has_rope
        int32_t window_left
        int32_t window_right

    ctypedef struct kvit_attention_options:
        uint32_t size
        int32_t mask
        float scale
        int32_t window_left
        int32_t window_right
        int32_t chunk
        float softcap
        const kvit_tensor *sinks
        const kvit_tensor *alibi
        const kvit_tensor *temperature
        const kvit_tensor *spans
        const kvit_tensor *tree

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

    ctypedef struct kvit_batch_options:
        uint32_t size
        int64_t max_tokens
        kvit_stream stream

    ctypedef struct kvit_batch_info:
        uint32_t size
        int32_t has_open_step
        int64_t num_sequences
        int64_t max_pages

    ctypedef struct kvit_swapped_info:
        uint32_t size
        int64_t length
        int64_t num_pages
        int64_t bytes
