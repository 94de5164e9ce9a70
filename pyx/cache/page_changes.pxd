# Pages that sequences get all at once, once their rows are on the way there.
from libc.stdint cimport int32_t

from kvit._native.page_lists cimport PageList, PageLists


cdef class PageChange:
    cdef PageLists pool
    cdef tuple sequences               # that get other lists; None: all pages get other ids
    cdef PageList **lists              # of each sequence
    cdef int32_t *ids                  # the new id of each page
    cdef readonly bint made

    cdef void make(self) noexcept
