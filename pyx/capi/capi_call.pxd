# The calls of the C API that launch: packed and launched without the GIL, without allocating.
from libc.stdint cimport int32_t

from kvit.capi cimport kvit_append_extras, kvit_op, kvit_page_table, kvit_stream, kvit_tensor, kvit_view

# The functions of kvit_api.
cdef int32_t attention(kvit_op *op, kvit_view *view, const kvit_page_table *table, const kvit_tensor *q,
                       const kvit_tensor *out, const kvit_tensor *lse, const kvit_tensor *query_indptr,
                       kvit_stream stream) noexcept nogil
cdef int32_t attention_masked(kvit_op *op, kvit_view *view, const kvit_page_table *table, const kvit_tensor *q,
                              const kvit_tensor *out, const kvit_tensor *lse, const kvit_tensor *query_indptr,
                              const kvit_tensor *spans, const kvit_tensor *tree, kvit_stream stream) noexcept nogil
cdef int32_t append(kvit_op *op, kvit_view *view, const kvit_page_table *table, const kvit_tensor *k,
                    const kvit_tensor *v, const kvit_tensor *query_indptr, kvit_stream stream) noexcept nogil
cdef int32_t append_rotated(kvit_op *op, kvit_view *view, const kvit_page_table *table, const kvit_tensor *k,
                            const kvit_tensor *v, const kvit_tensor *query_indptr, const kvit_append_extras *extras,
                            kvit_stream stream) noexcept nogil
cdef int32_t gather(kvit_op *op, kvit_view *view, const kvit_page_table *table, const kvit_tensor *k,
                    const kvit_tensor *v, const kvit_tensor *query_indptr, kvit_stream stream) noexcept nogil
