"""Caches and page tables as C hands them in: kvit_view and kvit_page_table."""
import kvit

from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from kvit._native.capi_entry cimport enter_python, leave_python
from kvit._native.capi_error cimport set_last_error
from kvit._native.capi_handle cimport HANDLE_VIEW, Slot, destroy, pin, publish, unpin
from kvit._native.capi_option cimport answer, check_size, check_target, stored_as, to_codec, to_dtype, to_layout
from kvit._native.capi_tensor cimport to_tensor
from kvit._native.checks cimport are_entries, are_entry_rows
from kvit._native.context cimport Device, device_of
from kvit._native.packed_cache cimport PackedCache
from kvit._native.packed_table cimport pack_table
from kvit._native.spans cimport span_of
from kvit._native.tensor cimport Tensor
from kvit._native.tensor_map cimport KVIT_LEAST_BOX_TOKENS, Boxes
from kvit.capi cimport KVIT_ERROR_NO_INTERPRETER, KVIT_OK

from kvit._native.capi_error import ArgumentError, CallFailed

cdef extern from "<stddef.h>":
    const size_t VIEW_INFO_BEFORE_V_DIM "offsetof(kvit_view_info, v_dim)"


cdef int32_t view_create(const kvit_view_options *options, kvit_view **view) noexcept nogil:
    return leave_python(create(options, view)) if enter_python() else KVIT_ERROR_NO_INTERPRETER


cdef int32_t create(const kvit_view_options *options, kvit_view **view) noexcept with gil:
    cdef int32_t status = KVIT_OK
    try:
        check_size(options, sizeof(kvit_view_options), "kvit_view_options")
        check_target(view, "view", "kvit_view")
        view[0] = publish_view(make_view(options))
    except BaseException as error:
        status = set_last_error(error)
    return status


cdef object make_view(const kvit_view_options *options):
    given = {
        "k": to_tensor(options.k, "k"),
        "v": to_tensor(options.v, "v"),
        "layout": to_layout(options.layout, "NHD"),
        "page_size": options.page_size or None,
        "k_params": to_tensor(options.k_params, "k_params", True),
        "v_params": to_tensor(options.v_params, "v_params", True),
        "k_scale": to_tensor(options.k_scale, "k_scale", True),
        "v_scale": to_tensor(options.v_scale, "v_scale", True),
        "dtype": to_dtype(options.dtype, "dtype of kvit_view_options"),
    }
    k_codec = to_codec(options.k_dtype, "k_dtype of kvit_view_options")
    v_codec = to_codec(options.v_dtype, "v_dtype of kvit_view_options")
    if k_codec is not None or v_codec is not None:
        given["kv"] = k_codec or given["k"].dtype, v_codec or given["v"].dtype
    return kvit.CacheView(**{name: value for name, value in given.items() if value is not None})


cdef kvit_view *publish_view(object view) except NULL:
    return <kvit_view *>publish(HANDLE_VIEW, make_state(view), drop)


cdef object find_view(kvit_view *view):
    cdef Slot *slot
    cdef int32_t status = pin(view, HANDLE_VIEW, &slot)
    if status != KVIT_OK:
        raise CallFailed(status)
    found = <object>(<ViewState *>slot.state).view
    unpin(slot)
    return found


cdef ViewState *make_state(object view) except NULL:
    cdef PackedCache packed = view.packed
    cdef ViewState *state
    make_maps(packed)
    state = <ViewState *>calloc(1, sizeof(ViewState))
    if state == NULL:
        raise MemoryError("no memory for another view")
    state.cache = packed.value
    state.is_readonly = packed.meets_itself  # Python says why
    for pool in (packed.k, packed.v, packed.k_params, packed.v_params):
        if pool is not None:
            add_pool(state, pool)
    state.type = packed.type
    state.maps = &packed.maps
    state.view = <void *>view
    Py_INCREF(view)
    return state


cdef int make_maps(PackedCache packed) except -1:
    """All tensor maps that a call may ask for: it has no GIL to make them with."""
    cdef Device device = device_of(packed.k.device)
    cdef int tokens = packed.maps.most_tokens
    if device.is_host or device.compute_capability >= (9, 0):
        while tokens >= KVIT_LEAST_BOX_TOKENS:
            packed.make_maps(Boxes(tokens, False, False), device)
            if packed.maps.may_be_packed:
                packed.make_maps(Boxes(tokens, True, False), device)
            tokens //= 2
    return 0


cdef void add_pool(ViewState *state, Tensor pool) noexcept:
    state.spans[state.num_spans] = span_of(&pool.memory, False)
    state.num_spans += 1
    state.is_readonly |= pool.memory.readonly != 0


cdef int32_t view_query(kvit_view *view, kvit_view_info *info) noexcept nogil:
    cdef kvit_view_info found
    cdef Slot *slot
    cdef ViewState *state
    cdef int32_t status = pin(view, HANDLE_VIEW, &slot)
    if status != KVIT_OK:
        return status
    state = <ViewState *>slot.state
    memset(&found, 0, sizeof(found))
    found.dtype = state.type.dtype
    found.k_dtype = stored_as(state.type.k_dtype, state.type.k_hadamard)
    found.v_dtype = stored_as(state.type.v_dtype, state.type.v_hadamard)
    found.num_pages = state.cache.num_pages
    found.page_size = state.cache.page_size
    found.kv_heads = state.cache.num_kv_heads
    found.head_dim = state.cache.k_dim
    found.device_type = state.type.device.type
    found.device_id = state.type.device.ordinal
    found.v_dim = state.cache.v_dim
    status = answer(info, &found, VIEW_INFO_BEFORE_V_DIM, sizeof(found), b"kvit_view_info")
    unpin(slot)
    return status


cdef int32_t view_destroy(kvit_view *view) noexcept nogil:
    return destroy(view, HANDLE_VIEW)


cdef int32_t drop(void *state) noexcept:
    Py_DECREF(<object>(<ViewState *>state).view)
    free(state)
    return KVIT_OK


cdef bint pack_fitting_table(const kvit_page_table *table, DeviceId device, KvitPageTable *packed) noexcept nogil:
    cdef int64_t sequences
    if table == NULL or not are_entries(table.lengths, device, -1):
        return False
    sequences = table.lengths.shape[0]
    if table.indptr == NULL:
        if not are_entry_rows(table.pages, device, sequences):
            return False
    elif not are_entries(table.pages, device, -1) or not are_entries(table.indptr, device, sequences + 1):
        return False
    pack_table(packed, table.pages, table.indptr, table.lengths)
    return True


cdef object to_table(const kvit_page_table *table):
    if table == NULL:
        raise ArgumentError("table is NULL; give the address of a kvit_page_table")
    lengths = to_tensor(table.lengths, "lengths")
    if table.indptr == NULL:
        return kvit.PageTable(to_tensor(table.pages, "pages"), lengths=lengths)
    return kvit.PageTable(
        indices=to_tensor(table.pages, "indices"), indptr=to_tensor(table.indptr, "indptr"), lengths=lengths
    )
