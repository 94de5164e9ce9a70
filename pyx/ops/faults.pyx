"""Where kernels report what they find wrong with a page table."""
from kvit.errors import refuse_copy


cdef class HoldsFaults:
    """Base of the record of faults that operations share."""

    def __reduce_ex__(self, protocol):
        refuse_copy(self, "kernels write it; make another")
