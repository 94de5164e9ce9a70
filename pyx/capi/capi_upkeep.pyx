"""What C does with whole pages, and with a cache besides its steps: as rarely as a Python call costs nothing."""
import kvit

from libc.stdint cimport int32_t, int64_t

from kvit._native.capi_entry cimport enter_python, leave_python
from kvit._native.capi_error cimport set_last_error
from kvit._native.capi_handle cimport HANDLE_CACHE, HANDLE_VIEW, Slot, pin, unpin
from kvit._native.capi_object cimport ObjectRef, find
from kvit._native.capi_option cimport to_codec
from kvit._native.capi_tensor cimport to_stream, to_tensor
from kvit._native.capi_view cimport ViewState
from kvit._native.checks cimport device_id_of
from kvit._native.stream cimport Stream
from kvit.capi cimport KVIT_ERROR_NO_INTERPRETER, KVIT_OK

from kvit._native.capi_error import CallFailed


cdef int32_t copy_pages(kvit_view *view, const kvit_tensor *source, const kvit_tensor *target,
                        kvit_stream stream) noexcept nogil:
    return leave_python(copy(view, source, target, stream)) if enter_python() else KVIT_ERROR_NO_INTERPRETER


cdef int32_t copy(kvit_view *handle, const kvit_tensor *source, const kvit_tensor *target,
                  kvit_stream stream) noexcept with gil:
    cdef int32_t status = KVIT_OK
    try:
        view = view_of(handle)
        on = stream_for(view, stream)
        op = kvit.CopyPages(view)
        op(view, to_tensor(source, "source"), to_tensor(target, "target"), stream=on)
        op.check(on)
    except BaseException as error:
        status = set_last_error(error)
    return status


cdef int32_t convert_pages(kvit_view *source, kvit_view *target, const kvit_tensor *source_pages,
                           const kvit_tensor *target_pages, kvit_stream stream) noexcept nogil:
    if not enter_python():
        return KVIT_ERROR_NO_INTERPRETER
    return leave_python(convert(source, target, source_pages, target_pages, stream))


cdef int32_t convert(kvit_view *source, kvit_view *target, const kvit_tensor *source_pages,
                     const kvit_tensor *target_pages, kvit_stream stream) noexcept with gil:
    cdef int32_t status = KVIT_OK
    try:
        old, new = view_of(source), view_of(target)
        on = stream_for(old, stream)
        op = kvit.ConvertPages(old, new)
        op(
            old, new, source_pages=to_tensor(source_pages, "source_pages", True),
            target_pages=to_tensor(target_pages, "target_pages", True), stream=on,
        )
        op.check(on)
    except BaseException as error:
        status = set_last_error(error)
    return status


cdef object view_of(kvit_view *handle):
    """The kvit.CacheView of a handle; it lives on while a call has it, whoever destroys the handle."""
    cdef Slot *slot
    cdef int32_t status = pin(handle, HANDLE_VIEW, &slot)
    if status != KVIT_OK:
        raise CallFailed(status)
    view = <object>(<ViewState *>slot.state).view
    unpin(slot)
    return view


cdef Stream stream_for(object view, kvit_stream stream):
    return to_stream(stream, device_id_of(view.k))


cdef int32_t cache_defragment(kvit_cache *cache, int64_t *moved, kvit_stream stream) noexcept nogil:
    return leave_python(defragment(cache, moved, stream)) if enter_python() else KVIT_ERROR_NO_INTERPRETER


cdef int32_t defragment(kvit_cache *cache, int64_t *moved, kvit_stream stream) noexcept with gil:
    cdef int32_t status = KVIT_OK
    cdef ObjectRef ref
    try:
        ref = find(cache, HANDLE_CACHE)
        ref.lock.acquire()
        try:
            count = ref.value.defragment(stream=stream_for(ref.value.view, stream))
        finally:
            ref.lock.release()
        if moved != NULL:
            moved[0] = count
    except BaseException as error:
        status = set_last_error(error)
    return status


cdef int32_t cache_requantise(kvit_cache *cache, int32_t k_dtype, int32_t v_dtype, const kvit_tensor *k_scale,
                              const kvit_tensor *v_scale, kvit_stream stream) noexcept nogil:
    if not enter_python():
        return KVIT_ERROR_NO_INTERPRETER
    return leave_python(requantise(cache, k_dtype, v_dtype, k_scale, v_scale, stream))


cdef int32_t requantise(kvit_cache *cache, int32_t k_dtype, int32_t v_dtype, const kvit_tensor *k_scale,
                        const kvit_tensor *v_scale, kvit_stream stream) noexcept with gil:
    cdef int32_t status = KVIT_OK
    cdef ObjectRef ref
    try:
        ref = find(cache, HANDLE_CACHE)
        ref.lock.acquire()
        try:
            ref.value.requantise(
                k=to_codec(k_dtype, "k_dtype"), v=to_codec(v_dtype, "v_dtype"),
                k_scale=to_tensor(k_scale, "k_scale", True), v_scale=to_tensor(v_scale, "v_scale", True),
                stream=stream_for(ref.value.view, stream),
            )
        finally:
            ref.lock.release()
    except BaseException as error:
        status = set_last_error(error)
    return status
