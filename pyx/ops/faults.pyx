"""Where kernels report what they find wrong with a page table."""


cdef class HoldsFaults:
    """Base of the record of faults that operations share."""
