# What calls on a cache have in common: where they report, and what cache they are for.
from libc.stdint cimport int64_t

from kvit._native.context cimport Device
from kvit._native.faults cimport HoldsFaults
from kvit._native.packed_cache cimport CacheType, PackedCache
from kvit._native.packed_table cimport PackedTable
from kvit._native.tensor cimport Tensor


cdef class CacheCall:
    cdef HoldsFaults faults            # where kernels report; keeps the stream of the last call
    cdef Device dev
    cdef CacheType type                # of the cache that the call is for

    # Takes down the shape and types that the call is for; the cache itself is not kept.
    cdef int made_for(self, Device device, HoldsFaults faults, PackedCache cache) except -1

    # Of so many rows each sequence has these, 0 with indptr; -1 where rows, table and indptr do not fit each other.
    cdef int fitting_each(self, int64_t rows, PackedTable table, Tensor indptr) noexcept
