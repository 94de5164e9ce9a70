"""What C does with whole pages, and with a cache besides its steps: as rarely as a Python call costs nothing."""
import kvit

from libc.stdint cimport int32_t, int64_t

from kvit._native.capi_cache_args cimport stream_for
from kvit._native.capi_entry cimport enter_python, leave_python
from kvit._native.capi_error cimport set_last_error
from kvit._native.capi_handle cimport HANDLE_CACHE
from kvit._native.capi_object cimport ObjectRef, find
from kvit._native.capi_op cimport OpState
from kvit._native.capi_option cimport to_codec
from kvit._native.capi_pinned cimport PinnedArgs, enter, exit
from kvit._native.capi_python cimport require_kind
from kvit._native.capi_tensor cimport to_stream, to_tensor
from kvit._native.capi_view cimport ViewState, find_view
from kvit._native.checks cimport device_id_of
from kvit.capi cimport KVIT_ERROR_NO_INTERPRETER, KVIT_OK, KVIT_OP_CONVERT_PAGES, KVIT_OP_COPY_PAGES


cdef int32_t copy_pages(kvit_view *view, const kvit_tensor *source, const kvit_tensor *target,
                        kvit_stream stream) noexcept nogil:
    return leave_python(copy(view, source, target, stream)) if enter_python() else KVIT_ERROR_NO_INTERPRETER


cdef int32_t copy(kvit_view *handle, const kvit_tensor *source, const kvit_tensor *target,
                  kvit_stream stream) noexcept with gil:
    cdef int32_t status = KVIT_OK
    try:
        view = find_view(handle)
        on = to_stream(stream, device_id_of(view.k))
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
        old, new = find_view(source), find_view(target)
        on = to_stream(stream, device_id_of(old.k))
        op = kvit.ConvertPages(old, new)
        op(
            old, new, source_pages=to_tensor(source_pages, "source_pages", True),
            target_pages=to_tensor(target_pages, "target_pages", True), stream=on,
        )
        op.check(on)
    except BaseException as error:
        status = set_last_error(error)
    return status


cdef int32_t op_copy_pages(kvit_op *op, kvit_view *view, const kvit_tensor *source, const kvit_tensor *target,
                           const kvit_tensor *chains, kvit_stream stream) noexcept nogil:
    cdef PinnedArgs pinned
    cdef int32_t status = enter(op, view, &pinned)
    if status == KVIT_OK:
        status = KVIT_ERROR_NO_INTERPRETER
        if enter_python():
            status = leave_python(copy_by(pinned.op, pinned.view, source, target, chains, stream))
        exit(&pinned)
    return status


cdef int32_t copy_by(const OpState *op, const ViewState *view, const kvit_tensor *source, const kvit_tensor *target,
                     const kvit_tensor *chains, kvit_stream stream) noexcept with gil:
    cdef int32_t status = KVIT_OK
    try:
        require_kind(op, KVIT_OP_COPY_PAGES)
        (<object>op.operation)(
            <object>view.view, to_tensor(source, "source"), to_tensor(target, "target"),
            chains=to_tensor(chains, "chains", True), stream=to_stream(stream, op.type.device),
        )
    except BaseException as error:
        status = set_last_error(error)
    return status


cdef int32_t op_convert_pages(kvit_op *op, kvit_view *source, kvit_view *target, const kvit_tensor *source_pages,
                              const kvit_tensor *target_pages, kvit_stream stream) noexcept nogil:
    cdef PinnedArgs pinned
    cdef int32_t status = enter(op, source, &pinned)
    if status == KVIT_OK:
        status = KVIT_ERROR_NO_INTERPRETER
        if enter_python():
            status = leave_python(convert_by(pinned.op, pinned.view, target, source_pages, target_pages, stream))
        exit(&pinned)
    return status


cdef int32_t convert_by(const OpState *op, const ViewState *source, kvit_view *target, const kvit_tensor *source_pages,
                        const kvit_tensor *target_pages, kvit_stream stream) noexcept with gil:
    cdef int32_t status = KVIT_OK
    try:
        require_kind(op, KVIT_OP_CONVERT_PAGES)
        (<object>op.operation)(
            <object>source.view, find_view(target), source_pages=to_tensor(source_pages, "source_pages", True),
            target_pages=to_tensor(target_pages, "target_pages", True), stream=to_stream(stream, op.type.device),
        )
    except BaseException as error:
        status = set_last_error(error)
    return status


cdef int32_t cache_defragment(kvit_cache *cache, int64_t *moved, kvit_stream stream) noexcept nogil:
    return leave_python(defragment(cache, moved, stream)) if enter_python() else KVIT_ERROR_NO_INTERPRETER


cdef int32_t defragment(kvit_cache *cache, int64_t *moved, kvit_stream stream) noexcept with gil:
    cdef int32_t status = KVIT_OK
    cdef ObjectRef ref
    try:
        ref = find(cache, HANDLE_CACHE)
        ref.lock.acquire()
        try:
            count = ref.value.defragment(stream=stream_for(ref.value, stream))
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
                stream=stream_for(ref.value, stream),
            )
        finally:
            ref.lock.release()
    except BaseException as error:
        status = set_last_error(error)
    return status
