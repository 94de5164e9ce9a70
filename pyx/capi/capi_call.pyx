"""The calls of the C API that launch: packed and launched without the GIL, without allocating.

What fits as it is goes straight to the kernel. All else goes to capi_python, whose checks say what is wrong with it:
the questions of checks are never laxer than they are.
"""
from libc.stdint cimport int32_t, uintptr_t
from libc.string cimport memset

from kvit._native.attention_launch cimport pack_attention
from kvit._native.capi_entry cimport enter_python, leave_python
from kvit._native.capi_error cimport set_last_error
from kvit._native.capi_op cimport OpState
from kvit._native.capi_pinned cimport PinnedArgs, enter, exit
from kvit._native.capi_python cimport append_in_python, attend_in_python, move_in_python
from kvit._native.capi_tensor cimport is_stream
from kvit._native.capi_view cimport ViewState, pack_fitting_table
from kvit._native.checks cimport are_lse, are_rows, are_words, is_tree, rows_of_each
from kvit._native.driver_table cimport LaunchConfig
from kvit._native.host cimport KvitSpan
from kvit._native.kernel_graph cimport KernelGraph
from kvit._native.launcher cimport launch_failed, launch_raw
from kvit._native.module cimport Kernel
from kvit._native.overlaps cimport Extent, are_same, cross, extent_at, meet, meets_itself
from kvit._native.packed_cache cimport is_same_type
from kvit._native.params cimport KvitAppendParams, KvitDecodeParams, KvitPageTable
from kvit._native.row_ops cimport RowGrid, fits_grid, grid_for, pack_transfer
from kvit._native.spans cimport Spans, add_memory, set_pre_dependency
from kvit._native.tensor cimport KVIT_I32
from kvit._native.tensor_map cimport can_copy
from kvit.capi cimport (
    KVIT_DEVICE_HOST, KVIT_ERROR_NO_INTERPRETER, KVIT_OK, KVIT_OP_APPEND, KVIT_OP_ATTENTION, KVIT_OP_GATHER,
)

cdef enum:
    UNFIT = -1             # no kvit_status: the arguments have to be shown to Python


cdef int32_t attention(kvit_op *op, kvit_view *view, const kvit_page_table *table, const kvit_tensor *q,
                       const kvit_tensor *out, const kvit_tensor *lse, const kvit_tensor *query_indptr,
                       kvit_stream stream) noexcept nogil:
    return attention_masked(op, view, table, q, out, lse, query_indptr, NULL, NULL, stream)


cdef int32_t attention_masked(kvit_op *op, kvit_view *view, const kvit_page_table *table, const kvit_tensor *q,
                              const kvit_tensor *out, const kvit_tensor *lse, const kvit_tensor *query_indptr,
                              const kvit_tensor *spans, const kvit_tensor *tree, kvit_stream stream) noexcept nogil:
    cdef PinnedArgs pinned
    cdef int32_t status = enter(op, view, &pinned)
    if status == KVIT_OK:
        status = attend(pinned.op, pinned.view, table, q, out, lse, query_indptr, spans, tree, stream)
        if status == UNFIT:
            status = KVIT_ERROR_NO_INTERPRETER
            if enter_python():
                status = leave_python(
                    attend_in_python(pinned.op, pinned.view, table, q, out, lse, query_indptr, spans, tree, stream)
                )
        exit(&pinned)
    return status


cdef int32_t append(kvit_op *op, kvit_view *view, const kvit_page_table *table, const kvit_tensor *k,
                    const kvit_tensor *v, const kvit_tensor *query_indptr, kvit_stream stream) noexcept nogil:
    return transfer(KVIT_OP_APPEND, op, view, table, k, v, query_indptr, stream)


cdef int32_t append_rotated(kvit_op *op, kvit_view *view, const kvit_page_table *table, const kvit_tensor *k,
                            const kvit_tensor *v, const kvit_tensor *query_indptr, const kvit_append_extras *extras,
                            kvit_stream stream) noexcept nogil:
    cdef PinnedArgs pinned
    cdef int32_t status = enter(op, view, &pinned)
    if status == KVIT_OK:
        status = KVIT_ERROR_NO_INTERPRETER
        if enter_python():
            status = leave_python(
                append_in_python(pinned.op, pinned.view, table, k, v, query_indptr, extras, stream)
            )
        exit(&pinned)
    return status


cdef int32_t gather(kvit_op *op, kvit_view *view, const kvit_page_table *table, const kvit_tensor *k,
                    const kvit_tensor *v, const kvit_tensor *query_indptr, kvit_stream stream) noexcept nogil:
    return transfer(KVIT_OP_GATHER, op, view, table, k, v, query_indptr, stream)


cdef int32_t transfer(int kind, kvit_op *op, kvit_view *view, const kvit_page_table *table, const kvit_tensor *k,
                      const kvit_tensor *v, const kvit_tensor *query_indptr, kvit_stream stream) noexcept nogil:
    cdef PinnedArgs pinned
    cdef int32_t status = enter(op, view, &pinned)
    if status == KVIT_OK:
        status = move(kind, pinned.op, pinned.view, table, k, v, query_indptr, stream)
        if status == UNFIT:
            status = KVIT_ERROR_NO_INTERPRETER
            if enter_python():
                status = leave_python(
                    move_in_python(kind, pinned.op, pinned.view, table, k, v, query_indptr, stream)
                )
        exit(&pinned)
    return status


cdef int32_t attend(OpState *op, ViewState *view, const kvit_page_table *table, const kvit_tensor *q,
                    const kvit_tensor *out, const kvit_tensor *lse, const kvit_tensor *query_indptr,
                    const kvit_tensor *ranges, const kvit_tensor *tree, kvit_stream stream) noexcept nogil:
    cdef KvitDecodeParams params
    cdef KvitPageTable packed
    cdef Spans spans
    cdef int each
    if (op.kind != KVIT_OP_ATTENTION or not is_for(op, view, stream) or not can_copy(view.maps, op.plan.boxes)
            or not are_rows(q, op.type.device, op.dtype, -1, op.query_heads, op.type.k_dim, False)
            or not are_rows(out, op.type.device, op.dtype, q.shape[0], op.query_heads, op.type.v_dim, True)
            or not (lse == NULL or are_lse(lse, op.type.device, q.shape[0], op.query_heads))
            or not pack_fitting_table(table, op.type.device, &packed)
            or not is_apart(out, view, table, query_indptr, True)
            or not is_apart(lse, view, table, query_indptr, True)
            or not is_apart_from_own(out, op) or not is_apart_from_own(lse, op)
            or not (ranges == NULL or (op.takes_spans and are_words(ranges, op.type.device, KVIT_I32, q.shape[0], 2)))
            or not (tree == NULL or (op.takes_trees and is_tree(tree, op.type.device, q.shape[0])))
            or meet(out, ranges) or meet(out, tree) or meet(lse, ranges) or meet(lse, tree)
            or (meet(out, q) and not are_same(out, q)) or meet(lse, q) or meet(lse, out)):
        return UNFIT
    each = rows_of_each(q.shape[0], packed.num_sequences, query_indptr, op.type.device)
    if each < 0:
        return UNFIT
    if q.shape[0] == 0 or packed.num_sequences == 0:
        return KVIT_OK
    if not pack_attention(&params, &op.plan, &view.cache, view.maps, &packed, query_indptr, each, q, out, lse,
                          ranges, tree):
        return UNFIT
    spans.count = 0
    if op.type.device.type == KVIT_DEVICE_HOST:
        add_cache(&spans, view, False)
        add_table(&spans, table, query_indptr)
        add_memory(&spans, ranges, False)
        add_memory(&spans, tree, False)
        if params.reads_ahead:
            set_pre_dependency(&spans, 0)
        add_own(&spans, op)
        add_memory(&spans, q, False)
        add_memory(&spans, out, True)
        add_memory(&spans, lse, True)
    return launch(op, &op.plan.config, &params, stream, &spans)


cdef int32_t move(int kind, OpState *op, ViewState *view, const kvit_page_table *table, const kvit_tensor *k,
                  const kvit_tensor *v, const kvit_tensor *query_indptr, kvit_stream stream) noexcept nogil:
    cdef KvitAppendParams params  # gather takes the first part alone
    cdef KvitPageTable packed
    cdef Spans spans
    cdef RowGrid grid
    cdef LaunchConfig config
    cdef int each
    cdef bint is_append = kind == KVIT_OP_APPEND
    if (op.kind != kind or op.is_extended or not is_for(op, view, stream) or (is_append and view.is_readonly)
            or not are_rows(k, op.type.device, op.dtype, -1, op.type.kv_heads, op.type.k_dim, not is_append)
            or not are_rows(v, op.type.device, op.dtype, k.shape[0], op.type.kv_heads, op.type.v_dim, not is_append)
            or not pack_fitting_table(table, op.type.device, &packed)
            or not is_apart(k, view, table, query_indptr, not is_append)
            or not is_apart(v, view, table, query_indptr, not is_append)
            or (not is_append and meet(k, v))):
        return UNFIT
    each = rows_of_each(k.shape[0], packed.num_sequences, query_indptr, op.type.device)
    if each < 0 or not fits_grid(&op.shares, k.shape[0], k.shape[1]):
        return UNFIT
    if k.shape[0] == 0:
        return KVIT_OK
    memset(&params, 0, sizeof(params))  # no bias, no rotation, no queries
    pack_transfer(&params.transfer, &view.cache, &packed, query_indptr, each, k, v, op.fault)
    grid = grid_for(&op.shares, k.shape[0], k.shape[1], 0)
    params.passes = <int32_t>grid.passes
    spans.count = 0
    if op.type.device.type == KVIT_DEVICE_HOST:
        add_cache(&spans, view, is_append)
        add_table(&spans, table, query_indptr)
        add_own(&spans, op)
        add_memory(&spans, k, not is_append)
        add_memory(&spans, v, not is_append)
    config = (<Kernel>op.kernel).config_of(<unsigned int>grid.ctas)
    return launch(op, &config, &params, stream, &spans)


cdef bint is_for(const OpState *op, const ViewState *view, kvit_stream stream) noexcept nogil:
    """Whether the operation was made for such a view, and the stream can be one of its device."""
    return is_same_type(&view.type, &op.type) and is_stream(stream, op.type.device)


cdef bint is_apart(const kvit_tensor *rows, const ViewState *view, const kvit_page_table *table,
                   const kvit_tensor *query_indptr, bint is_written) noexcept nogil:
    """Whether rows lie apart from the cache; those that are written from the table and from themselves, too."""
    cdef Extent extent, other
    cdef int i
    if rows == NULL:
        return True
    extent = extent_at(rows)
    for i in range(view.num_spans):
        other = extent_of_span(&view.spans[i])
        if cross(&extent, &other):
            return False
    return not is_written or not (
        meets_itself(rows) or meet(rows, table.pages) or meet(rows, table.lengths) or meet(rows, table.indptr)
        or meet(rows, query_indptr)
    )


cdef bint is_apart_from_own(const kvit_tensor *rows, const OpState *op) noexcept nogil:
    """Whether rows that are written lie apart from the arrays that an operation reads at every launch."""
    cdef Extent extent, other
    cdef int i
    if rows == NULL:
        return True
    extent = extent_at(rows)
    for i in range(op.num_spans):
        other = extent_of_span(&op.spans[i])
        if not op.spans[i].writable and cross(&extent, &other):
            return False
    return True


cdef Extent extent_of_span(const KvitSpan *span) noexcept nogil:
    cdef Extent extent
    extent.low = <uintptr_t>span.base
    extent.high = extent.low + <uintptr_t>span.bytes
    return extent


# What a launch on the host may touch.

cdef void add_cache(Spans *spans, const ViewState *view, bint is_written) noexcept nogil:
    cdef int i
    for i in range(view.num_spans):
        spans.items[spans.count] = view.spans[i]
        spans.items[spans.count].writable = is_written
        spans.count += 1


cdef void add_table(Spans *spans, const kvit_page_table *table, const kvit_tensor *query_indptr) noexcept nogil:
    add_memory(spans, table.pages, False)
    add_memory(spans, table.lengths, False)
    add_memory(spans, table.indptr, False)
    add_memory(spans, query_indptr, False)


cdef void add_own(Spans *spans, const OpState *op) noexcept nogil:
    cdef int i
    for i in range(op.num_spans):
        spans.items[spans.count] = op.spans[i]
        spans.count += 1


cdef int32_t launch(const OpState *op, const LaunchConfig *config, const void *params, kvit_stream stream,
                    const Spans *spans) noexcept nogil:
    cdef const char *call = NULL
    cdef int status = launch_raw(
        <Kernel>op.kernel, <KernelGraph>op.graph, config, params, <void *>stream, spans.items, spans.count, &call
    )
    if status == 0:
        return KVIT_OK
    return leave_python(say_why(op, config, status, call)) if enter_python() else KVIT_ERROR_NO_INTERPRETER


cdef int32_t say_why(const OpState *op, const LaunchConfig *config, int error, const char *call) noexcept with gil:
    cdef int32_t status = KVIT_OK
    try:
        launch_failed(<Kernel>op.kernel, config, error, call)
    except BaseException as failure:
        status = set_last_error(failure)
    return status
