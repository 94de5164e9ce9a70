"""The cache that owns its memory, for C: kvit.PagedCache behind a handle.

Every function is the same few lines: enter Python, find the objects of the handles, hold the cache's lock, call. The
lock makes whole calls follow one another, which the GIL alone does not.
"""
import kvit

from libc.stdint cimport int32_t, int64_t
from libc.string cimport memset

from kvit._native.capi_entry cimport enter_python, leave_python
from kvit._native.capi_error cimport set_last_error
from kvit._native.capi_handle cimport HANDLE_CACHE, destroy
from kvit._native.capi_object cimport CacheLock, ObjectRef, decref, find, find_all, hand_out, hold
from kvit._native.capi_option cimport (
    answer, check_target, is_causal, read_options, stored_as, to_codec, to_dtype, to_layout,
)
from kvit._native.capi_rope cimport to_rope
from kvit._native.capi_tensor cimport to_device, to_stream, to_tensor
from kvit._native.capi_view cimport publish_view
from kvit._native.checks cimport DeviceId, device_id_of
from kvit._native.whole_numbers cimport tuple_of
from kvit.capi cimport KVIT_ERROR_NO_INTERPRETER, KVIT_LAYOUT_NHD, KVIT_OK


cdef extern from "<stddef.h>":
    const size_t CACHE_OPTIONS_BEFORE_ROPE "offsetof(kvit_cache_options, rope)"


cdef int32_t cache_create(const kvit_cache_options *options, kvit_cache **cache) noexcept nogil:
    return leave_python(create(options, cache)) if enter_python() else KVIT_ERROR_NO_INTERPRETER


cdef int32_t create(const kvit_cache_options *options, kvit_cache **cache) noexcept with gil:
    cdef int32_t status = KVIT_OK
    cdef kvit_cache_options wanted
    try:
        read_options(&wanted, options, [CACHE_OPTIONS_BEFORE_ROPE], sizeof(wanted), "kvit_cache_options")
        options = &wanted
        check_target(cache, "cache", "kvit_cache")
        given = {
            "dtype": to_dtype(options.dtype, "dtype of kvit_cache_options"),
            "k": to_codec(options.k_dtype, "k_dtype of kvit_cache_options"),
            "v": to_codec(options.v_dtype, "v_dtype of kvit_cache_options"),
            "k_scale": to_tensor(options.k_scale, "k_scale", True),
            "v_scale": to_tensor(options.v_scale, "v_scale", True),
            "rope": to_rope(options.rope),
        }
        made = kvit.PagedCache(
            options.pages, options.page_size, options.kv_heads, options.head_dim,
            layout=to_layout(options.layout, "HND"),
            device=to_device(options.device_type, options.device_id),
            **{name: value for name, value in given.items() if value is not None},
        )
        cache[0] = <kvit_cache *>hand_out(HANDLE_CACHE, hold(made, CacheLock.__new__(CacheLock)), decref)
    except BaseException as error:
        status = set_last_error(error)
    return status


cdef int32_t cache_query(kvit_cache *cache, kvit_cache_info *info) noexcept nogil:
    return leave_python(query(cache, info)) if enter_python() else KVIT_ERROR_NO_INTERPRETER


cdef int32_t query(kvit_cache *cache, kvit_cache_info *info) noexcept with gil:
    cdef int32_t status = KVIT_OK
    cdef kvit_cache_info found
    cdef ObjectRef ref
    cdef DeviceId device
    try:
        ref = find(cache, HANDLE_CACHE)
        memset(&found, 0, sizeof(found))
        ref.lock.acquire()
        try:
            device = device_id_of(ref.value.view.k)
            found.dtype = ref.value.dtype.code
            k, v = ref.value.view.codecs
            found.k_dtype = stored_as(k.dtype.code, k is not k.plain)
            found.v_dtype = stored_as(v.dtype.code, v is not v.plain)
            found.num_pages = ref.value.num_pages
            found.num_free_pages = ref.value.num_free_pages
            found.page_size = ref.value.page_size
            found.bytes = ref.value.nbytes
            found.kv_heads = ref.value.kv_heads
            found.head_dim = ref.value.head_dim
            found.device_type = device.type
            found.device_id = device.ordinal
        finally:
            ref.lock.release()
        status = answer(info, &found, sizeof(found), b"kvit_cache_info")
    except BaseException as error:
        status = set_last_error(error)
    return status


cdef int32_t cache_destroy(kvit_cache *cache) noexcept nogil:
    return destroy(cache, HANDLE_CACHE)


cdef object to_counts(const int64_t *new_tokens, int64_t count):
    return None if new_tokens == NULL else tuple_of(new_tokens, count)


cdef int32_t cache_append(kvit_cache *cache, kvit_sequence *const *sequences, int64_t count, const kvit_tensor *k,
                          const kvit_tensor *v, const int64_t *new_tokens, kvit_stream stream) noexcept nogil:
    if not enter_python():
        return KVIT_ERROR_NO_INTERPRETER
    return leave_python(append(cache, sequences, count, k, v, NULL, NULL, new_tokens, stream))


cdef int32_t cache_append_rotated(kvit_cache *cache, kvit_sequence *const *sequences, int64_t count,
                                  const kvit_tensor *k, const kvit_tensor *v, const kvit_tensor *q,
                                  const kvit_tensor *q_out, const int64_t *new_tokens,
                                  kvit_stream stream) noexcept nogil:
    if not enter_python():
        return KVIT_ERROR_NO_INTERPRETER
    return leave_python(append(cache, sequences, count, k, v, q, q_out, new_tokens, stream))


cdef int32_t append(kvit_cache *cache, kvit_sequence *const *sequences, int64_t count, const kvit_tensor *k,
                    const kvit_tensor *v, const kvit_tensor *q, const kvit_tensor *q_out, const int64_t *new_tokens,
                    kvit_stream stream) noexcept with gil:
    cdef int32_t status = KVIT_OK
    cdef ObjectRef ref
    try:
        ref = find(cache, HANDLE_CACHE)
        seqs = find_all(sequences, count)
        ref.lock.acquire()
        try:
            ref.value.append(
                seqs, to_tensor(k, "k"), to_tensor(v, "v"), to_counts(new_tokens, count), q=to_tensor(q, "q", True),
                q_out=to_tensor(q_out, "q_out", True), stream=to_stream(stream, device_id_of(ref.value.view.k)),
            )
        finally:
            ref.lock.release()
    except BaseException as error:
        status = set_last_error(error)
    return status


cdef int32_t cache_attention(kvit_cache *cache, kvit_sequence *const *sequences, int64_t count, const kvit_tensor *q,
                             const kvit_tensor *out, const kvit_tensor *lse, const int64_t *new_tokens, float scale,
                             int32_t mask, kvit_stream stream) noexcept nogil:
    if not enter_python():
        return KVIT_ERROR_NO_INTERPRETER
    return leave_python(attend(cache, sequences, count, q, out, lse, new_tokens, scale, mask, stream))


cdef int32_t attend(kvit_cache *cache, kvit_sequence *const *sequences, int64_t count, const kvit_tensor *q,
                    const kvit_tensor *out, const kvit_tensor *lse, const int64_t *new_tokens, float scale,
                    int32_t mask, kvit_stream stream) noexcept with gil:
    cdef int32_t status = KVIT_OK
    cdef ObjectRef ref
    try:
        ref = find(cache, HANDLE_CACHE)
        seqs = find_all(sequences, count)
        causal = is_causal(mask)
        ref.lock.acquire()
        try:
            kvit.attention(
                to_tensor(q, "q"), ref.value, seqs, to_counts(new_tokens, count), out=to_tensor(out, "out"),
                lse=to_tensor(lse, "lse", True), causal=causal, scale=scale or None,
                stream=to_stream(stream, device_id_of(ref.value.view.k)),
            )
        finally:
            ref.lock.release()
    except BaseException as error:
        status = set_last_error(error)
    return status


cdef int32_t cache_gather(kvit_cache *cache, kvit_sequence *const *sequences, int64_t count, const kvit_tensor *k,
                          const kvit_tensor *v, kvit_stream stream) noexcept nogil:
    return cache_gather_layout(cache, sequences, count, k, v, KVIT_LAYOUT_NHD, stream)


cdef int32_t cache_gather_layout(kvit_cache *cache, kvit_sequence *const *sequences, int64_t count,
                                 const kvit_tensor *k, const kvit_tensor *v, int32_t layout,
                                 kvit_stream stream) noexcept nogil:
    if not enter_python():
        return KVIT_ERROR_NO_INTERPRETER
    return leave_python(gather(cache, sequences, count, k, v, layout, stream))


cdef int32_t gather(kvit_cache *cache, kvit_sequence *const *sequences, int64_t count, const kvit_tensor *k,
                    const kvit_tensor *v, int32_t layout, kvit_stream stream) noexcept with gil:
    cdef int32_t status = KVIT_OK
    cdef ObjectRef ref
    try:
        ref = find(cache, HANDLE_CACHE)
        seqs = find_all(sequences, count)
        ref.lock.acquire()
        try:
            ref.value.gather(
                seqs, out=(to_tensor(k, "k"), to_tensor(v, "v")), layout=to_layout(layout, "NHD"),
                stream=to_stream(stream, device_id_of(ref.value.view.k)),
            )
        finally:
            ref.lock.release()
    except BaseException as error:
        status = set_last_error(error)
    return status


cdef int32_t cache_view(kvit_cache *cache, kvit_view **view) noexcept nogil:
    return leave_python(export_view(cache, view)) if enter_python() else KVIT_ERROR_NO_INTERPRETER


cdef int32_t export_view(kvit_cache *cache, kvit_view **view) noexcept with gil:
    cdef int32_t status = KVIT_OK
    cdef ObjectRef ref
    try:
        ref = find(cache, HANDLE_CACHE)
        check_target(view, "view", "kvit_view")
        view[0] = publish_view(ref.value.view)
    except BaseException as error:
        status = set_last_error(error)
    return status


cdef int32_t cache_check(kvit_cache *cache, kvit_stream stream, kvit_fault *fault) noexcept nogil:
    return leave_python(check(cache, stream, fault)) if enter_python() else KVIT_ERROR_NO_INTERPRETER


cdef int32_t check(kvit_cache *cache, kvit_stream stream, kvit_fault *fault) noexcept with gil:
    cdef int32_t status = KVIT_OK
    cdef ObjectRef ref
    try:
        ref = find(cache, HANDLE_CACHE)
        ref.lock.acquire()
        try:
            ref.value.check(to_stream(stream, device_id_of(ref.value.view.k)))
        finally:
            ref.lock.release()
    except BaseException as error:
        status = set_last_error(error, fault)
    return status
