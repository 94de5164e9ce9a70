# Handles of the C API: which are live, of which kind, and who is using them. No lock on the way of a call.
from libc.stdint cimport int32_t, uint32_t, uint64_t

cdef enum:
    HANDLE_VIEW = 1
    HANDLE_OP = 2
    HANDLE_CACHE = 3
    HANDLE_SEQUENCE = 4
    HANDLE_ROPE = 5
    HANDLE_STEP = 6
    HANDLE_BATCH = 7
    HANDLE_SWAPPED = 8


# Gives up what a handle stood for; with the GIL. Returns a kvit_status.
ctypedef int32_t (*Drop)(void *state) noexcept


# A place in the registry. `word` is the live handle's value, 0 while there is none; all else is set before it.
cdef struct Slot:
    uint64_t word
    void *state
    Drop drop                          # of the state
    uint32_t generation                # of the handle that lives here, or lived here last
    int32_t users                      # calls that hold the slot
    int32_t is_acquired                   # by the one call that may use an operation
    int32_t next_free                  # index + 1; 0: none

# A new handle for `state`, which it takes over: where it raises MemoryError, the state has been dropped.
cdef void *publish(int kind, void *state, Drop drop) except NULL

# The functions below return a kvit_status; where it is not KVIT_OK the last error of the thread says why.

# Ends a handle: none of its uses begins any more. Waits, without the GIL, for those that have begun; drops its state.
cdef int32_t destroy(const void *handle, int kind) noexcept nogil

# Finds the slot of a live handle and keeps it from being destroyed until `unpin`.
cdef int32_t pin(const void *handle, int kind, Slot **slot) noexcept nogil
cdef void unpin(Slot *slot) noexcept nogil

# Makes a pinned slot the caller's alone until `leave`; KVIT_ERROR_BUSY while another call has it.
cdef int32_t acquire(Slot *slot) noexcept nogil
cdef void release(Slot *slot) noexcept nogil
