"""Pages that sequences get all at once: prepared before their rows move, made in one step when these are on the way."""
from libc.stdlib cimport calloc, free, malloc

from kvit._native.page_lists cimport PooledSequence, changed, new_list, recount

from kvit.errors import refuse_copy


cdef class PageChange:
    """Other pages of sequences. `change.is_made = True` makes it, which cannot fail and is done once.

    sequences, after  which sequences get what: (pages that they have or that are free, tokens) of each. Or:
    moves             old id -> new id of pages, in every list that has them
    """

    def __cinit__(self, PageLists pool not None, *, tuple sequences=None, after=None, dict moves=None):
        cdef int i, j, count = 0 if sequences is None else len(sequences)
        self.pool = pool
        self.sequences = sequences
        if sequences is None:
            self.ids = <int32_t *>malloc(pool.num_pages * sizeof(int32_t))
            if self.ids == NULL:
                raise MemoryError
            for i in range(pool.num_pages):
                self.ids[i] = moves.get(i, i)
            return
        self.lists = <PageList **>calloc(max(count, 1), sizeof(PageList *))
        if self.lists == NULL:
            raise MemoryError
        for i in range(count):
            pages, length = after[i]
            self.lists[i] = new_list(len(pages))
            self.lists[i].count, self.lists[i].length = len(pages), length
            for j in range(len(pages)):
                self.lists[i].ids[j] = pages[j]

    def __dealloc__(self):
        cdef int i
        if self.lists != NULL:
            for i in range(len(self.sequences)):
                if self.lists[i] != NULL:
                    free(self.lists[i].ids)
                    free(self.lists[i])
        free(self.lists)
        free(self.ids)

    @property
    def is_made(self) -> bool:
        """Whether sequences have what they were to get."""
        return self.made

    @is_made.setter
    def is_made(self, bint _):
        if not self.made:
            self.made = True
            self.make()

    cdef void make(self) noexcept:
        cdef PageList *held
        cdef PageList *given
        cdef int i
        if self.sequences is None:
            held = self.pool.ends.next
            while held != &self.pool.ends:
                for i in range(held.count):
                    held.ids[i] = self.ids[held.ids[i]]
                changed(self.pool, held)
                held = held.next
        else:
            for i in range(len(self.sequences)):
                held, given = (<PooledSequence>self.sequences[i]).held, self.lists[i]
                if held != NULL:  # else it was freed meanwhile
                    held.ids, given.ids = given.ids, held.ids
                    held.room, given.room = given.room, held.room
                    held.count, held.length = given.count, given.length
                    changed(self.pool, held)
        recount(self.pool)

    def __reduce_ex__(self, protocol):
        refuse_copy(self, "it is made once")
