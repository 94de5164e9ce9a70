# How rows, sums and numbers of tokens stand in launch structs. All was checked by the caller.
from libc.stdint cimport int64_t

from kvit._native.params cimport KvitLse, KvitRows, KvitTokens
from kvit._native.tensor cimport Tensor
from kvit.capi cimport kvit_tensor

# The description of a tensor's memory, and its address; NULL for None.
cdef const kvit_tensor *memory_of(Tensor tensor) noexcept
cdef const void *address_of(Tensor tensor) noexcept

# [tokens, heads, channels].
cdef void pack_rows(KvitRows *rows, const kvit_tensor *memory) noexcept nogil

# float32 [tokens, heads]; NULL: nobody wants them.
cdef void pack_lse(KvitLse *lse, const kvit_tensor *memory) noexcept nogil

# `total` rows: so many of each sequence, or as indptr, int32 [sequences + 1], says where it is not NULL.
cdef void pack_tokens(KvitTokens *tokens, const kvit_tensor *indptr, int each, int64_t total) noexcept nogil
