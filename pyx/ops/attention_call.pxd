# A call of kvit.Attention: what fits as it is goes straight to the kernel, all else through Python first.
from libc.stdint cimport int64_t

from kvit._native.attention_launch cimport AttentionLaunch
from kvit._native.cache_call cimport CacheCall
from kvit._native.tensor cimport Tensor


cdef class AttentionCall(CacheCall):
    cdef AttentionLaunch launch        # C's alone: Python's attribute of the name is the word that the caller chose
    cdef int query_heads
    cdef int query_dtype               # enum KvitDtype of queries and outputs

    cdef int fits(self, Tensor q, object view, object table, Tensor out, Tensor lse, Tensor indptr, Tensor spans,
                  Tensor tree) noexcept
    cdef bint are_arrays_right(self, Tensor out, Tensor lse, Tensor spans, Tensor tree, int64_t tokens) noexcept
    cdef bint are_heads(self, Tensor rows, int64_t tokens, int channels, bint is_written) noexcept
