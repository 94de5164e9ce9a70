# cython: cdivision=True
"""New tokens of sequences that are not there yet: taken as a whole, kept as a whole, or dropped without a trace."""
cimport cython
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from kvit._native.page_lists cimport (
    PooledSequence, changed, drop, link, make_room, new_list, pages_for, release,
)

from kvit.errors import CacheFull, KvitError, ShapeError, refuse_copy

cdef enum:
    MOST = 0x7FFFFFFF


@cython.no_gc_clear
cdef class Growth:
    """Room for new tokens of sequences, which grow when it is kept. Dropped, it leaves nothing.

    pool        that all sequences are of
    sequences   different ones
    new_tokens  of each, or one number for all, none negative

    New tokens go into the last page of a sequence while it has room. If other sequences have that page too it is copied
    first, except by the longest that does: of two forks that grow together, one copies and the other does not.

    Raises CacheFull, SequenceFreed, ShapeError, KvitError (a sequence is in another growth that is open).
    """

    def __cinit__(self, PageLists pool not None, tuple sequences not None, new_tokens):
        cdef int i, n = len(sequences)
        cdef int64_t needed
        cdef PageList *held
        self.lists = pool
        self.sequences = ()
        check_members(pool, sequences, True)
        self.rows = <GrowthRow *>calloc(max(n, 1), sizeof(GrowthRow))
        if self.rows == NULL:
            raise MemoryError
        for i in range(n):
            if (<PooledSequence>sequences[i]).held.is_growing:
                raise KvitError(f"seqs[{i}] is in a step that is still open; commit that one, or close it")
            self.rows[i].new_tokens = new_tokens[i] if type(new_tokens) is list else new_tokens
        needed = plan(pool, sequences, self.rows, &self.num_copies)
        if needed > pool.num_free_pages:
            raise CacheFull(
                f"the cache needs {needed} more pages and has {pool.num_free_pages} free of {pool.num_pages}; "
                "free or truncate sequences, or make a cache of more pages"
            )
        for i in range(n):
            held = (<PooledSequence>sequences[i]).held
            make_room(held, held.count + self.rows[i].num_taken)
        self.taken = new_list(<int32_t>needed)
        # Nothing fails from here on.
        for i in range(<int>needed):
            pool.num_free_pages -= 1
            self.taken.ids[i] = pool.free_pages[pool.num_free_pages]
            pool.counts[self.taken.ids[i]] = 1
        self.taken.count = <int32_t>needed
        link(pool, self.taken)
        self.sequences = sequences
        for i in range(n):
            (<PooledSequence>sequences[i]).held.is_growing = True

    def __dealloc__(self):
        if self.taken != NULL:
            self.end()
        free(self.rows)

    cdef void end(self) noexcept:
        """Give back the pages that nobody got, and let the sequences grow in other ways."""
        cdef PooledSequence sequence
        drop(self.lists, self.taken)
        self.taken = NULL
        for sequence in self.sequences:
            if sequence.held != NULL:
                sequence.held.is_growing = False

    @property
    def is_open(self) -> bool:
        """Whether it was neither kept nor closed."""
        return self.taken != NULL

    @property
    def is_current(self) -> bool:
        """Whether it is open, and no sequence of it was changed since."""
        cdef PooledSequence sequence
        cdef int i
        if self.taken == NULL:
            return False
        for i in range(len(self.sequences)):
            sequence = <PooledSequence>self.sequences[i]
            if sequence.held == NULL or sequence.held.version != self.rows[i].version:
                return False
        return True

    @property
    def copies(self) -> list:
        """(a part full page that others have too, the page that takes its place) of each that must be copied."""
        found = []
        if self.taken != NULL:
            for i in range(len(self.sequences)):
                if self.rows[i].copied >= 0:
                    found.append((self.rows[i].copied, self.taken.ids[self.rows[i].taken_from]))
        return found

    @property
    def pages(self) -> list:
        """Pages of each sequence that hold its tokens, the new ones included. Raises KvitError unless it is current."""
        cdef int i, j
        self.require_current()
        found = []
        for i in range(len(self.sequences)):
            ids = []
            for j in range(self.num_pages(i)):
                ids.append(self.page_at(i, j))
            found.append(tuple(ids))
        return found

    @property
    def lengths(self) -> list:
        """Tokens of each sequence, the new ones included."""
        cdef int i
        found = []
        for i in range(len(self.sequences)):
            found.append(self.rows[i].length)
        return found

    @property
    def new_tokens(self) -> list:
        """Of each sequence."""
        cdef int i
        found = []
        for i in range(len(self.sequences)):
            found.append(self.rows[i].new_tokens)
        return found

    def require_current(self):
        """Raise KvitError unless it is open, and no sequence of it was changed since."""
        if self.taken == NULL:
            raise KvitError("the step has ended: begin another one for new tokens")
        if not self.is_current:
            raise KvitError("the cache was changed while it appended; let one call end before the next begins")

    def keep(self):
        """Let the sequences have their new tokens. The pages that copies replace may go.

        Raises KvitError if a sequence was changed since, or the growth has ended.
        """
        cdef PageList *held
        cdef int32_t *taken
        cdef GrowthRow *row
        cdef int i
        cdef int32_t j
        self.require_current()
        for i in range(len(self.sequences)):
            held, row = (<PooledSequence>self.sequences[i]).held, &self.rows[i]
            taken = self.taken.ids + row.taken_from
            j = 0
            if row.copied >= 0:
                held.ids[held.count - 1] = taken[0]
                release(self.lists, &row.copied, 1)
                j = 1
            while j < row.num_taken:
                held.ids[held.count] = taken[j]
                held.count += 1
                j += 1
            held.length = <int32_t>row.length
            changed(self.lists, held)
        self.taken.count = 0  # they belong to the sequences
        self.end()

    def close(self):
        """Drop it, if it was not kept: its pages go back, and the sequences are what they were."""
        if self.taken != NULL:
            self.end()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    cdef int32_t num_pages(self, int i) noexcept:
        return <int32_t>pages_for(self.rows[i].length, self.lists.page_size)

    cdef void write_pages(self, int i, int32_t *into) noexcept:
        cdef PageList *held = (<PooledSequence>self.sequences[i]).held
        cdef int32_t first = held.count - (self.rows[i].copied >= 0)
        memcpy(into, held.ids, held.count * sizeof(int32_t))
        memcpy(into + first, self.taken.ids + self.rows[i].taken_from, self.rows[i].num_taken * sizeof(int32_t))

    cdef int32_t page_at(self, int i, int slot) noexcept:
        cdef PageList *held = (<PooledSequence>self.sequences[i]).held
        cdef int first = held.count - (self.rows[i].copied >= 0)
        return held.ids[slot] if slot < first else self.taken.ids[self.rows[i].taken_from + slot - first]

    def __reduce_ex__(self, protocol):
        refuse_copy(self, "its pages are counted")


def pages_needed(PageLists pool not None, tuple sequences not None, new_tokens) -> int:
    """Pages that `new_tokens` of each sequence would take, copies of shared ones included; none is taken."""
    cdef int i, copies = 0, n = len(sequences)
    cdef GrowthRow *rows
    check_members(pool, sequences, True)
    rows = <GrowthRow *>calloc(max(n, 1), sizeof(GrowthRow))
    if rows == NULL:
        raise MemoryError
    try:
        for i in range(n):
            rows[i].new_tokens = new_tokens[i] if type(new_tokens) is list else new_tokens
        return plan(pool, sequences, rows, &copies)
    finally:
        free(rows)


cdef int64_t plan(PageLists pool, tuple sequences, GrowthRow *rows, int *num_copies) except -1:
    """What each sequence takes, written into its row; how many pages that are."""
    cdef int i, n = len(sequences)
    cdef int64_t needed = 0, longest = 0, taken
    cdef int32_t last
    cdef PageList *held
    num_copies[0] = 0
    for i in range(n):
        held = (<PooledSequence>sequences[i]).held
        rows[i].version = held.version
        rows[i].length = <int64_t>held.length + rows[i].new_tokens
        longest = max(longest, rows[i].length)
        rows[i].copied = -1
        last = page_that_grows(pool, held, &rows[i])
        if last >= 0 and pool.counts[last] > 1:
            pool.counts[last] -= 1  # given back below
            rows[i].copied = last
            num_copies[0] += 1
    for i in range(n):
        if rows[i].copied >= 0:
            pool.counts[rows[i].copied] += 1
    if num_copies[0] != 0:
        let_the_longest_keep(pool, sequences, rows)
    for i in range(n):
        held = (<PooledSequence>sequences[i]).held
        taken = pages_for(rows[i].length, pool.page_size) - held.count + (rows[i].copied >= 0)
        rows[i].num_taken, rows[i].taken_from = <int32_t>taken, <int32_t>needed
        needed += taken
    if longest > MOST:
        raise ShapeError(f"a sequence would have {longest} tokens; kernels count at most {MOST}")
    return needed


cdef int32_t page_that_grows(PageLists pool, const PageList *held, const GrowthRow *row) noexcept:
    """The part full page that a sequence's new tokens go into; -1: none."""
    return held.ids[held.count - 1] if row.new_tokens != 0 and held.length % pool.page_size != 0 else -1


cdef void let_the_longest_keep(PageLists pool, tuple sequences, GrowthRow *rows) noexcept:
    """Of sequences that share a page and grow together, the longest keeps it, and the others have copies: if the growth
    is dropped they have the page itself, and what was written into it must lie behind their tokens."""
    cdef PageList *held
    cdef int32_t length, shortest = MOST
    cdef int i, j, n = len(sequences)
    for i in range(n):
        shortest = min(shortest, (<PooledSequence>sequences[i]).held.length if rows[i].copied < 0 else MOST)
    for j in range(n):
        length = (<PooledSequence>sequences[j]).held.length
        if rows[j].copied < 0 or length <= shortest:
            continue
        for i in range(n):
            held = (<PooledSequence>sequences[i]).held
            if rows[i].copied < 0 and page_that_grows(pool, held, &rows[i]) == rows[j].copied:
                if held.length < length:  # there is no other that keeps this page
                    rows[i].copied, rows[j].copied = rows[j].copied, -1
                break


cdef int check_members(PageLists pool, tuple sequences, bint distinct) except -1:
    cdef PooledSequence sequence
    cdef PageList *held
    cdef int i
    pool.clock += 1
    for i in range(len(sequences)):
        if not isinstance(sequences[i], PooledSequence):
            raise ShapeError(f"seqs[{i}] is a {type(sequences[i]).__name__}; give sequences from cache.sequence()")
        sequence = <PooledSequence>sequences[i]
        if sequence.lists is not pool and sequence.lists is not None:
            raise ShapeError(f"seqs[{i}] belongs to another cache; append, gather and attend each in its own")
        held = sequence.live()
        if distinct and held.mark == pool.clock:
            raise ShapeError(
                f"seqs[{i}] is seqs[{sequences.index(sequence)}] again; give each sequence once, with all its new "
                "tokens"
            )
        held.mark = pool.clock
    return 0


def check_all(PageLists pool not None, tuple sequences not None, bint distinct=False):
    """Raise ShapeError, SequenceFreed unless all are live sequences of the pool, and different ones if they must be."""
    check_members(pool, sequences, distinct)
