# A call of kvit.Attention: what fits as it is goes straight to the kernel, all else through Python first.
from libc.stdint cimport int64_t

from kvit._native.context cimport Device
from kvit._native.ops cimport AttentionLaunch, HoldsFaults, PackedCache
from kvit._native.tensor cimport Tensor


cdef class AttentionCall:
    cdef AttentionLaunch launch
    cdef HoldsFaults faults
    cdef Device home
    cdef int device_type
    cdef int device_id
    cdef int query_heads
    cdef int kv_heads
    cdef int head_dim
    cdef int code                      # enum KvitDtype of queries and outputs
    cdef int k_code                    # and of the cache
    cdef int v_code
    cdef int cache_code

    cdef int rows_of_each(self, Tensor q, object view, object table, Tensor out, Tensor lse, Tensor tokens) noexcept
    cdef bint is_here(self, Tensor tensor) noexcept
    cdef bint is_cache(self, PackedCache cache) noexcept
    cdef bint is_rows(self, Tensor rows) noexcept
    cdef bint is_lse(self, Tensor lse, int64_t tokens) noexcept
    cdef bint is_indptr(self, Tensor tokens, int num_sequences) noexcept
