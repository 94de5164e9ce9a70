"""Layers of a cache that owns its memory, for C: kvit.CacheLayer, and what a cache does in all of them at once."""
import kvit

from libc.string cimport memset

from kvit._native.capi_cache_args cimport attend as attend_to
from kvit._native.capi_cache_args cimport from_window, shares_kv, stream_for, to_attention, to_counts, to_growth
from kvit._native.capi_entry cimport enter_python, leave_python
from kvit._native.capi_error cimport set_last_error
from kvit._native.capi_handle cimport HANDLE_CACHE
from kvit._native.capi_object cimport ObjectRef, find, find_all
from kvit._native.capi_option cimport answer, check_target, is_set, stored_as, to_layout
from kvit._native.capi_tensor cimport to_tensor
from kvit._native.capi_view cimport publish_view
from kvit.capi cimport KVIT_ERROR_NO_INTERPRETER, KVIT_OK

from kvit._native.capi_error import ArgumentError


cdef int32_t layer_query(kvit_cache *cache, int32_t layer, kvit_layer_info *info) noexcept nogil:
    return leave_python(query(cache, layer, info)) if enter_python() else KVIT_ERROR_NO_INTERPRETER


cdef int32_t query(kvit_cache *cache, int32_t layer, kvit_layer_info *info) noexcept with gil:
    cdef int32_t status = KVIT_OK
    cdef kvit_layer_info found
    cdef ObjectRef ref
    try:
        ref = find(cache, HANDLE_CACHE)
        memset(&found, 0, sizeof(found))
        ref.lock.acquire()
        try:
            of = ref.value.layer(layer)
            k, v = of.view.codecs
            found.dtype = of.dtype.code
            found.k_dtype = stored_as(k.dtype.code, k is not k.plain)
            found.v_dtype = stored_as(v.dtype.code, v is not v.plain)
            found.kv_heads = of.kv_heads
            found.head_dim = of.head_dim
            found.v_dim = of.v_dim
            found.shares_kv = of.shares_kv
            found.has_rope = of.rope is not None
            found.window_left, found.window_right = from_window(of.window)
        finally:
            ref.lock.release()
        status = answer(info, &found, sizeof(found), sizeof(found), b"kvit_layer_info")
    except BaseException as error:
        status = set_last_error(error)
    return status


cdef int32_t layer_view(kvit_cache *cache, int32_t layer, kvit_view **view) noexcept nogil:
    return leave_python(export_view(cache, layer, view)) if enter_python() else KVIT_ERROR_NO_INTERPRETER


cdef int32_t export_view(kvit_cache *cache, int32_t layer, kvit_view **view) noexcept with gil:
    cdef int32_t status = KVIT_OK
    cdef ObjectRef ref
    try:
        ref = find(cache, HANDLE_CACHE)
        check_target(view, "view", "kvit_view")
        view[0] = publish_view(ref.value.layer(layer).view)
    except BaseException as error:
        status = set_last_error(error)
    return status


cdef int32_t layer_attention(kvit_cache *cache, int32_t layer, kvit_sequence *const *sequences, int64_t count,
                             const kvit_tensor *q, const kvit_tensor *out, const kvit_tensor *lse,
                             const int64_t *new_tokens, const kvit_attention_options *options,
                             kvit_stream stream) noexcept nogil:
    if not enter_python():
        return KVIT_ERROR_NO_INTERPRETER
    return leave_python(attend(cache, layer, sequences, count, q, out, lse, new_tokens, options, stream))


cdef int32_t attend(kvit_cache *cache, int32_t layer, kvit_sequence *const *sequences, int64_t count,
                    const kvit_tensor *q, const kvit_tensor *out, const kvit_tensor *lse, const int64_t *new_tokens,
                    const kvit_attention_options *options, kvit_stream stream) noexcept with gil:
    cdef int32_t status = KVIT_OK
    cdef ObjectRef ref
    try:
        ref = find(cache, HANDLE_CACHE)
        seqs, wishes = find_all(sequences, count), to_attention(options)
        ref.lock.acquire()
        try:
            attend_to(
                ref.value.layer(layer), seqs, to_counts(new_tokens, count), q, out, lse,
                stream_for(ref.value, stream), wishes,
            )
        finally:
            ref.lock.release()
    except BaseException as error:
        status = set_last_error(error)
    return status


cdef int32_t layer_gather(kvit_cache *cache, int32_t layer, kvit_sequence *const *sequences, int64_t count,
                          const kvit_tensor *k, const kvit_tensor *v, int32_t layout,
                          kvit_stream stream) noexcept nogil:
    if not enter_python():
        return KVIT_ERROR_NO_INTERPRETER
    return leave_python(gather(cache, layer, sequences, count, k, v, layout, stream))


cdef int32_t gather(kvit_cache *cache, int32_t layer, kvit_sequence *const *sequences, int64_t count,
                    const kvit_tensor *k, const kvit_tensor *v, int32_t layout, kvit_stream stream) noexcept with gil:
    cdef int32_t status = KVIT_OK
    cdef ObjectRef ref
    try:
        ref = find(cache, HANDLE_CACHE)
        seqs = find_all(sequences, count)
        ref.lock.acquire()
        try:
            rows = to_tensor(k, "k"), to_tensor(v, "v", shares_kv(ref.value, layer))
            ref.value.layer(layer).gather(
                seqs, out=rows, layout=to_layout(layout, "NHD"), stream=stream_for(ref.value, stream)
            )
        finally:
            ref.lock.release()
    except BaseException as error:
        status = set_last_error(error)
    return status


cdef int32_t cache_append_layers(kvit_cache *cache, kvit_sequence *const *sequences, int64_t count,
                                 const kvit_tensor *const *k, const kvit_tensor *const *v, int32_t num_layers,
                                 const int64_t *new_tokens, kvit_stream stream) noexcept nogil:
    if not enter_python():
        return KVIT_ERROR_NO_INTERPRETER
    return leave_python(append_all(cache, sequences, count, k, v, num_layers, new_tokens, stream))


cdef int32_t append_all(kvit_cache *cache, kvit_sequence *const *sequences, int64_t count,
                        const kvit_tensor *const *k, const kvit_tensor *const *v, int32_t num_layers,
                        const int64_t *new_tokens, kvit_stream stream) noexcept with gil:
    cdef int32_t status = KVIT_OK
    cdef ObjectRef ref
    try:
        ref = find(cache, HANDLE_CACHE)
        seqs = find_all(sequences, count)
        ref.lock.acquire()
        try:
            keys, values = rows_of_layers(ref.value, k, v, num_layers)
            if num_layers == 1:
                keys, values = keys[0], values[0]
            ref.value.append(
                seqs, keys, values, to_counts(new_tokens, count), stream=stream_for(ref.value, stream)
            )
        finally:
            ref.lock.release()
    except BaseException as error:
        status = set_last_error(error)
    return status


cdef tuple rows_of_layers(object cache, const kvit_tensor *const *k, const kvit_tensor *const *v, int32_t num_layers):
    """Lists of K and of V of each layer. Raises ArgumentError, ShapeError, and what to_tensor raises."""
    cdef const kvit_tensor *of_v = NULL
    cdef int32_t i
    if num_layers != cache.num_layers:
        raise kvit.ShapeError(
            f"num_layers is {num_layers}, and the cache has {cache.num_layers}; give K and V of every layer"
        )
    if k == NULL:
        raise ArgumentError("k is NULL; give the addresses of num_layers tensors")
    keys, values = [], []
    for i in range(num_layers):
        keys.append(to_tensor(k[i], f"k[{i}]"))
        if v != NULL:
            of_v = v[i]
        values.append(to_tensor(of_v, f"v[{i}]", shares_kv(cache, i)))
    return keys, values


cdef int32_t cache_pages_needed(kvit_cache *cache, kvit_sequence *const *sequences, int64_t count,
                                const int64_t *new_tokens, int64_t *pages) noexcept nogil:
    if not enter_python():
        return KVIT_ERROR_NO_INTERPRETER
    return leave_python(count_pages(cache, sequences, count, new_tokens, pages))


cdef int32_t count_pages(kvit_cache *cache, kvit_sequence *const *sequences, int64_t count, const int64_t *new_tokens,
                         int64_t *pages) noexcept with gil:
    cdef int32_t status = KVIT_OK
    cdef ObjectRef ref
    try:
        ref = find(cache, HANDLE_CACHE)
        seqs = find_all(sequences, count)
        check_target(pages, "pages", "int64_t")
        ref.lock.acquire()
        try:
            needed = ref.value.pages_needed(seqs, to_growth(new_tokens, count))
        finally:
            ref.lock.release()
        pages[0] = needed
    except BaseException as error:
        status = set_last_error(error)
    return status


cdef int32_t cache_shift(kvit_cache *cache, kvit_sequence *const *sequences, int64_t count, const int64_t *drop,
                         const int64_t *keep, int32_t rotate, kvit_stream stream) noexcept nogil:
    if not enter_python():
        return KVIT_ERROR_NO_INTERPRETER
    return leave_python(shift(cache, sequences, count, drop, keep, rotate, stream))


cdef int32_t shift(kvit_cache *cache, kvit_sequence *const *sequences, int64_t count, const int64_t *drop,
                   const int64_t *keep, int32_t rotate, kvit_stream stream) noexcept with gil:
    cdef int32_t status = KVIT_OK
    cdef ObjectRef ref
    try:
        ref = find(cache, HANDLE_CACHE)
        seqs, is_turned = find_all(sequences, count), is_set(rotate, "rotate")
        if drop == NULL:
            raise ArgumentError("drop is NULL; give how many tokens of each sequence go")
        ref.lock.acquire()
        try:
            if is_turned:
                require_rope(ref.value)
            ref.value.shift(
                seqs, to_counts(drop, count), keep=0 if keep == NULL else to_counts(keep, count), rotate=is_turned,
                stream=stream_for(ref.value, stream),
            )
        finally:
            ref.lock.release()
    except BaseException as error:
        status = set_last_error(error)
    return status


cdef int require_rope(object cache) except -1:
    for group in cache.groups:
        if group.rope is not None:
            return 0
    raise ArgumentError(
        "rotate is 1, and the cache has no rope, which would say how keys turn; give the cache a rope, or rotate 0 if "
        "its keys hold no position"
    )
