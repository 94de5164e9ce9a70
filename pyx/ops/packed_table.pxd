# A page table as kernels take it, packed once.
from kvit._native.overlaps cimport Extent, cross
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

# Whether an extent crosses the table's numbers: what does not, does not lie over them.
cdef inline bint crosses_table(const Extent *extent, PackedTable table) noexcept:
    return (cross(extent, &table.extents[0]) or cross(extent, &table.extents[1])
            or cross(extent, &table.extents[2]))

# Whether these elements lie over the table's numbers. False for NULL.
cdef bint meets_table(const kvit_tensor *memory, PackedTable table) noexcept

cdef int use_table(Spans *spans, Stream stream, PackedTable table) except -1
