# New tokens of sequences that are not there yet: which pages they take, and which must be copied first.
from libc.stdint cimport int32_t, int64_t

from kvit._native.page_lists cimport PageList, PageLists


cdef struct GrowthRow:
    int64_t version                    # of the sequence's list
    int64_t length                     # tokens, the new ones included
    int32_t new_tokens
    int32_t num_taken                  # pages, that of a copy included, which comes first
    int32_t taken_from                 # the first of these, in `taken`
    int32_t copied                     # a page that others have too, left for a copy of it; -1: none


cdef class Growth:
    cdef PageLists lists
    cdef readonly tuple sequences
    cdef GrowthRow *rows
    cdef PageList *taken               # in the pool's list as long as this is open
    cdef readonly int num_copies

    cdef void end(self) noexcept
    # The pages of sequence i with its new tokens. `into` has room for them.
    cdef void write_pages(self, int i, int32_t *into) noexcept
    cdef int32_t num_pages(self, int i) noexcept
    cdef int32_t page_at(self, int i, int slot) noexcept


# Raises ShapeError, SequenceFreed unless all are live sequences of the pool, and different ones if they must be.
cdef int check_members(PageLists pool, tuple sequences, bint distinct) except -1
