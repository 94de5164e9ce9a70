"""The calls of the C API that Python makes: with arguments that do not fit a launch as they are, and all merges.

One set of checks has the words: the operations of kvit say what is wrong, or make of the arguments what does fit.
"""
import kvit

from kvit._native.capi_entry cimport enter_python, leave_python
from kvit._native.capi_error cimport set_last_error
from kvit._native.capi_option cimport check_size
from kvit._native.capi_tensor cimport to_stream, to_tensor
from kvit._native.capi_view cimport to_table
from kvit._native.checks cimport device_id_of
from kvit._native.tensor cimport Tensor
from kvit.capi cimport (
    KVIT_ERROR_NO_INTERPRETER, KVIT_OK, KVIT_OP_APPEND, KVIT_OP_ATTENTION, KVIT_OP_CONVERT_PAGES, KVIT_OP_COPY_PAGES,
    KVIT_OP_GATHER,
)

from kvit._native.capi_error import ArgumentError

_NAMES = {
    KVIT_OP_ATTENTION: "attention",
    KVIT_OP_APPEND: "append",
    KVIT_OP_GATHER: "gather",
    KVIT_OP_COPY_PAGES: "copies of pages",
    KVIT_OP_CONVERT_PAGES: "conversions of pages",
}


cdef int32_t attend_in_python(OpState *op, ViewState *view, const kvit_page_table *table, const kvit_tensor *q,
                              const kvit_tensor *out, const kvit_tensor *lse, const kvit_tensor *query_indptr,
                              const kvit_tensor *spans, const kvit_tensor *tree, kvit_stream stream) noexcept with gil:
    cdef int32_t status = KVIT_OK
    try:
        require_kind(op, KVIT_OP_ATTENTION)
        (<object>op.operation)(
            to_tensor(q, "q"), <object>view.view, to_table(table), out=to_tensor(out, "out"),
            lse=to_tensor(lse, "lse", True), query_indptr=to_tensor(query_indptr, "query_indptr", True),
            spans=to_tensor(spans, "spans", True), tree=to_tensor(tree, "tree", True),
            stream=to_stream(stream, op.type.device),
        )
    except BaseException as error:
        status = set_last_error(error)
    return status


cdef int32_t move_in_python(int kind, OpState *op, ViewState *view, const kvit_page_table *table,
                            const kvit_tensor *k, const kvit_tensor *v, const kvit_tensor *query_indptr,
                            kvit_stream stream) noexcept with gil:
    cdef int32_t status = KVIT_OK
    try:
        require_kind(op, kind)
        operation, cache = <object>op.operation, <object>view.view
        rows, pages = (to_tensor(k, "k"), to_tensor(v, "v")), to_table(table)
        options = {
            "query_indptr": to_tensor(query_indptr, "query_indptr", True), "stream": to_stream(stream, op.type.device)
        }
        if kind == KVIT_OP_APPEND:
            operation(*rows, cache, pages, **options)
        else:
            operation(cache, pages, out=rows, **options)
    except BaseException as error:
        status = set_last_error(error)
    return status


cdef int32_t append_in_python(OpState *op, ViewState *view, const kvit_page_table *table, const kvit_tensor *k,
                              const kvit_tensor *v, const kvit_tensor *query_indptr, const kvit_append_extras *extras,
                              kvit_stream stream) noexcept with gil:
    cdef int32_t status = KVIT_OK
    try:
        require_kind(op, KVIT_OP_APPEND)
        (<object>op.operation)(
            to_tensor(k, "k"), to_tensor(v, "v"), <object>view.view, to_table(table),
            query_indptr=to_tensor(query_indptr, "query_indptr", True), stream=to_stream(stream, op.type.device),
            **to_extras(extras),
        )
    except BaseException as error:
        status = set_last_error(error)
    return status


cdef dict to_extras(const kvit_append_extras *extras):
    if extras == NULL:
        return {}
    check_size(extras, sizeof(kvit_append_extras), "kvit_append_extras")
    return {
        "q": to_tensor(extras.q, "q", True),
        "q_out": to_tensor(extras.q_out, "q_out", True),
        "positions": to_tensor(extras.positions, "positions", True),
        "prefix_lengths": to_tensor(extras.prefix_lengths, "prefix_lengths", True),
        "k_bias": to_tensor(extras.k_bias, "k_bias", True),
        "v_bias": to_tensor(extras.v_bias, "v_bias", True),
        "q_bias": to_tensor(extras.q_bias, "q_bias", True),
    }


cdef int require_kind(const OpState *op, int kind) except -1:
    if op.kind != kind:
        raise ArgumentError(f"the operation was made for {_NAMES[op.kind]}, and this is {_NAMES[kind]}; make another")
    return 0


cdef int32_t merge_states(const kvit_tensor *out_a, const kvit_tensor *lse_a, const kvit_tensor *out_b,
                          const kvit_tensor *lse_b, const kvit_tensor *out, const kvit_tensor *lse,
                          kvit_stream stream) noexcept nogil:
    if not enter_python():
        return KVIT_ERROR_NO_INTERPRETER
    return leave_python(merge(out_a, lse_a, out_b, lse_b, out, lse, stream))


cdef int32_t merge(const kvit_tensor *out_a, const kvit_tensor *lse_a, const kvit_tensor *out_b,
                   const kvit_tensor *lse_b, const kvit_tensor *out, const kvit_tensor *lse,
                   kvit_stream stream) noexcept with gil:
    cdef int32_t status = KVIT_OK
    cdef Tensor a
    try:
        a = to_tensor(out_a, "out_a")
        kvit.merge_state(
            a, to_tensor(lse_a, "lse_a"), to_tensor(out_b, "out_b"), to_tensor(lse_b, "lse_b"),
            out=to_tensor(out, "out"), lse=to_tensor(lse, "lse", True), stream=to_stream(stream, device_id_of(a)),
        )
    except BaseException as error:
        status = set_last_error(error)
    return status
