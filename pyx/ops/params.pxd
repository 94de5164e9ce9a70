# The launch structs of abi/params.h, as Cython sees them.
from libc.stdint cimport int16_t, int32_t, int64_t, uint32_t, uint8_t, uint64_t


cdef extern from "abi/params.h":
    ctypedef struct KvitPool:
        void *base
        int64_t page_stride
        int64_t token_stride
        int64_t head_stride

    ctypedef struct KvitCache:
        KvitPool[4] pool
        int32_t num_pages
        int32_t page_size
        int32_t num_kv_heads
        int16_t k_dim
        int16_t v_dim
        int32_t k_hadamard
        int32_t v_hadamard
        const void *const *blocks

    ctypedef struct KvitPageTable:
        const int32_t *pages
        const int32_t *indptr
        const int32_t *lengths
        int64_t row_stride
        int32_t num_sequences
        int32_t max_pages

    ctypedef struct KvitRows:
        void *base
        int64_t token_stride
        int64_t head_stride

    ctypedef struct KvitLse:
        float *base
        int64_t token_stride
        int64_t head_stride

    enum:
        KVIT_FAULT_NONE
        KVIT_FAULT_PAGE
        KVIT_FAULT_LENGTH
        KVIT_FAULT_INDPTR
        KVIT_FAULT_BLOCK

    ctypedef struct KvitFault:
        int32_t kind
        int32_t sequence
        int32_t slot
        int32_t value

    ctypedef struct KvitTokens:
        const int32_t *indptr
        int32_t each
        int32_t total

    ctypedef struct KvitDivisor:
        uint32_t magic
        int32_t shift

    ctypedef struct KvitTensorMap:
        unsigned char[128] bytes

    ctypedef struct KvitGeneral:
        const int32_t *spans
        const uint64_t *trees
        const float *sinks
        const float *alibi
        const float *temperature
        int32_t window_left
        int32_t window_right
        int32_t chunk
        KvitDivisor by_chunk
        int32_t tree_words
        int32_t positions
        float cap_log2
        float cap_rate

    ctypedef struct KvitDecodeParams:
        KvitCache cache
        KvitPageTable table
        KvitTokens tokens
        KvitRows q
        KvitRows out
        KvitLse lse
        KvitFault *fault
        void *workspace
        float scale
        int32_t num_query_heads
        int32_t causal
        int32_t box_tokens
        KvitDivisor page_size
        KvitDivisor group
        int32_t split_tiles
        int32_t reads_ahead
        int32_t partitions
        int32_t[11] reserved
        KvitTensorMap k_map
        KvitTensorMap v_map
        KvitGeneral general

    ctypedef struct KvitTransferParams:
        KvitCache cache
        KvitPageTable table
        KvitTokens tokens
        KvitRows k
        KvitRows v
        KvitFault *fault
        const float *smoothing

    ctypedef struct KvitRope:
        const uint64_t *steps
        const int32_t *positions
        float attention_factor
        int32_t rotary_dim
        int32_t is_interleaved
        int32_t reserved

    ctypedef struct KvitAppendExtras:
        const void *k_norm
        const void *q_norm
        float norm_epsilon
        float norm_offset
        const uint8_t *axes
        int32_t axis_stride

    ctypedef struct KvitAppendParams:
        KvitTransferParams transfer
        KvitRows q
        KvitRows q_out
        const void *k_bias
        const void *v_bias
        const void *q_bias
        const int32_t *prefix_lengths
        KvitRope rope
        int32_t num_query_heads
        int32_t passes
        KvitAppendExtras extras

    ctypedef struct KvitShiftParams:
        KvitCache cache
        KvitPageTable table
        KvitPageTable source
        const int32_t *by
        const int32_t *first
        int32_t by_each
        int32_t first_each
        KvitRope rope
        KvitFault *fault
        const float *smoothing
        int32_t parts
        int32_t is_in_place

    ctypedef struct KvitSelectParams:
        KvitPageTable table
        KvitTokens tokens
        const int32_t *indices
        int32_t *pages
        int32_t *lengths
        KvitFault *fault
        int32_t num_pages
        int32_t page_size
        int32_t entry_tokens
        int32_t pages_per_entry
        int32_t entries
        int32_t choosers
        int32_t page_step
        int32_t part_step
        int32_t head_step
        int32_t is_causal

    enum:
        KVIT_MERGE_PARTS

    ctypedef struct KvitMergeParams:
        KvitRows[16] places
        KvitLse[16] lses
        KvitRows out
        KvitLse lse
        int64_t part_stride
        int64_t lse_part_stride
        int32_t num_parts
        int32_t is_stacked
        int32_t num_tokens
        int32_t num_heads
        int32_t head_dim
        int32_t reserved

    ctypedef struct KvitChunks:
        int64_t bytes
        int64_t stride

    ctypedef struct KvitCopyPagesParams:
        KvitCache cache
        const int32_t *source
        const int32_t *target
        const int32_t *chains
        int64_t[4] row_bytes
        KvitFault *fault
        int32_t count
        int32_t num_chains

    ctypedef struct KvitRelayoutParams:
        KvitCache source
        KvitCache target
        KvitChunks[4] source_chunks
        KvitChunks[4] target_chunks
        int64_t[4] row_bytes
        const int32_t *source_pages
        const int32_t *target_pages
        KvitFault *fault
        int32_t count

    ctypedef struct KvitRequantiseParams:
        KvitCache source
        KvitCache target
        const int32_t *source_pages
        const int32_t *target_pages
        KvitFault *fault
        int32_t count
        int32_t side
        int32_t parts
        int32_t in_order


cdef extern from "abi/divisor.h" nogil:
    # Of a divisor >= 1.
    KvitDivisor divisor_of "KvitDivisorOf"(int32_t divisor)
