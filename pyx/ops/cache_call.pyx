"""What calls on a cache have in common. Python's checks run only where a question of checks is answered by no."""
from kvit._native.checks cimport is_on, rows_of_each
from kvit._native.packers cimport memory_of

from kvit.errors import refuse_copy


cdef class CacheCall:
    """Base of the calls of kvit.Attention, kvit.Append and kvit.Gather, each made for one shape of cache."""

    def __reduce_ex__(self, protocol):
        refuse_copy(self, "make another for the same view; operations can share a record of faults and a workspace")

    cdef int made_for(self, Device device, HoldsFaults faults, PackedCache cache) except -1:
        self.dev = device
        self.faults = faults
        self.type = cache.type
        return 0

    cdef int fitting_each(self, int64_t rows, PackedTable table, Tensor indptr) noexcept:
        if not is_on(&table.lengths.memory, self.type.device):
            return -1
        return rows_of_each(rows, table.value.num_sequences, memory_of(indptr), self.type.device)
