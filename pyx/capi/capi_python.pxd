# The calls of the C API that Python makes: with arguments that do not fit a launch as they are, and all merges.
from libc.stdint cimport int32_t

from kvit._native.capi_op cimport OpState
from kvit._native.capi_view cimport ViewState
from kvit.capi cimport kvit_append_extras, kvit_page_table, kvit_stream, kvit_tensor

# attention, and append or gather as `kind` says, of an operation and a view that the caller holds.
cdef int32_t attend_in_python(OpState *op, ViewState *view, const kvit_page_table *table, const kvit_tensor *q,
                              const kvit_tensor *out, const kvit_tensor *lse, const kvit_tensor *query_indptr,
                              const kvit_tensor *spans, const kvit_tensor *tree, kvit_stream stream) noexcept with gil
cdef int32_t move_in_python(int kind, OpState *op, ViewState *view, const kvit_page_table *table,
                            const kvit_tensor *k, const kvit_tensor *v, const kvit_tensor *query_indptr,
                            kvit_stream stream) noexcept with gil

# The same of append with what else rows pass through.
cdef int32_t append_in_python(OpState *op, ViewState *view, const kvit_page_table *table, const kvit_tensor *k,
                              const kvit_tensor *v, const kvit_tensor *query_indptr, const kvit_append_extras *extras,
                              kvit_stream stream) noexcept with gil

# Raises ArgumentError unless the operation was made for calls of this kind.
cdef int require_kind(const OpState *op, int kind) except -1

# A function of kvit_api.
cdef int32_t merge_states(const kvit_tensor *out_a, const kvit_tensor *lse_a, const kvit_tensor *out_b,
                          const kvit_tensor *lse_b, const kvit_tensor *out, const kvit_tensor *lse,
                          kvit_stream stream) noexcept nogil
