# Where kernels report what they find wrong with a page table.
from kvit._native.buffer cimport Buffer
from kvit._native.stream cimport Stream


# What the record of faults derives from: a call finds these without a look-up.
cdef class HoldsFaults:
    cdef public Buffer buffer          # int32 [4], a KvitFault
    cdef public Stream last_stream     # of the last call whose kernel may have written it
