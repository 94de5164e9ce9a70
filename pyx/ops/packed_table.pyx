# cython: cdivision=True
"""A page table as kernels take it, packed once."""
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memset

from kvit._native.overlaps cimport extent_at, meet
from kvit._native.packers cimport memory_of
from kvit._native.spans cimport use

from kvit.errors import refuse_copy


cdef class PackedTable:
    """A page table as kernels take it, all int32: pages [sequences, slots], or [entries] with `indptr`."""

    def __cinit__(self, Tensor pages not None, Tensor indptr, Tensor lengths not None):
        self.pages = pages
        self.indptr = indptr
        self.lengths = lengths
        pack_table(&self.value, &pages.memory, memory_of(indptr), &lengths.memory)
        self.extents[0] = extent_at(&pages.memory)
        if indptr is not None:
            self.extents[1] = extent_at(&indptr.memory)
        self.extents[2] = extent_at(&lengths.memory)


cdef class HoldsTable:
    """Base of kvit.PageTable."""

    def __reduce_ex__(self, protocol):
        refuse_copy(self, "it stands for memory of its owner; make another of the same arrays")


cdef void pack_table(KvitPageTable *table, const kvit_tensor *pages, const kvit_tensor *indptr,
                     const kvit_tensor *lengths) noexcept nogil:
    memset(table, 0, sizeof(KvitPageTable))
    table.pages = <const int32_t *>pages.data
    table.lengths = <const int32_t *>lengths.data
    table.num_sequences = <int32_t>lengths.shape[0]
    table.max_pages = <int32_t>pages.shape[pages.ndim - 1]
    if indptr == NULL:
        table.row_stride = pages.strides[0] // <int64_t>sizeof(int32_t)
    else:
        table.indptr = <const int32_t *>indptr.data


cdef bint meets_table(const kvit_tensor *memory, PackedTable table) noexcept:
    cdef Extent extent
    if memory == NULL:
        return False
    extent = extent_at(memory)
    if not crosses_table(&extent, table):
        return False
    return (meet(memory, &table.pages.memory) or meet(memory, memory_of(table.indptr))
            or meet(memory, &table.lengths.memory))


cdef int use_table(Spans *spans, Stream stream, PackedTable table) except -1:
    use(spans, stream, table.pages, False)
    use(spans, stream, table.indptr, False)
    return use(spans, stream, table.lengths, False)
