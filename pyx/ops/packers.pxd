# How rows, sums and numbers of tokens stand in launch structs. All was checked by the caller.
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memset

from kvit._native.params cimport KvitLse, KvitRows, KvitTokens
from kvit._native.tensor cimport Tensor
from kvit.capi cimport kvit_tensor


# The description of a tensor's memory; NULL for None.
cdef inline const kvit_tensor *memory_of(Tensor tensor) noexcept:
    return NULL if tensor is None else &tensor.memory


# Its address; NULL for None.
cdef inline const void *address_of(Tensor tensor) noexcept:
    return NULL if tensor is None else tensor.memory.data


# [tokens, heads, channels].
cdef inline void pack_rows(KvitRows *rows, const kvit_tensor *memory) noexcept nogil:
    rows.base = memory.data
    rows.token_stride = memory.strides[0]
    rows.head_stride = memory.strides[1]


# float32 [tokens, heads]; NULL: nobody wants them.
cdef inline void pack_lse(KvitLse *lse, const kvit_tensor *memory) noexcept nogil:
    memset(lse, 0, sizeof(KvitLse))
    if memory != NULL:
        lse.base = <float *>memory.data
        lse.token_stride = memory.strides[0]
        lse.head_stride = memory.strides[1]


# `total` rows: so many of each sequence, or as indptr, int32 [sequences + 1], says where it is not NULL.
cdef inline void pack_tokens(KvitTokens *tokens, const kvit_tensor *indptr, int each, int64_t total) noexcept nogil:
    tokens.indptr = NULL
    if indptr != NULL:
        tokens.indptr = <const int32_t *>indptr.data
    tokens.each = each
    tokens.total = <int32_t>total
