"""The operation and the view of a call, kept from being destroyed while it lasts."""
from kvit._native.capi_handle cimport HANDLE_OP, HANDLE_VIEW, acquire, pin, release, unpin
from kvit.capi cimport KVIT_OK


cdef int32_t enter(kvit_op *op, kvit_view *view, PinnedArgs *pinned) noexcept nogil:
    cdef int32_t status = pin(op, HANDLE_OP, &pinned.op_slot)
    if status != KVIT_OK:
        return status
    status = acquire(pinned.op_slot)
    if status == KVIT_OK:
        status = pin(view, HANDLE_VIEW, &pinned.view_slot)
        if status == KVIT_OK:
            pinned.op = <OpState *>pinned.op_slot.state
            pinned.view = <ViewState *>pinned.view_slot.state
            return KVIT_OK
        release(pinned.op_slot)
    unpin(pinned.op_slot)
    return status


cdef void exit(PinnedArgs *pinned) noexcept nogil:
    unpin(pinned.view_slot)
    release(pinned.op_slot)
    unpin(pinned.op_slot)
