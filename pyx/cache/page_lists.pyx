# cython: cdivision=True
"""Which pages each sequence has, and how many have each page: in C, where nothing comes between two steps."""
cimport cython
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset

from kvit._native.whole_numbers cimport number_in

from kvit.errors import KvitError, SequenceFreed, ShapeError, refuse_copy

cdef enum:
    MOST = 0x7FFFFFFF


cdef class PageLists:
    """The lists of a pool's pages, in the order in which they were made, and who has each page.

    Every change is made in C, after all that can fail: an exception, a signal's or MemoryError, finds the pool before
    the change or after it.
    """

    def __cinit__(self, num_pages, page_size):
        self.ends.next = self.ends.previous = &self.ends
        self.num_pages = number_in("num_pages", num_pages, 1, MOST)
        self.page_size = number_in("page_size", page_size, 1, MOST)
        self.counts = <int32_t *>calloc(self.num_pages, sizeof(int32_t))
        self.free_pages = <int32_t *>malloc(self.num_pages * sizeof(int32_t))
        if self.counts == NULL or self.free_pages == NULL:
            raise MemoryError
        recount(self)

    def __dealloc__(self):  # no list is left: sequences and growths keep their pool
        free(self.counts)
        free(self.free_pages)

    @property
    def num_free(self) -> int:
        """Pages that no sequence has, nor a growth that is open."""
        return self.num_free_pages

    @property
    def num_tokens(self) -> int:
        """Tokens of all sequences, those of open growths not counted."""
        cdef PageList *pages = self.ends.next
        cdef int64_t found = 0
        while pages != &self.ends:
            found += pages.length
            pages = pages.next
        return found

    def owners(self, page) -> int:
        """How many sequences have a page. Raises ShapeError."""
        return self.counts[<int>number_in("page", page, 0, self.num_pages - 1)]

    def used(self) -> list:
        """Pages that somebody has, in ascending order."""
        cdef int page
        found = []
        for page in range(self.num_pages):
            if self.counts[page] != 0:
                found.append(page)
        return found

    def next_free(self, count) -> list:
        """The pages that are taken next, at most `count`; they stay free."""
        cdef int i
        found = []
        for i in range(min(count, self.num_free_pages)):
            found.append(self.free_pages[self.num_free_pages - 1 - i])
        return found

    def all_pages(self) -> list:
        """The pages of every list, lists in the order in which they were made; those of open growths too."""
        cdef PageList *pages = self.ends.next
        found = []
        while pages != &self.ends:
            found.append(ids_of(pages))
            pages = pages.next
        return found

    def enter(self, PooledSequence sequence not None):
        """Put a sequence without tokens into the pool."""
        cdef PageList *pages
        require_new(sequence)
        pages = new_list(4)
        sequence.lists = self
        link(self, pages)
        sequence.held = pages

    def __reduce_ex__(self, protocol):
        refuse_copy(self, "it counts who has each page of one cache")


@cython.no_gc_clear
cdef class PooledSequence:
    """A growing list of tokens in the pages of a pool. Its pages go back by free(), or when nothing refers to it."""

    def __dealloc__(self):
        if self.held != NULL:
            drop(self.lists, self.held)

    cdef PageList *live(self) except NULL:
        if self.held == NULL:
            raise SequenceFreed("this sequence was freed; take a new one from cache.sequence()")
        return self.held

    @property
    def pool(self) -> PageLists:
        """The pool that the pages are of; it lives as long as the sequence."""
        return self.lists

    @property
    def pages(self) -> tuple:
        """Ids of the pages that hold the tokens, in order. Raises SequenceFreed."""
        return ids_of(self.live())

    @property
    def is_freed(self) -> bool:
        """Whether its pages went back to the pool."""
        return self.held == NULL

    def __len__(self):
        return 0 if self.held == NULL else self.held.length

    def fork(self) -> PooledSequence:
        """A second sequence of the same tokens in the same pages. Raises SequenceFreed."""
        cdef PooledSequence twin = PooledSequence.__new__(type(self))
        self.share_with(twin)
        return twin

    def share_with(self, PooledSequence twin not None):
        """Let `twin`, which is in no pool yet, have the same tokens in the same pages. Raises SequenceFreed."""
        cdef PageList *held = self.live()
        cdef PageList *pages
        require_new(twin)
        pages = new_list(held.count)
        memcpy(pages.ids, held.ids, held.count * sizeof(int32_t))
        pages.count, pages.length = held.count, held.length
        for i in range(held.count):
            self.lists.counts[held.ids[i]] += 1
        twin.lists = self.lists
        link(self.lists, pages)
        twin.held = pages

    def truncate(self, length):
        """Keep the first `length` tokens and give back the pages that hold none of them.

        Raises ShapeError (length negative, or more than there are), SequenceFreed.
        """
        length = number_in("length", length, float("-inf"), float("inf"))
        cdef PageList *held = self.live()
        cdef int32_t kept
        if not 0 <= length <= held.length:
            raise ShapeError(
                f"cannot truncate a sequence of {held.length} tokens to {length}; give 0 to {held.length}"
            )
        held.length = length
        kept = <int32_t>pages_for(held.length, self.lists.page_size)
        release(self.lists, held.ids + kept, held.count - kept)
        held.count = kept
        changed(self.lists, held)

    def free(self):
        """Give all pages back. Any use after this raises SequenceFreed; freeing again does nothing."""
        cdef PageList *held = self.held
        if held != NULL:
            self.held = NULL
            drop(self.lists, held)

    def __reduce_ex__(self, protocol):
        refuse_copy(self, "its pages are counted; sequence.fork() gives a second one of the same tokens")

    def __repr__(self):
        if self.held == NULL:
            return f"<{type(self).__name__} freed>"
        return f"<{type(self).__name__} of {self.held.length} tokens in {self.held.count} pages>"


cdef int require_new(PooledSequence sequence) except -1:
    if sequence.lists is not None:
        raise KvitError("the sequence is in a pool already; take a new one from cache.sequence()")
    return 0


cdef tuple ids_of(const PageList *pages):
    cdef int i
    found = []
    for i in range(pages.count):
        found.append(pages.ids[i])
    return tuple(found)


cdef PageList *new_list(int32_t room) except NULL:
    cdef PageList *pages = <PageList *>malloc(sizeof(PageList))
    if pages == NULL:
        raise MemoryError
    memset(pages, 0, sizeof(PageList))
    pages.room = max(room, 1)
    pages.ids = <int32_t *>malloc(pages.room * sizeof(int32_t))
    if pages.ids == NULL:
        free(pages)
        raise MemoryError
    return pages


cdef int make_room(PageList *pages, int32_t room) except -1:
    cdef void *moved
    if room > pages.room:
        room += room // 4  # so that a sequence that grows page by page moves seldom
        moved = realloc(pages.ids, room * sizeof(int32_t))
        if moved == NULL:
            raise MemoryError
        pages.ids = <int32_t *>moved
        pages.room = room
    return 0


cdef void link(PageLists pool, PageList *pages) noexcept:
    pages.previous, pages.next = pool.ends.previous, &pool.ends
    pages.previous.next = pages
    pages.next.previous = pages
    changed(pool, pages)


cdef void drop(PageLists pool, PageList *pages) noexcept:
    pages.previous.next = pages.next
    pages.next.previous = pages.previous
    release(pool, pages.ids, pages.count)
    free(pages.ids)
    free(pages)


cdef void release(PageLists pool, const int32_t *ids, int32_t count) noexcept:
    cdef int32_t i
    for i in range(count):
        pool.counts[ids[i]] -= 1
        if pool.counts[ids[i]] == 0:
            pool.free_pages[pool.num_free_pages] = ids[i]
            pool.num_free_pages += 1


cdef void recount(PageLists pool) noexcept:
    cdef PageList *pages = pool.ends.next
    cdef int32_t i
    memset(pool.counts, 0, pool.num_pages * sizeof(int32_t))
    while pages != &pool.ends:
        for i in range(pages.count):
            pool.counts[pages.ids[i]] += 1
        pages = pages.next
    pool.num_free_pages = 0
    for i in range(pool.num_pages - 1, -1, -1):
        if pool.counts[i] == 0:
            pool.free_pages[pool.num_free_pages] = i
            pool.num_free_pages += 1
