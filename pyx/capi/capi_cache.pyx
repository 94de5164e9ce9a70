"""The cache that owns its memory, for C: kvit.PagedCache behind a handle.

Every function is the same few lines: enter Python, find the objects of the handles, hold the cache's lock, call. The
lock makes whole calls follow one another, which the GIL alone does not.
"""
import kvit

from libc.stdint cimport int32_t, int64_t
from libc.string cimport memset

from kvit._native.capi_cache_args cimport attend as attend_to
from kvit._native.capi_cache_args cimport device_for, require_one_layer, shares_kv, stream_for, to_counts
from kvit._native.capi_entry cimport enter_python, leave_python
from kvit._native.capi_error cimport set_last_error
from kvit._native.capi_handle cimport HANDLE_CACHE, destroy
from kvit._native.capi_object cimport CacheLock, ObjectRef, decref, find, find_all, hand_out, hold
from kvit._native.capi_option cimport (
    answer, check_target, is_causal, is_set, read_options, stored_as, to_codec, to_dtype, to_layout,
)
from kvit._native.capi_rope cimport to_rope
from kvit._native.capi_spec cimport to_layers, to_storage
from kvit._native.capi_tensor cimport to_device, to_tensor
from kvit._native.capi_view cimport publish_view
from kvit._native.checks cimport DeviceId
from kvit.capi cimport KVIT_ERROR_NO_INTERPRETER, KVIT_LAYOUT_NHD, KVIT_OK


cdef extern from "<stddef.h>":
    const size_t CACHE_OPTIONS_BEFORE_ROPE "offsetof(kvit_cache_options, rope)"
    const size_t CACHE_OPTIONS_BEFORE_SPECS "offsetof(kvit_cache_options, specs)"
    const size_t CACHE_INFO_BEFORE_LAYERS "offsetof(kvit_cache_info, num_layers)"


cdef int32_t cache_create(const kvit_cache_options *options, kvit_cache **cache) noexcept nogil:
    return leave_python(create(options, cache)) if enter_python() else KVIT_ERROR_NO_INTERPRETER


cdef int32_t create(const kvit_cache_options *options, kvit_cache **cache) noexcept with gil:
    cdef int32_t status = KVIT_OK
    cdef kvit_cache_options wanted
    try:
        earlier = [CACHE_OPTIONS_BEFORE_ROPE, CACHE_OPTIONS_BEFORE_SPECS]
        read_options(&wanted, options, earlier, sizeof(wanted), "kvit_cache_options")
        options = &wanted
        check_target(cache, "cache", "kvit_cache")
        given = {
            "dtype": to_dtype(options.dtype, "dtype of kvit_cache_options"),
            "k": to_codec(options.k_dtype, "k_dtype of kvit_cache_options"),
            "v": to_codec(options.v_dtype, "v_dtype of kvit_cache_options"),
            "k_scale": to_tensor(options.k_scale, "k_scale", True),
            "v_scale": to_tensor(options.v_scale, "v_scale", True),
            "rope": to_rope(options.rope),
            "v_dim": options.v_dim or None,
        }
        made = kvit.PagedCache(
            options.pages, options.page_size, options.kv_heads, options.head_dim,
            layers=to_layers(options),
            shares_kv=is_set(options.shares_kv, "shares_kv"),
            storage=to_storage(options),
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
            device = device_for(ref.value)
            found.dtype = ref.value.dtype.code
            found.k_dtype, found.v_dtype = common_dtype(ref.value, 0), common_dtype(ref.value, 1)
            found.num_layers = ref.value.num_layers
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
        status = answer(info, &found, CACHE_INFO_BEFORE_LAYERS, sizeof(found), b"kvit_cache_info")
    except BaseException as error:
        status = set_last_error(error)
    return status


cdef int32_t common_dtype(object cache, int side) except -1:
    """How K (0) or V (1) of all layers is stored; 0 where layers differ."""
    codec = cache.groups[0].kind.sides[side]
    for group in cache.groups:
        if group.kind.sides[side] is not codec:
            return 0
    return stored_as(codec.dtype.code, codec is not codec.plain)


cdef int32_t cache_destroy(kvit_cache *cache) noexcept nogil:
    return destroy(cache, HANDLE_CACHE)


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
            require_one_layer(ref.value, "cache_append", "cache_append_layers, or step_append in a step")
            ref.value.append(
                seqs, to_tensor(k, "k"), to_tensor(v, "v", shares_kv(ref.value, 0)), to_counts(new_tokens, count),
                q=to_tensor(q, "q", True), q_out=to_tensor(q_out, "q_out", True),
                stream=stream_for(ref.value, stream),
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
        wishes = {"causal": is_causal(mask), "scale": scale or None}
        ref.lock.acquire()
        try:
            require_one_layer(ref.value, "cache_attention", "layer_attention, or step_attention in a step")
            attend_to(
                ref.value, seqs, to_counts(new_tokens, count), q, out, lse, stream_for(ref.value, stream), wishes
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
            require_one_layer(ref.value, "cache_gather", "layer_gather")
            ref.value.gather(
                seqs, out=(to_tensor(k, "k"), to_tensor(v, "v", shares_kv(ref.value, 0))),
                layout=to_layout(layout, "NHD"),
                stream=stream_for(ref.value, stream),
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
        require_one_layer(ref.value, "cache_view", "layer_view")
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
            ref.value.check(stream_for(ref.value, stream))
        finally:
            ref.lock.release()
    except BaseException as error:
        status = set_last_error(error, fault)
    return status
