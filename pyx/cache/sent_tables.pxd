# Page tables of a cache's calls on its device, and what they hold, on the host: only what differs is sent.
from libc.stdint cimport int32_t, int64_t

from kvit._native.buffer cimport Buffer
from kvit._native.growth cimport Growth
from kvit._native.stream cimport Stream
from kvit._native.tensor cimport Tensor


# Numbers of a table that were changed on the host and must be sent: [low, high).
cdef struct Span:
    int64_t low
    int64_t high


# In one block of int32: lengths [sequences], rows and starts [sequences + 1] each, and entries, some of them unused.
cdef class SentTable:
    cdef readonly object table         # a kvit.PageTable of the block
    cdef readonly Tensor all_rows      # where each sequence's new tokens begin
    cdef readonly Tensor rows          # the same; None while all sequences have as many
    cdef readonly int num_sequences
    cdef int64_t capacity              # entries
    cdef Buffer block
    cdef int32_t *mirror               # what the block holds
    cdef int32_t *scratch              # entries of one sequence
    cdef int64_t scratch_room
    cdef Stream stream
    cdef bint is_filled
    cdef bint is_captured              # by a graph, which reads it at every launch

    cdef bint fill(self, tuple sequences, Growth growth, const int32_t *counts, Span *head, Span *entries) except -1
    cdef bint holds(self, tuple sequences, Growth growth, const int32_t *counts) noexcept
    cdef bint place(self, tuple sequences, Growth growth) noexcept
    cdef int send(self, Span head, Span entries) except -1


cdef class SentTables:
    cdef object make_table             # kvit.PageTable
    cdef int most                      # that are kept
    cdef int32_t *counts               # rows of each sequence of a call
    cdef int counts_room
    cdef readonly list kept            # SentTable; the one that was used last comes last

    cdef int set_counts(self, int n, object new_tokens) except -1
