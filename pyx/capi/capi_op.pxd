# Operations of the C API: made once with the GIL, called without it.
from libc.stdint cimport int32_t, int64_t

from kvit._native.capi_tensor cimport Place
from kvit._native.host cimport KvitSpan
from kvit._native.ops cimport KvitDecodeParams, KvitFault
from kvit._native.row_ops cimport WarpShares
from kvit._native.tensor_map cimport Boxes
from kvit.capi cimport kvit_fault, kvit_op, kvit_op_info, kvit_op_options, kvit_stream

# What a kvit_op stands for.
cdef struct OpState:
    int32_t kind                       # enum kvit_op_kind
    int32_t dtype                      # of queries and outputs, or of the rows
    int32_t cache_dtype                # of queries, as the view says
    int32_t k_dtype
    int32_t v_dtype
    int32_t query_heads                # 0 but for attention
    int32_t kv_heads
    int32_t head_dim
    Place place
    int64_t workspace_bytes
    WarpShares shares                  # append, gather
    unsigned int grid                  # attention
    Boxes boxes                        # attention: of its tensor copies, if it copies so
    KvitDecodeParams constants         # attention: what does not change from call to call
    KvitFault *fault
    KvitSpan[2] spans                  # memory of its own: partials, fault
    int num_spans
    void *kernel                       # Kernel, a counted reference, as the next two are
    void *graph                        # KernelGraph that launches it; None: it is launched itself
    void *operation                    # kvit.Attention, kvit.Append or kvit.Gather

# The functions of kvit_api.
cdef int32_t op_create(const kvit_op_options *options, kvit_op **op) noexcept nogil
cdef int32_t op_query(kvit_op *op, kvit_op_info *info) noexcept nogil
cdef int32_t op_explain(kvit_op *op, char *text, size_t capacity, size_t *length) noexcept nogil
cdef int32_t op_check(kvit_op *op, kvit_stream stream, kvit_fault *fault) noexcept nogil
cdef int32_t op_destroy(kvit_op *op) noexcept nogil
