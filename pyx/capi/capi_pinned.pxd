# The operation and the view of a call, kept from being destroyed while it lasts.
from libc.stdint cimport int32_t

from kvit._native.capi_handle cimport Slot
from kvit._native.capi_op cimport OpState
from kvit._native.capi_view cimport ViewState
from kvit.capi cimport kvit_op, kvit_view

cdef struct PinnedArgs:
    Slot *op_slot
    Slot *view_slot
    OpState *op
    ViewState *view

# Pins the view, and acquires the operation; or pins nothing and leaves words of why to the thread. Returns a
# kvit_status.
cdef int32_t enter(kvit_op *op, kvit_view *view, PinnedArgs *pinned) noexcept nogil
cdef void exit(PinnedArgs *pinned) noexcept nogil
