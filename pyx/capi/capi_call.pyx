# cython: cdivision=True
"""The calls of the C API that launch: packed and launched without the GIL, without allocating.

What fits as it is goes straight to the kernel. All else goes to capi_python, whose checks say what is wrong with it:
the questions of capi_tensor are never laxer than they are.
"""
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memset

from kvit._native.capi_error cimport has_python, tell
from kvit._native.capi_handle cimport HANDLE_OP, HANDLE_VIEW, Slot, leave, pin, take, unpin
from kvit._native.capi_op cimport OpState
from kvit._native.capi_python cimport attend_in_python, move_in_python
from kvit._native.capi_tensor cimport Place, are_entries, are_lse, are_rows, is_stream, span_of
from kvit._native.capi_view cimport ViewState, pack_table
from kvit._native.host cimport KvitSpan
from kvit._native.kernel_graph cimport KernelGraph
from kvit._native.launcher cimport launch_failed, launch_raw
from kvit._native.module cimport Kernel
from kvit._native.ops cimport (
    KvitAppendParams, KvitDecodeParams, KvitRows, KvitTokens, KvitTransferParams, divisor_of,
)
from kvit._native.row_ops cimport MOST_WARPS, RowGrid, grid_for
from kvit._native.tensor_map cimport can_copy, copy_tensor_maps
from kvit.capi cimport (
    KVIT_DEVICE_HOST, KVIT_ERROR_NO_INTERPRETER, KVIT_OK, KVIT_OP_APPEND, KVIT_OP_ATTENTION, KVIT_OP_GATHER,
)

cdef enum:
    MOST_SPANS = 16        # memory of a call: its arguments, the cache, the operation's own
    UNFIT = -1             # no kvit_status: the arguments have to be shown to Python


cdef int32_t attention(kvit_op *op, kvit_view *view, const kvit_page_table *table, const kvit_tensor *q,
                       const kvit_tensor *out, const kvit_tensor *lse, const kvit_tensor *tokens,
                       kvit_stream stream) noexcept nogil:
    cdef Held held
    cdef int32_t status = enter(op, view, &held)
    if status == KVIT_OK:
        status = attend(held.op, held.view, table, q, out, lse, tokens, stream)
        if status == UNFIT:
            status = KVIT_ERROR_NO_INTERPRETER
            if has_python():
                status = attend_in_python(held.op, held.view, table, q, out, lse, tokens, stream)
        exit(&held)
    return status


cdef int32_t append(kvit_op *op, kvit_view *view, const kvit_page_table *table, const kvit_tensor *k,
                    const kvit_tensor *v, const kvit_tensor *tokens, kvit_stream stream) noexcept nogil:
    return transfer(KVIT_OP_APPEND, op, view, table, k, v, tokens, stream)


cdef int32_t gather(kvit_op *op, kvit_view *view, const kvit_page_table *table, const kvit_tensor *k,
                    const kvit_tensor *v, const kvit_tensor *tokens, kvit_stream stream) noexcept nogil:
    return transfer(KVIT_OP_GATHER, op, view, table, k, v, tokens, stream)


cdef int32_t transfer(int kind, kvit_op *op, kvit_view *view, const kvit_page_table *table, const kvit_tensor *k,
                      const kvit_tensor *v, const kvit_tensor *tokens, kvit_stream stream) noexcept nogil:
    cdef Held held
    cdef int32_t status = enter(op, view, &held)
    if status == KVIT_OK:
        status = move(kind, held.op, held.view, table, k, v, tokens, stream)
        if status == UNFIT:
            status = KVIT_ERROR_NO_INTERPRETER
            if has_python():
                status = move_in_python(kind, held.op, held.view, table, k, v, tokens, stream)
        exit(&held)
    return status


cdef struct Held:
    Slot *op_slot
    Slot *view_slot
    OpState *op
    ViewState *view


cdef int32_t enter(kvit_op *op, kvit_view *view, Held *held) noexcept nogil:
    """Hold the view, and the operation alone; or hold nothing and tell the thread why."""
    cdef int32_t status = pin(op, HANDLE_OP, &held.op_slot)
    if status != KVIT_OK:
        return status
    status = take(held.op_slot)
    if status == KVIT_OK:
        status = pin(view, HANDLE_VIEW, &held.view_slot)
        if status == KVIT_OK:
            held.op = <OpState *>held.op_slot.state
            held.view = <ViewState *>held.view_slot.state
            return KVIT_OK
        leave(held.op_slot)
    unpin(held.op_slot)
    return status


cdef void exit(Held *held) noexcept nogil:
    unpin(held.view_slot)
    leave(held.op_slot)
    unpin(held.op_slot)


cdef int32_t attend(OpState *op, ViewState *view, const kvit_page_table *table, const kvit_tensor *q,
                    const kvit_tensor *out, const kvit_tensor *lse, const kvit_tensor *tokens,
                    kvit_stream stream) noexcept nogil:
    cdef KvitDecodeParams params
    cdef KvitSpan[MOST_SPANS] spans
    cdef int count, i
    if (op.kind != KVIT_OP_ATTENTION or not is_for(op, view, stream) or not can_copy(view.maps, op.boxes)
            or (op.boxes.tokens and view.maps.made == 0)
            or not are_rows(q, op.place, op.dtype, -1, op.query_heads, op.head_dim, False)
            or not are_rows(out, op.place, op.dtype, q.shape[0], op.query_heads, op.head_dim, True)
            or not (lse == NULL or are_lse(lse, op.place, q.shape[0], op.query_heads))):
        return UNFIT
    params = op.constants
    if (not pack_table(table, op.place, &params.table, spans)
            or not pack_tokens(q, params.table.num_sequences, tokens, op.place, &params.tokens)):
        return UNFIT
    if q.shape[0] == 0 or params.table.num_sequences == 0:
        return KVIT_OK
    params.cache = view.cache
    params.page_size = divisor_of(view.cache.page_size)
    if op.boxes.tokens:
        params.box_tokens = copy_tensor_maps(view.maps, op.boxes, params.k_map.bytes, params.v_map.bytes)
    pack_rows(&params.q, q)
    pack_rows(&params.out, out)
    memset(&params.lse, 0, sizeof(params.lse))
    if lse != NULL:
        params.lse.base = <float *>lse.data
        params.lse.token_stride = lse.strides[0]
        params.lse.head_stride = lse.strides[1]
    count = 0
    if op.place.device_type == KVIT_DEVICE_HOST:
        count = add_cache(spans, 3, view, False)
        count = add_tensor(spans, count, tokens, False)
        for i in range(count):
            spans[i].any_time = params.reads_ahead
        count = add_own(spans, count, op)
        count = add_tensor(spans, count, q, False)
        count = add_tensor(spans, count, out, True)
        count = add_tensor(spans, count, lse, True)
    return launch(op, &params, op.grid, stream, spans, count)


cdef int32_t move(int kind, OpState *op, ViewState *view, const kvit_page_table *table, const kvit_tensor *k,
                  const kvit_tensor *v, const kvit_tensor *tokens, kvit_stream stream) noexcept nogil:
    cdef KvitAppendParams append
    cdef KvitTransferParams *params = &append.transfer
    cdef KvitSpan[MOST_SPANS] spans
    cdef RowGrid grid
    cdef int count
    cdef bint is_append = kind == KVIT_OP_APPEND
    memset(&append, 0, sizeof(append))  # no bias, no rotation, no queries; gather takes the first part alone
    if (op.kind != kind or not is_for(op, view, stream) or (is_append and view.is_readonly)
            or not are_rows(k, op.place, op.dtype, -1, op.kv_heads, op.head_dim, not is_append)
            or not are_rows(v, op.place, op.dtype, k.shape[0], op.kv_heads, op.head_dim, not is_append)
            or not pack_table(table, op.place, &params.table, spans)
            or not pack_tokens(k, params.table.num_sequences, tokens, op.place, &params.tokens)):
        return UNFIT
    if k.shape[0] == 0:
        return KVIT_OK
    grid = grid_for(&op.shares, k.shape[0], k.shape[1], 0)
    append.passes = <int32_t>grid.passes
    if grid.ctas * op.shares.warps > MOST_WARPS:
        return UNFIT
    params.cache = view.cache
    params.fault = op.fault
    pack_rows(&params.k, k)
    pack_rows(&params.v, v)
    count = 0
    if op.place.device_type == KVIT_DEVICE_HOST:
        count = add_cache(spans, 3, view, is_append)
        count = add_own(spans, count, op)
        count = add_tensor(spans, count, tokens, False)
        count = add_tensor(spans, count, k, not is_append)
        count = add_tensor(spans, count, v, not is_append)
    return launch(op, params, <unsigned int>grid.ctas, stream, spans, count)


cdef bint is_for(const OpState *op, const ViewState *view, kvit_stream stream) noexcept nogil:
    """Whether the operation was made for such a view, and the stream can be one of its device."""
    return (
        view.cache.num_kv_heads == op.kv_heads and view.cache.head_dim == op.head_dim
        and view.dtype == op.cache_dtype and view.k_dtype == op.k_dtype and view.v_dtype == op.v_dtype
        and view.place.device_type == op.place.device_type and view.place.device_id == op.place.device_id
        and is_stream(stream, op.place)
    )


cdef bint pack_tokens(const kvit_tensor *rows, int32_t sequences, const kvit_tensor *tokens, Place place,
                      KvitTokens *packed) noexcept nogil:
    packed.total = <int32_t>rows.shape[0]
    packed.indptr = NULL
    packed.each = 0
    if tokens != NULL:
        packed.indptr = <const int32_t *>tokens.data
        return are_entries(tokens, place, <int64_t>sequences + 1)
    if sequences == 0:
        return rows.shape[0] == 0
    packed.each = packed.total // sequences
    return packed.total % sequences == 0


cdef void pack_rows(KvitRows *packed, const kvit_tensor *rows) noexcept nogil:
    packed.base = rows.data
    packed.token_stride = rows.strides[0]
    packed.head_stride = rows.strides[1]


# What a launch on the host may touch, added behind the `count` spans that are there: how many there are then.

cdef int add_cache(KvitSpan *spans, int count, const ViewState *view, bint is_written) noexcept nogil:
    cdef int i
    for i in range(view.num_spans):
        spans[count + i] = view.spans[i]
        spans[count + i].writable = is_written
    return count + view.num_spans


cdef int add_own(KvitSpan *spans, int count, const OpState *op) noexcept nogil:
    cdef int i
    for i in range(op.num_spans):
        spans[count + i] = op.spans[i]
    return count + op.num_spans


cdef int add_tensor(KvitSpan *spans, int count, const kvit_tensor *tensor, bint is_written) noexcept nogil:
    if tensor == NULL:
        return count
    spans[count] = span_of(tensor, is_written)
    return count + 1


cdef int32_t launch(const OpState *op, const void *params, unsigned int grid, kvit_stream stream,
                    const KvitSpan *spans, int count) noexcept nogil:
    cdef const char *call = NULL
    cdef int status = launch_raw(
        <Kernel>op.kernel, <KernelGraph>op.graph, params, grid, <void *>stream, spans, count, &call
    )
    if status == 0:
        return KVIT_OK
    return say_why(op, grid, status, call) if has_python() else KVIT_ERROR_NO_INTERPRETER


cdef int32_t say_why(const OpState *op, unsigned int grid, int status, const char *call) noexcept with gil:
    try:
        launch_failed(<Kernel>op.kernel, grid, status, call)
        return KVIT_OK
    except BaseException as error:
        return tell(error)
