"""Operations of the C API: made once with the GIL, called without it."""
import kvit

from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from kvit._native.attention_call cimport AttentionCall
from kvit._native.attention_launch cimport AttentionLaunch
from kvit._native.buffer cimport Buffer
from kvit._native.capi_entry cimport enter_python, leave_python
from kvit._native.capi_error cimport set_last_error
from kvit._native.capi_handle cimport HANDLE_OP, HANDLE_VIEW, Slot, destroy, pin, publish, unpin
from kvit._native.capi_option cimport (
    answer, check_target, is_causal, is_set, read_options, stored_as, to_dtype, to_launch,
)
from kvit._native.capi_rope cimport to_rope
from kvit._native.capi_tensor cimport to_stream, to_tensor
from kvit._native.capi_view cimport ViewState, find_view
from kvit._native.context cimport device_of
from kvit._native.host cimport SPAN_IS_WORKSPACE
from kvit._native.module cimport Kernel, load_kernel
from kvit._native.row_ops cimport shares_of
from kvit._native.spans cimport span_of
from kvit._native.tensor cimport Tensor
from kvit._native.transfer_call cimport TransferCall
from kvit.capi cimport (
    KVIT_ERROR_NO_INTERPRETER, KVIT_LAUNCH_DIRECT, KVIT_OK, KVIT_OP_APPEND, KVIT_OP_ATTENTION, KVIT_OP_CONVERT_PAGES,
    KVIT_OP_COPY_PAGES, KVIT_OP_GATHER,
)

from kvit._native.capi_error import ArgumentError

cdef extern from "<stddef.h>":
    const size_t OP_OPTIONS_BEFORE_LAUNCH "offsetof(kvit_op_options, launch)"
    const size_t OP_OPTIONS_BEFORE_WINDOW "offsetof(kvit_op_options, window_left)"
    const size_t OP_OPTIONS_BEFORE_ROPE "offsetof(kvit_op_options, rope)"
    const size_t OP_OPTIONS_BEFORE_TARGET "offsetof(kvit_op_options, target)"
    const size_t OP_INFO_BEFORE_V_DIM "offsetof(kvit_op_info, v_dim)"


cdef int32_t op_create(const kvit_op_options *options, kvit_op **op) noexcept nogil:
    return leave_python(create(options, op)) if enter_python() else KVIT_ERROR_NO_INTERPRETER


cdef int32_t create(const kvit_op_options *options, kvit_op **op) noexcept with gil:
    cdef kvit_op_options wanted
    cdef Slot *view = NULL
    cdef OpState *state
    cdef int32_t status
    try:
        earlier = [
            OP_OPTIONS_BEFORE_LAUNCH, OP_OPTIONS_BEFORE_WINDOW, OP_OPTIONS_BEFORE_ROPE, OP_OPTIONS_BEFORE_TARGET
        ]
        read_options(&wanted, options, earlier, sizeof(wanted), "kvit_op_options")
        check_target(op, "op", "kvit_op")
        status = pin(wanted.view, HANDLE_VIEW, &view)
        if status != KVIT_OK:
            return status
        try:
            state = make_state(&wanted, <ViewState *>view.state)
        finally:
            unpin(view)
        op[0] = <kvit_op *>publish(HANDLE_OP, state, drop)
    except BaseException as error:
        status = set_last_error(error)
    return status


cdef OpState *make_state(const kvit_op_options *options, const ViewState *view) except NULL:
    cdef OpState *state
    operation = make_operation(options, <object>view.view)
    state = <OpState *>calloc(1, sizeof(OpState))
    if state == NULL:
        raise MemoryError("no memory for another operation")
    try:
        state.kind = options.kind
        state.type = view.type
        state.dtype = view.type.dtype
        if options.kind == KVIT_OP_ATTENTION:
            keep_attention(state, operation)
        elif options.kind in (KVIT_OP_COPY_PAGES, KVIT_OP_CONVERT_PAGES):
            state.kernel = state.graph = <void *>None  # Python's to choose, by call
        else:
            keep_transfer(state, operation)
            state.is_extended = options.rope != NULL or options.k_norm != NULL or options.q_norm != NULL
    except BaseException:
        free(state)
        raise
    state.operation = <void *>operation
    Py_INCREF(operation)
    Py_INCREF(<object>state.kernel)
    Py_INCREF(<object>state.graph)
    return state


cdef object make_operation(const kvit_op_options *options, object view):
    if options.target != NULL and options.kind != KVIT_OP_CONVERT_PAGES:
        raise ArgumentError("target is where KVIT_OP_CONVERT_PAGES (4) puts pages, and this is another kind; give NULL")
    if options.kind == KVIT_OP_ATTENTION:
        return make_attention(options, view)
    if options.kind == KVIT_OP_APPEND:
        return make_append(options, view)
    if options.kind == KVIT_OP_GATHER:
        return kvit.Gather(view, launch=to_launch(options.launch))
    if options.kind not in (KVIT_OP_COPY_PAGES, KVIT_OP_CONVERT_PAGES):
        raise ArgumentError(
            f"kind is {options.kind}; give KVIT_OP_ATTENTION (0), KVIT_OP_APPEND (1), KVIT_OP_GATHER (2), "
            "KVIT_OP_COPY_PAGES (3) or KVIT_OP_CONVERT_PAGES (4)"
        )
    if options.launch != KVIT_LAUNCH_DIRECT:
        raise ArgumentError(f"launch is {options.launch}; operations on pages have KVIT_LAUNCH_DIRECT (0) alone")
    if options.kind == KVIT_OP_COPY_PAGES:
        return kvit.CopyPages(view)
    if options.target == NULL:
        raise ArgumentError("target is NULL; give the kvit_view of pages like those that converted ones go to")
    return kvit.ConvertPages(view, find_view(options.target))


cdef object make_append(const kvit_op_options *options, object view):
    return kvit.Append(
        view,
        rope=to_rope(options.rope),
        k_norm=to_tensor(options.k_norm, "k_norm", True),
        q_norm=to_tensor(options.q_norm, "q_norm", True),
        norm_eps=options.norm_eps or 1e-6,
        norm_offset=options.norm_offset,
        launch=to_launch(options.launch),
    )


cdef object make_attention(const kvit_op_options *options, object view):
    return kvit.Attention(
        view,
        options.query_heads,
        dtype=to_dtype(options.dtype, "kvit_op_options"),
        scale=options.scale or None,
        causal=is_causal(options.mask),
        tokens_per_sequence=max(1, options.tokens_per_sequence),
        workspace=to_tensor(options.workspace, "workspace", True),
        split_tokens=options.split_tokens or None,
        reads_ahead=is_set(options.reads_ahead, "reads_ahead"),
        launch=to_launch(options.launch),
        window=(options.window_left or None, options.window_right or None),
        chunk=options.chunk or None,
        softcap=options.softcap or None,
        spans=is_set(options.takes_spans, "takes_spans"),
        tree=is_set(options.takes_tree, "takes_tree"),
        sinks=to_tensor(options.sinks, "sinks", True),
        alibi=to_tensor(options.alibi, "alibi", True),
        temperature=to_tensor(options.temperature, "temperature", True),
    )


cdef int keep_attention(OpState *state, object operation) except -1:
    cdef AttentionLaunch launch = (<AttentionCall>operation).launch
    state.plan = launch.plan
    state.kernel = <void *>launch.kernel
    state.graph = <void *>launch.graph
    state.takes_spans, state.takes_trees = launch.takes_spans, launch.takes_trees
    state.fault = launch.plan.constants.fault
    state.dtype = (<AttentionCall>operation).query_dtype
    state.query_heads = launch.plan.constants.num_query_heads
    state.workspace_bytes = operation.workspace_bytes
    add_memory(state, launch.workspace, False)
    state.spans[0].writable = SPAN_IS_WORKSPACE
    add_memory(state, launch.tickets, True)
    add_memory(state, launch.fault, True)
    for array in launch.arrays:
        add_memory(state, array, False, False)
    return 0


cdef int keep_transfer(OpState *state, object operation) except -1:
    cdef Buffer fault = operation.faults.buffer
    cdef Kernel kernel = load_kernel(operation.kernel, device_of(operation.device))  # kept by its module
    state.kernel = <void *>kernel
    state.graph = <void *>(<TransferCall>operation)._graph
    state.shares = shares_of(operation.kernel, device_of(operation.device))
    state.fault = <KvitFault *>fault.memory.data
    add_memory(state, fault, True)
    return 0


cdef void add_memory(OpState *state, Tensor tensor, bint is_pre_dependency, bint is_written=True) noexcept:
    state.spans[state.num_spans] = span_of(&tensor.memory, is_written)
    state.spans[state.num_spans].pre_dependency = is_pre_dependency
    state.num_spans += 1


cdef int32_t op_query(kvit_op *op, kvit_op_info *info) noexcept nogil:
    cdef kvit_op_info found
    cdef Slot *slot
    cdef OpState *state
    cdef int32_t status = pin(op, HANDLE_OP, &slot)
    if status != KVIT_OK:
        return status
    state = <OpState *>slot.state
    memset(&found, 0, sizeof(found))
    found.kind = state.kind
    found.workspace_bytes = state.workspace_bytes
    found.dtype = state.dtype
    found.k_dtype = stored_as(state.type.k_dtype, state.type.k_hadamard)
    found.v_dtype = stored_as(state.type.v_dtype, state.type.v_hadamard)
    found.query_heads = state.query_heads
    found.kv_heads = state.type.kv_heads
    found.head_dim = state.type.k_dim
    found.device_type = state.type.device.type
    found.device_id = state.type.device.ordinal
    found.v_dim = state.type.v_dim
    status = answer(info, &found, OP_INFO_BEFORE_V_DIM, sizeof(found), b"kvit_op_info")
    unpin(slot)
    return status


cdef int32_t op_explain(kvit_op *op, char *text, size_t capacity, size_t *length) noexcept nogil:
    return leave_python(explain(op, text, capacity, length)) if enter_python() else KVIT_ERROR_NO_INTERPRETER


cdef int32_t explain(kvit_op *op, char *text, size_t capacity, size_t *length) noexcept with gil:
    cdef Slot *slot
    cdef int32_t status = pin(op, HANDLE_OP, &slot)
    if status != KVIT_OK:
        return status
    try:
        write_text(describe(<OpState *>slot.state), text, capacity, length)
    except BaseException as error:
        status = set_last_error(error)
    unpin(slot)
    return status


cdef str describe(const OpState *state):
    operation = <object>state.operation
    if state.kind not in (KVIT_OP_APPEND, KVIT_OP_GATHER):
        return operation.explain()
    return (
        f"{operation.kernel.symbol} on {operation.device}\n"
        f"  grid       CTAs of {state.shares.warps} warps, each for "
        f"{state.shares.heads_per_pass} KV heads of a token{' at a time' if state.shares.resident else ''}\n"
        f"{operation.explain_launch()}"
    )


cdef int write_text(str text, char *target, size_t capacity, size_t *length) except -1:
    cdef bytes encoded = text.encode()
    cdef size_t fitting
    if target == NULL and capacity != 0:
        raise ArgumentError(f"text is NULL and capacity {capacity}; give memory, or capacity 0 to ask for the length")
    if length != NULL:
        length[0] = len(encoded)
    if capacity != 0:
        fitting = min(<size_t>len(encoded), capacity - 1)
        memcpy(target, <const char *>encoded, fitting)
        target[fitting] = 0
    return 0


cdef int32_t op_check(kvit_op *op, kvit_stream stream, kvit_fault *fault) noexcept nogil:
    return leave_python(check(op, stream, fault)) if enter_python() else KVIT_ERROR_NO_INTERPRETER


cdef int32_t check(kvit_op *op, kvit_stream stream, kvit_fault *fault) noexcept with gil:
    cdef Slot *slot
    cdef int32_t status = pin(op, HANDLE_OP, &slot)
    if status != KVIT_OK:
        return status
    try:
        (<object>(<OpState *>slot.state).operation).check(to_stream(stream, (<OpState *>slot.state).type.device))
    except BaseException as error:
        status = set_last_error(error, fault)
    unpin(slot)
    return status


cdef int32_t op_destroy(kvit_op *op) noexcept nogil:
    return destroy(op, HANDLE_OP)


cdef int32_t drop(void *state) noexcept:
    Py_DECREF(<object>(<OpState *>state).operation)
    Py_DECREF(<object>(<OpState *>state).kernel)
    Py_DECREF(<object>(<OpState *>state).graph)
    free(state)
    return KVIT_OK
