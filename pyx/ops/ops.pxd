# Packs the launch structs of abi/params.h and launches: the last step from tensors to a kernel.
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from kvit._native.buffer cimport Buffer
from kvit._native.context cimport Device
from kvit._native.kernel_graph cimport KernelGraph
from kvit._native.launcher cimport Spans
from kvit._native.module cimport Kernel
from kvit._native.stream cimport Stream
from kvit._native.tensor cimport Tensor
from kvit._native.tensor_map cimport Boxes, TensorMaps


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
        int32_t head_dim
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

    ctypedef struct KvitDecodeParams:
        KvitCache cache
        KvitPageTable table
        KvitTokens tokens
        KvitRows q
        KvitRows out
        KvitLse lse
        KvitFault *fault
        float *partials
        float scale
        int32_t num_query_heads
        int32_t causal
        int32_t box_tokens
        KvitDivisor page_size
        KvitDivisor group
        int32_t split_tiles
        int32_t reads_ahead
        int32_t strands
        int32_t[11] reserved
        KvitTensorMap k_map
        KvitTensorMap v_map

    ctypedef struct KvitTransferParams:
        KvitCache cache
        KvitPageTable table
        KvitTokens tokens
        KvitRows k
        KvitRows v
        KvitFault *fault

    ctypedef struct KvitRope:
        const uint64_t *steps
        const int32_t *positions
        float attention_factor
        int32_t rotary_dim
        int32_t is_interleaved
        int32_t reserved

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

    ctypedef struct KvitMergeParams:
        KvitRows a
        KvitRows b
        KvitRows out
        KvitLse lse_a
        KvitLse lse_b
        KvitLse lse
        int32_t num_tokens
        int32_t num_heads
        int32_t head_dim
        int32_t reserved

cdef extern from "abi/divisor.h" nogil:
    # Of a divisor >= 1.
    KvitDivisor divisor_of "KvitDivisorOf"(int32_t divisor)


# K and V of a cache, packed once.
cdef class PackedCache:
    cdef KvitCache value
    cdef TensorMaps maps               # made when a kernel first asks for them
    cdef int code
    cdef readonly Tensor k
    cdef readonly Tensor v
    cdef readonly Tensor k_params
    cdef readonly Tensor v_params
    cdef readonly Tensor blocks
    cdef readonly tuple memory

    # Makes the maps of boxes of at most `tokens`, for kernels on `home`.
    cdef int make_maps(self, Boxes boxes, Device home) except -1


# A page table, packed once.
cdef class PackedTable:
    cdef KvitPageTable value
    cdef readonly Tensor pages
    cdef readonly Tensor indptr
    cdef readonly Tensor lengths


# What kvit.CacheView, kvit.PageTable and the record of faults derive from: a call finds these without a look-up.
cdef class HoldsCache:
    cdef public PackedCache _packed


cdef class HoldsTable:
    cdef public PackedTable _packed


cdef class HoldsFaults:
    cdef public Buffer buffer          # int32 [4], a KvitFault
    cdef public Stream last_queue      # of the last call whose kernel may have written it


# Everything of an attention call that does not change from call to call.
cdef class AttentionLaunch:
    cdef KvitDecodeParams params
    cdef readonly Kernel kernel
    cdef KernelGraph graph             # that launches it; None: it is launched itself
    cdef readonly Tensor partials
    cdef readonly Tensor fault
    cdef unsigned int grid
    cdef Boxes boxes                   # of its tensor copies, if it copies so

    # Launches. q, out [tokens, query_heads, head_dim]; lse float32 [tokens, query_heads] or None; all checked before.
    cdef int run(self, PackedCache cache, PackedTable table, Tensor q, Tensor out, Tensor lse, Tensor token_indptr,
                 int tokens_each, Stream queue) except -1


# Lets the launch touch a tensor, or all of a cache, once its producer is done. None is skipped; a GPU needs no spans.
cdef int use(Spans *spans, Stream stream, Tensor tensor, bint is_writable) except -1
cdef int use_any_time(Spans *spans, Stream stream, Tensor tensor, bint is_writable) except -1
cdef int use_cache(Spans *spans, Stream stream, PackedCache cache, bint is_writable) except -1

# What launches have in common. Memory of a tensor, NULL for None.
cdef const void *address_of(Tensor tensor) noexcept
cdef void set_rows(KvitRows *rows, Tensor tensor) noexcept
cdef void set_tokens(KvitTokens *tokens, Tensor indptr, int each, int64_t total) noexcept
cdef int use_table(Spans *spans, Stream stream, PackedTable table) except -1
