# A page table as kernels take it, packed once.
from kvit._native.overlaps cimport Extent
from kvit._native.params cimport KvitPageTable
from kvit._native.spans cimport Spans
from kvit._native.stream cimport Stream
from kvit._native.tensor cimport Tensor
from kvit.capi cimport kvit_tensor


cdef class PackedTable:
    cdef KvitPageTable value
    cdef readonly Tensor pages
    cdef readonly Tensor indptr
    cdef readonly Tensor lengths
    cdef Extent[3] extents             # of pages, indptr and lengths


# What kvit.PageTable derives from: a call finds `packed` without a look-up.
cdef class HoldsTable:
    cdef public PackedTable packed


# Packs int32 tensors that were checked: pages [sequences, slots], or [entries] with indptr [sequences + 1], else NULL.
cdef void pack_table(KvitPageTable *table, const kvit_tensor *pages, const kvit_tensor *indptr,
                     const kvit_tensor *lengths) noexcept nogil

# Whether these elements lie over the table's numbers. False for NULL.
cdef bint meets_table(const kvit_tensor *memory, PackedTable table) noexcept

cdef int use_table(Spans *spans, Stream stream, PackedTable table) except -1
