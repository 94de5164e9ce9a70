"""Handles of the C API: which are live, of which kind, and who is using them.

A handle is no address. It is

    bits 63..56 kind | 55..24 generation | 23..0 index of the slot

so that a stale one, or any other value, is recognised by comparing it with what its slot holds: nothing of the caller's
is read. Slots are made in blocks that stay where they are, and used again under a new generation.
"""
from libc.stdint cimport uintptr_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc

from kvit._native.capi_entry cimport enter_python, leave_python
from kvit._native.capi_error cimport ERROR_BYTES, error_text
from kvit._native.forks cimport at_fork

from kvit.capi cimport (
    KVIT_ERROR_ARGUMENT, KVIT_ERROR_BUSY, KVIT_ERROR_HANDLE, KVIT_ERROR_NO_INTERPRETER, KVIT_OK,
)

cdef extern from "sched.h" nogil:
    int sched_yield()

# GCC's and clang's own atomics: plain C has none that Cython could declare.
cdef extern from * nogil:
    int __ATOMIC_SEQ_CST
    uint64_t load_word "__atomic_load_n"(const uint64_t *place, int order)
    void store_word "__atomic_store_n"(uint64_t *place, uint64_t value, int order)
    Slot *load_block "__atomic_load_n"(Slot **place, int order)
    void store_block "__atomic_store_n"(Slot **place, Slot *value, int order)
    int32_t load_count "__atomic_load_n"(const int32_t *place, int order)
    int32_t add "__atomic_add_fetch"(int32_t *place, int32_t value, int order)
    int32_t exchange "__atomic_exchange_n"(int32_t *place, int32_t value, int order)

cdef enum:
    INDEX_BITS = 24
    KIND_SHIFT = 56
    BLOCK_SLOTS = 4096
    BLOCKS = 1 << (INDEX_BITS - 12)

cdef Slot *blocks[BLOCKS]
cdef uint32_t num_slots = 0
cdef int32_t first_free = 0                # index + 1; 0: none

cdef const char *NAMES[9]
NAMES[:] = [b"handle", b"kvit_view", b"kvit_op", b"kvit_cache", b"kvit_sequence", b"kvit_rope", b"kvit_step",
            b"kvit_batch", b"kvit_swapped"]


# The GIL is the lock of publish and destroy.

cdef void *publish(int kind, void *state, Drop drop) except NULL:
    cdef uint32_t index
    cdef uint64_t word
    cdef Slot *slot
    try:
        index = unused_slot()
    except MemoryError:
        drop(state)
        raise
    slot = slot_at(index)
    slot.generation += 1
    slot.state = state
    slot.drop = drop
    slot.is_acquired = 0
    word = <uint64_t>kind << KIND_SHIFT | <uint64_t>slot.generation << INDEX_BITS | index
    store_word(&slot.word, word, __ATOMIC_SEQ_CST)
    return <void *><uintptr_t>word


cdef uint32_t unused_slot() except? 0xFFFFFFFF:
    global num_slots, first_free
    cdef uint32_t index
    cdef Slot *block
    if first_free != 0:
        index = <uint32_t>first_free - 1
        first_free = slot_at(index).next_free
        return index
    index = num_slots
    if index == <uint32_t>BLOCKS * BLOCK_SLOTS:
        raise MemoryError(f"{index} handles are live; destroy some")
    if index % BLOCK_SLOTS == 0:
        block = <Slot *>calloc(BLOCK_SLOTS, sizeof(Slot))
        if block == NULL:
            raise MemoryError("no memory for another handle")
        store_block(&blocks[index // BLOCK_SLOTS], block, __ATOMIC_SEQ_CST)
    num_slots += 1
    return index


cdef int32_t destroy(const void *handle, int kind) noexcept nogil:
    return leave_python(retire(<uintptr_t>handle, kind)) if enter_python() else KVIT_ERROR_NO_INTERPRETER


cdef int32_t retire(uint64_t word, int kind) noexcept with gil:
    global first_free
    cdef Slot *slot = slot_at(index_of(word))
    cdef void *state
    cdef Drop drop
    if slot == NULL or word == 0 or slot.word != word or kind_of(word) != kind:
        return refuse(word, kind)
    store_word(&slot.word, 0, __ATOMIC_SEQ_CST)
    with nogil:
        while load_count(&slot.users, __ATOMIC_SEQ_CST) > 0:
            sched_yield()
    state, drop = slot.state, slot.drop
    slot.next_free = first_free
    first_free = <int32_t>(index_of(word) + 1)
    return drop(state)


cdef int32_t pin(const void *handle, int kind, Slot **slot) noexcept nogil:
    cdef uint64_t word = <uintptr_t>handle
    slot[0] = slot_at(index_of(word))
    if slot[0] != NULL and word != 0 and kind_of(word) == kind:
        # Count first, then look: retire clears the word first, then waits for the count.
        add(&slot[0].users, 1, __ATOMIC_SEQ_CST)
        if load_word(&slot[0].word, __ATOMIC_SEQ_CST) == word:
            return KVIT_OK
        add(&slot[0].users, -1, __ATOMIC_SEQ_CST)
    return refuse(word, kind)


cdef void unpin(Slot *slot) noexcept nogil:
    add(&slot.users, -1, __ATOMIC_SEQ_CST)


cdef int32_t acquire(Slot *slot) noexcept nogil:
    if exchange(&slot.is_acquired, 1, __ATOMIC_SEQ_CST) == 0:
        return KVIT_OK
    snprintf(error_text(), ERROR_BYTES, b"BusyError: another thread's call is using this kvit_op, whose workspace "
             b"serves one call at a time; make an operation for each thread")
    return KVIT_ERROR_BUSY


cdef void release(Slot *slot) noexcept nogil:
    exchange(&slot.is_acquired, 0, __ATOMIC_SEQ_CST)


cdef void forget_users() noexcept nogil:
    """In the child of a fork: who uses a slot are threads that are not here. What they did on the host is done."""
    cdef uint32_t index
    for index in range(num_slots):
        slot_at(index).users = 0
        slot_at(index).is_acquired = 0


at_fork(forget_users)


cdef uint32_t index_of(uint64_t word) noexcept nogil:
    return <uint32_t>(word & ((1 << INDEX_BITS) - 1))


cdef int kind_of(uint64_t word) noexcept nogil:
    return <int>(word >> KIND_SHIFT)


cdef Slot *slot_at(uint32_t index) noexcept nogil:
    cdef Slot *block = load_block(&blocks[index // BLOCK_SLOTS], __ATOMIC_SEQ_CST)
    return NULL if block == NULL else block + index % BLOCK_SLOTS


cdef int32_t refuse(uint64_t word, int kind) noexcept nogil:
    """Set the last error of the thread: what is wrong with a handle."""
    cdef Slot *slot = slot_at(index_of(word))
    cdef int other = kind_of(word)
    cdef uint32_t generation = <uint32_t>(word >> INDEX_BITS)
    if word == 0:
        snprintf(error_text(), ERROR_BYTES, b"ArgumentError: the %s is NULL; give one that was created", NAMES[kind])
        return KVIT_ERROR_ARGUMENT
    if (other < HANDLE_VIEW or other > HANDLE_SWAPPED or slot == NULL or generation == 0
            or generation > slot.generation):
        snprintf(error_text(), ERROR_BYTES, b"HandleError: %p is no %s; give one that was created", <void *>word,
                 NAMES[kind])
    elif other != kind:
        snprintf(error_text(), ERROR_BYTES, b"HandleError: this is a %s and must be a %s", NAMES[other], NAMES[kind])
    else:
        snprintf(error_text(), ERROR_BYTES, b"HandleError: this %s was destroyed; create another", NAMES[kind])
    return KVIT_ERROR_HANDLE
