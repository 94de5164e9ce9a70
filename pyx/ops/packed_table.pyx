# cython: cdivision=True
"""A page table as kernels take it, packed once."""
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memset

from kvit._native.checks cimport DeviceId, are_entries, are_entry_rows, device_id_of
from kvit._native.import_array cimport as_tensor
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

    @staticmethod
    def fitting(pages, indptr, lengths):
        """The table of arrays that fit as they are; None for others, of which Python's checks say what is wrong.

        Raises what Tensor.wrap does.
        """
        cdef Tensor of_lengths = as_tensor(lengths)
        cdef Tensor of_pages = as_tensor(pages)
        cdef Tensor of_indptr = None if indptr is None else as_tensor(indptr)
        cdef DeviceId device = device_id_of(of_lengths)
        cdef int64_t sequences = of_lengths.memory.shape[0]
        if not are_entries(&of_lengths.memory, device, -1):
            return None
        if of_indptr is None:
            if not are_entry_rows(&of_pages.memory, device, sequences):
                return None
        elif not (are_entries(&of_pages.memory, device, -1)
                  and are_entries(&of_indptr.memory, device, sequences + 1)):
            return None
        return PackedTable(of_pages, of_indptr, of_lengths)


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
