# Packs the launch structs of abi/params.h and launches: the last step from tensors to a kernel.
from libc.stdint cimport int32_t, int64_t, uint32_t

from kvit._native.buffer cimport Buffer
from kvit._native.context cimport Device
from kvit._native.launcher cimport Spans
from kvit._native.module cimport Kernel
from kvit._native.stream cimport Stream
from kvit._native.tensor cimport Tensor


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

    ctypedef struct KvitDecodeParams:
        KvitCache cache
        KvitPageTable table
        KvitTokens tokens
        KvitRows q
        KvitRows out
        KvitLse lse
        KvitFault *fault
        float *partials
        uint32_t *counters
        float scale
        int32_t num_query_heads
        int32_t causal
        int32_t reserved

    ctypedef struct KvitTransferParams:
        KvitCache cache
        KvitPageTable table
        KvitTokens tokens
        KvitRows k
        KvitRows v
        KvitFault *fault

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


# K and V of a cache, packed once.
cdef class PackedCache:
    cdef KvitCache value
    cdef int code
    cdef readonly Tensor k
    cdef readonly Tensor v
    cdef readonly Tensor k_params
    cdef readonly Tensor v_params
    cdef readonly Tensor blocks
    cdef readonly tuple memory


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
    cdef readonly Tensor counters
    cdef readonly Tensor partials
    cdef readonly Tensor fault
    cdef unsigned int grid

    # Launches. q, out [tokens, query_heads, head_dim]; lse float32 [tokens, query_heads] or None; all checked before.
    cdef int run(self, PackedCache cache, PackedTable table, Tensor q, Tensor out, Tensor lse, Tensor token_indptr,
                 int tokens_each, Stream queue) except -1


# Lets the launch touch a tensor, or all of a cache, once its producer is done. None is skipped; a GPU needs no spans.
cdef int use(Spans *spans, Stream stream, Tensor tensor, bint is_writable) except -1
cdef int use_cache(Spans *spans, Stream stream, PackedCache cache, bint is_writable) except -1
