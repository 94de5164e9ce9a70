# Operations of the C API: made once with the GIL, called without it.
from libc.stdint cimport int32_t, int64_t

from kvit._native.attention_launch cimport AttentionPlan
from kvit._native.host cimport KvitSpan
from kvit._native.packed_cache cimport CacheType
from kvit._native.params cimport KvitFault
from kvit._native.row_ops cimport WarpShares
from kvit.capi cimport kvit_fault, kvit_op, kvit_op_info, kvit_op_options, kvit_stream

# What a kvit_op stands for.
cdef struct OpState:
    int32_t kind                       # enum kvit_op_kind
    int32_t dtype                      # of queries and outputs, or of the rows
    int32_t query_heads                # 0 but for attention
    CacheType type                     # of the caches that it is for
    int64_t workspace_bytes
    WarpShares shares                  # append, gather
    AttentionPlan plan                 # attention
    bint takes_spans                   # of its calls
    bint takes_trees
    bint is_extended                   # append: by Python, since rows pass through a rope or a norm
    KvitFault *fault
    KvitSpan[6] spans                  # memory of its own: workspace, tickets, fault; and arrays that it was made with
    int num_spans
    void *kernel                       # Kernel, a counted reference, as the next two are; None: Python finds it
    void *graph                        # KernelGraph that launches it; None: it is launched itself
    void *operation                    # kvit.Attention, Append, Gather, CopyPages or ConvertPages

# The functions of kvit_api.
cdef int32_t op_create(const kvit_op_options *options, kvit_op **op) noexcept nogil
cdef int32_t op_query(kvit_op *op, kvit_op_info *info) noexcept nogil
cdef int32_t op_explain(kvit_op *op, char *text, size_t capacity, size_t *length) noexcept nogil
cdef int32_t op_check(kvit_op *op, kvit_stream stream, kvit_fault *fault) noexcept nogil
cdef int32_t op_destroy(kvit_op *op) noexcept nogil
