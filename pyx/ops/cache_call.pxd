# What calls on a cache ask of their arguments in C. Python's checks run only where an answer is no, and say why.
from libc.stdint cimport int64_t

from kvit._native.context cimport Device
from kvit._native.ops cimport HoldsFaults, PackedCache, PackedTable
from kvit._native.tensor cimport Tensor


cdef class CacheCall:
    cdef HoldsFaults faults            # where kernels report; keeps the stream of the last call
    cdef Device home
    cdef int device_type
    cdef int device_id
    cdef int kv_heads
    cdef int head_dim
    cdef int k_code                    # enum KvitDtype of the cache
    cdef int v_code
    cdef int cache_code

    # Takes down the shape and types that the call is for; the cache itself is not kept.
    cdef int made_for(self, Device home, HoldsFaults faults, PackedCache cache) except -1

    # Of so many rows each sequence has these, 0 with `tokens`; -1 where rows, table and tokens do not fit each other.
    cdef int rows_of_each(self, int64_t rows, PackedTable table, Tensor tokens) noexcept
    cdef bint is_here(self, Tensor tensor) noexcept
    cdef bint is_cache(self, PackedCache cache) noexcept
    # [tokens, heads, head_dim] of a type, on the device of the call, readable in vectors.
    cdef bint are_rows(self, Tensor rows, int heads, int code) noexcept
    cdef bint is_indptr(self, Tensor tokens, int num_sequences) noexcept
