"""How rows, sums and numbers of tokens stand in launch structs. All was checked by the caller."""
from libc.stdint cimport int32_t
from libc.string cimport memset


cdef const kvit_tensor *memory_of(Tensor tensor) noexcept:
    return NULL if tensor is None else &tensor.memory


cdef const void *address_of(Tensor tensor) noexcept:
    return NULL if tensor is None else tensor.memory.data


cdef void pack_rows(KvitRows *rows, const kvit_tensor *memory) noexcept nogil:
    rows.base = memory.data
    rows.token_stride = memory.strides[0]
    rows.head_stride = memory.strides[1]


cdef void pack_lse(KvitLse *lse, const kvit_tensor *memory) noexcept nogil:
    memset(lse, 0, sizeof(KvitLse))
    if memory != NULL:
        lse.base = <float *>memory.data
        lse.token_stride = memory.strides[0]
        lse.head_stride = memory.strides[1]


cdef void pack_tokens(KvitTokens *tokens, const kvit_tensor *indptr, int each, int64_t total) noexcept nogil:
    tokens.indptr = NULL
    if indptr != NULL:
        tokens.indptr = <const int32_t *>indptr.data
    tokens.each = each
    tokens.total = <int32_t>total
