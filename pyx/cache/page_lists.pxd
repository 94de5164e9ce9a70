# Which pages each sequence has: counted in C, where nothing can come between two steps of a change.
from libc.stdint cimport int32_t, int64_t


# The pages of one sequence, or those that an open growth has taken.
cdef struct PageList:
    int32_t *ids
    int32_t count                      # of pages: as many as hold the tokens
    int32_t room                       # for ids
    int32_t length                     # tokens
    bint is_growing                    # by a Growth that is open
    int64_t version                    # another one after every change
    int64_t mark                       # of the call that looked at it last
    PageList *previous
    PageList *next


# Base of kvit.PagePool.
cdef class PageLists:
    cdef readonly int num_pages
    cdef readonly int page_size
    cdef int32_t *counts               # how many lists have each page
    cdef int32_t *free_pages           # a stack: the next one to be taken comes last
    cdef int32_t num_free_pages
    cdef int64_t clock                 # versions and marks that were given
    cdef PageList ends                 # in front of the first list, and behind the last one


# Base of kvit.Sequence.
cdef class PooledSequence:
    cdef object __weakref__
    cdef PageLists lists
    cdef PageList *held                # NULL: freed, or not in a pool yet

    # Raises SequenceFreed.
    cdef PageList *live(self) except NULL


cdef PageList *new_list(int32_t room) except NULL

# Makes room for so many ids; the list stays as it is. Raises MemoryError.
cdef int make_room(PageList *pages, int32_t room) except -1

# Puts a list behind all others of the pool.
cdef void link(PageLists pool, PageList *pages) noexcept

# Gives the list's pages back, takes it out of the pool and frees it.
cdef void drop(PageLists pool, PageList *pages) noexcept

# One owner less of each page; one that has none left is free.
cdef void release(PageLists pool, const int32_t *ids, int32_t count) noexcept

# Counts anew who has each page, and which are free: the lowest is taken first.
cdef void recount(PageLists pool) noexcept

# Another version of a list that was changed.
cdef inline void changed(PageLists pool, PageList *pages) noexcept:
    pool.clock += 1
    pages.version = pool.clock

cdef inline int64_t pages_for(int64_t tokens, int64_t page_size) noexcept:
    return (tokens + page_size - 1) // page_size
