# Handles of the C API: which are live, of which kind, and who is using them. No lock on the way of a call.
from libc.stdint cimport int32_t, uint32_t, uint64_t

cdef enum:
    HANDLE_VIEW = 1
    HANDLE_OP = 2
    HANDLE_CACHE = 3
    HANDLE_SEQUENCE = 4


# A place in the registry. `word` is the live handle's value, 0 while there is none; all else is set before it.
cdef struct Slot:
    uint64_t word
    void *state                        # the owner's, as `publish` took it
    uint32_t generation                # of the handle that lives here, or lived here last
    int32_t users                      # calls that hold the slot
    int32_t is_taken                   # by the one call that may use an operation
    int32_t next_free                  # index + 1; 0: none

# A new handle for `state`; raises MemoryError. The GIL is the lock of publish and retire.
cdef void *publish(int kind, void *state) except NULL

# The functions below return a kvit_status; where it is not KVIT_OK the thread has been told.

# Ends a handle: none of its uses begins any more. Waits, without the GIL, for those that have begun; hands over its
# state.
cdef int32_t retire(const void *handle, int kind, void **state) noexcept

# Finds the slot of a live handle and keeps it from being retired until `unpin`.
cdef int32_t pin(const void *handle, int kind, Slot **slot) noexcept nogil
cdef void unpin(Slot *slot) noexcept nogil

# Makes a pinned slot the caller's alone until `leave`; KVIT_ERROR_BUSY while another call has it.
cdef int32_t take(Slot *slot) noexcept nogil
cdef void leave(Slot *slot) noexcept nogil
