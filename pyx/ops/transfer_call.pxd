# A call of kvit.Append or kvit.Gather: what fits as it is goes straight to the kernel, all else through Python.
from libc.stdint cimport int64_t

from kvit._native.cache_call cimport CacheCall
from kvit._native.kernel_graph cimport KernelGraph
from kvit._native.module cimport Kernel
from kvit._native.packed_cache cimport PackedCache
from kvit._native.packed_table cimport PackedTable
from kvit._native.row_ops cimport WarpShares
from kvit._native.tensor cimport Tensor


cdef class TransferCall(CacheCall):
    cdef object entry                  # kvit.selection.registry.KernelInfo
    cdef Kernel kernel                 # None until the first call, or until there is a graph of it
    cdef readonly KernelGraph _graph   # that launches it; None: it is launched itself
    cdef WarpShares shares             # of its warps
    cdef bint into_pages               # append; else gather

    cdef bint fits(self, Tensor k, Tensor v, PackedCache cache) noexcept
    cdef bint are_apart(self, Tensor rows, PackedCache cache, PackedTable table, Tensor query_indptr) noexcept
    cdef bint are_transferred(self, Tensor rows, int64_t tokens, int channels, bint is_written) noexcept
