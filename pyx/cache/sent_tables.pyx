# cython: cdivision=True
"""Page tables of a cache's calls: kept on the device between calls, which send only what differs."""
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset

from kvit._native.buffer cimport empty_buffer
from kvit._native.driver_table cimport CAPTURE_UNSUPPORTED, SUCCESS
from kvit._native.errors cimport check, fail
from kvit._native.growth cimport check_members
from kvit._native.page_lists cimport PageList, PageLists, PooledSequence
from kvit._native.tensor cimport KVIT_I32

from kvit.errors import refuse_copy

cdef enum:
    ENTRY = 4                  # bytes of an int32
    GAP = 4096                 # numbers that are sent again rather than in a copy of their own


cdef class SentTable:
    """A page table on a device, for sequences whose pages and lengths change from call to call.

    num_sequences  of every call
    capacity       pages of all sequences together
    stream         in whose order it is written and read
    make_table     kvit.PageTable
    """

    def __cinit__(self, int num_sequences, int64_t capacity, Stream stream not None, make_table):
        cdef int64_t head = 3 * <int64_t>num_sequences + 2
        self.num_sequences, self.capacity, self.stream = num_sequences, capacity, stream
        self.mirror = <int32_t *>malloc((head + capacity) * ENTRY)
        if self.mirror == NULL:
            raise MemoryError
        memset(self.mirror, 0xFF, (head + capacity) * ENTRY)  # no page: what was not sent yet differs from what will be
        self.block = empty_buffer((head + capacity,), KVIT_I32, stream.dev, stream)
        self.all_rows = self.block[num_sequences:2 * num_sequences + 1]
        self.table = make_table(
            lengths=self.block[:num_sequences], indptr=self.block[2 * num_sequences + 1:head],
            indices=self.block[head:],
        )

    def __dealloc__(self):
        free(self.mirror)
        free(self.scratch)

    cdef bint fill(self, tuple sequences, Growth growth, const int32_t *counts, Span *head, Span *entries) except -1:
        """Write what the sequences have, or will have, into the mirror. False: there is too little room for it."""
        cdef int n = self.num_sequences
        cdef int32_t *rows = self.mirror + n
        cdef int32_t *starts = rows + n + 1
        cdef int32_t *first = starts + n + 1
        cdef const int32_t *ids
        cdef PageList *held
        cdef int64_t count, length, new_rows = 0
        cdef bint differ = False
        cdef int i, moves = 0
        head.low, head.high, entries.low, entries.high = self.capacity + 3 * n + 2, 0, self.capacity + 3 * n + 2, 0
        for i in range(n):
            count = page_count(sequences, growth, i)
            if not self.is_filled or count > starts[i + 1] - starts[i]:
                moves = 1
            if count > self.scratch_room:
                self.scratch_room = count + count // 2
                ids = <int32_t *>realloc(self.scratch, self.scratch_room * ENTRY)
                if ids == NULL:
                    self.scratch_room = 0
                    self.scratch = NULL
                    raise MemoryError
                self.scratch = <int32_t *>ids
        if moves:
            if not self.place(sequences, growth):
                return False
            head.low, head.high = 0, 3 * n + 2
        put(self.mirror, n, 0, head)
        for i in range(n):
            held = (<PooledSequence>sequences[i]).held
            count, length, ids = held.count, held.length, held.ids
            if growth is not None:
                count, length, ids = growth.num_pages(i), growth.rows[i].length, self.scratch
                growth.write_pages(i, self.scratch)
            new_rows += counts[i]
            differ = differ or counts[i] != counts[0]
            put(self.mirror, i, <int32_t>length, head)
            put(self.mirror, n + i + 1, <int32_t>new_rows, head)
            if moves or memcmp(first + starts[i], ids, count * ENTRY) != 0:
                put_all(self.mirror, first - self.mirror + starts[i], ids, count, moves, entries)
        self.rows = self.all_rows if differ else None
        return True

    cdef bint holds(self, tuple sequences, Growth growth, const int32_t *counts) noexcept:
        """Whether it is right as it is. It changes nothing."""
        cdef int n = self.num_sequences
        cdef const int32_t *rows = self.mirror + n
        cdef const int32_t *starts = rows + n + 1
        cdef const int32_t *first = starts + n + 1
        cdef PageList *held
        cdef int64_t i, j, count
        for i in range(n):
            held, count = (<PooledSequence>sequences[i]).held, page_count(sequences, growth, i)
            if count > starts[i + 1] - starts[i]:
                return False
            if self.mirror[i] != (held.length if growth is None else growth.rows[i].length):
                return False
            if rows[i + 1] - rows[i] != counts[i]:
                return False
            for j in range(count):
                if first[starts[i] + j] != (held.ids[j] if growth is None else growth.page_at(i, j)):
                    return False
        return True

    cdef bint place(self, tuple sequences, Growth growth) noexcept:
        """Give every sequence room for its pages, and some more. False: there is too little for all."""
        cdef int n = self.num_sequences
        cdef int32_t *starts = self.mirror + 2 * n + 1
        cdef int64_t needed = 0, spare
        cdef int i
        for i in range(n):
            needed += page_count(sequences, growth, i)
        if needed > self.capacity:
            return False
        spare = (self.capacity - needed) // max(n, 1)
        starts[0] = 0
        for i in range(n):
            starts[i + 1] = <int32_t>(starts[i] + page_count(sequences, growth, i) + spare)
        return True

    cdef int send(self, Span head, Span entries) except -1:
        """Copy what changed to the device: what lies close together in one copy."""
        if head.high == 0 and entries.high == 0:
            return 0
        self.is_filled = False  # should a copy fail, all is sent anew
        if head.high != 0 and entries.high != 0 and entries.low - head.high < GAP:
            head.high, entries.high = entries.high, 0
        upload(self, head)
        upload(self, entries)
        self.is_filled = True
        return 0

    def __reduce_ex__(self, protocol):
        refuse_copy(self, "calls write it")


cdef inline int64_t page_count(tuple sequences, Growth growth, int i) noexcept:
    return (<PooledSequence>sequences[i]).held.count if growth is None else growth.num_pages(i)


cdef inline void put(int32_t *mirror, int64_t at, int32_t value, Span *changed) noexcept:
    if mirror[at] != value:
        mirror[at] = value
        changed.low, changed.high = min(changed.low, at), max(changed.high, at + 1)


cdef void put_all(int32_t *mirror, int64_t at, const int32_t *values, int64_t count, bint all_of_them,
                  Span *changed) noexcept:
    """Those from the first that differs to the last."""
    cdef int64_t first = 0
    while not all_of_them and first < count and mirror[at + first] == values[first]:
        first += 1
    while not all_of_them and count > first and mirror[at + count - 1] == values[count - 1]:
        count -= 1
    if count > first:
        memcpy(mirror + at + first, values + first, (count - first) * ENTRY)
        changed.low, changed.high = min(changed.low, at + first), max(changed.high, at + count)


cdef int upload(SentTable table, Span changed) except -1:
    # The driver has read the mirror when it returns: it is pageable memory. Nobody waits for the device.
    cdef int status, entered
    cdef char *target = <char *>table.block.memory.data + changed.low * ENTRY
    if changed.high == 0:
        return 0
    entered = table.stream.dev.enter()
    try:
        status = table.stream.dev.driver.copy_to_device(
            target, table.mirror + changed.low, (changed.high - changed.low) * ENTRY, table.stream.c_stream
        )
        check(status, b"cuMemcpyHtoDAsync")
    finally:
        table.stream.dev.leave(entered)
    return 0


cdef bint captures(Stream stream) except -1:
    cdef int is_capturing = 0
    return stream.dev.driver.stream_is_capturing(stream.c_stream, &is_capturing) == SUCCESS and is_capturing


cdef int refuse_capture() except -1:
    return fail(CAPTURE_UNSUPPORTED, b"cuMemcpyHtoDAsync",
                "a page table that differs from the last call's; begin a step of a kvit.Batch before the capture")


cdef class SentTables:
    """The page tables of a cache's calls, the last ones used.

    make_table  kvit.PageTable
    most        how many are kept

    They are for the cache's own calls alone: whoever got one might write in it.
    """

    def __cinit__(self, make_table, int most=8):
        self.make_table = make_table
        self.most = most
        self.kept = []

    def __dealloc__(self):
        free(self.counts)

    def take(self, PageLists pool not None, tuple sequences not None, Growth growth, new_tokens, Stream stream not None,
             capacity=0) -> SentTable:
        """The table of sequences as they are, or as they will be: the caller's, until give() brings it back.

        growth      of these sequences, open; None: as they are
        new_tokens  rows of each sequence in the call, or one number for all
        capacity    pages of all sequences together that a new table has room for, at least

        Raises SequenceFreed, ShapeError; DriverError where the stream is being captured and no table is right.
        """
        cdef SentTable found = None
        cdef SentTable other
        cdef Span head, entries
        cdef int64_t needed = 0
        cdef int i, n = len(sequences)
        cdef bint is_capturing
        if growth is None:
            check_members(pool, sequences, False)
        else:
            growth.require_current()
        self.set_counts(n, new_tokens)
        for i in range(len(self.kept) - 1, -1, -1):
            other = <SentTable>self.kept[i]
            if other.num_sequences == n and other.stream.c_stream == stream.c_stream:
                found = other
                del self.kept[i]
                break
        is_capturing = captures(stream)
        if found is not None and (is_capturing or found.is_captured):
            if found.holds(sequences, growth, self.counts):
                found.is_captured = True
                return found
            if is_capturing:
                self.kept.append(found)
            found = None  # else it is the graph's alone from now on
        if is_capturing:
            refuse_capture()
        if found is None or not found.fill(sequences, growth, self.counts, &head, &entries):
            for i in range(n):
                needed += page_count(sequences, growth, i)
            needed = max(needed + needed // 2 + 4 * n, <int64_t>capacity)
            found = SentTable(n, needed, stream, self.make_table)
            found.fill(sequences, growth, self.counts, &head, &entries)
        found.send(head, entries)
        return found

    def refill(self, SentTable table not None, PageLists pool not None, tuple sequences not None, Growth growth,
               new_tokens) -> bool:
        """Let a table that was taken hold its sequences as they are now, or will be. False: its room is too small.

        Raises as take does.
        """
        cdef Span head, entries
        if growth is None:
            check_members(pool, sequences, False)
        else:
            growth.require_current()
        self.set_counts(table.num_sequences, new_tokens)
        if captures(table.stream):
            return table.holds(sequences, growth, self.counts) or refuse_capture()
        if not table.fill(sequences, growth, self.counts, &head, &entries):
            return False
        table.send(head, entries)
        return True

    cdef int set_counts(self, int n, object new_tokens) except -1:
        cdef void *moved
        cdef int i
        if n > self.counts_room:
            moved = realloc(self.counts, n * sizeof(int32_t))
            if moved == NULL:
                raise MemoryError
            self.counts = <int32_t *>moved
            self.counts_room = n
        for i in range(n):
            self.counts[i] = new_tokens[i] if type(new_tokens) is list else new_tokens
        return 0

    def give(self, SentTable table not None):
        """Keep a table for the calls to come."""
        if table in self.kept:  # by a step that is closed again
            return
        self.kept.append(table)
        if len(self.kept) > self.most:
            del self.kept[0]

    def __reduce_ex__(self, protocol):
        refuse_copy(self, "calls write what is in it")
