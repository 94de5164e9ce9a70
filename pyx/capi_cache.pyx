"""The cache that owns its memory, for C: kvit.PagedCache and its sequences behind handles.

Every function is the same few lines: enter Python, find the objects of the handles, hold the cache's lock, call. The
lock makes whole calls follow one another, which the GIL alone does not.
"""
import threading

import kvit

from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memset

from kvit._native.capi_error cimport has_python, tell
from kvit._native.capi_handle cimport HANDLE_CACHE, HANDLE_SEQUENCE, Slot, pin, publish, retire, unpin
from kvit._native.capi_tensor cimport Place, answer, check_size, place_of, to_device, to_dtype, to_stream, to_tensor
from kvit.capi cimport (
    KVIT_ERROR_NO_INTERPRETER, KVIT_LAYOUT_DEFAULT, KVIT_LAYOUT_HND, KVIT_LAYOUT_NHD, KVIT_MASK_CAUSAL, KVIT_MASK_NONE,
    KVIT_OK,
)

from kvit._native.capi_error import ArgumentError

_LAYOUTS = {KVIT_LAYOUT_DEFAULT: "HND", KVIT_LAYOUT_HND: "HND", KVIT_LAYOUT_NHD: "NHD"}


class _Told(Exception):
    """A handle that is none: the thread knows already, and `status` is what its call returns."""

    def __init__(self, int32_t status):
        self.status = status


cdef class Held:
    """What a handle of a cache or a sequence stands for."""

    cdef object thing          # kvit.PagedCache or kvit.Sequence
    cdef object lock           # of the cache


cdef Held hold(object thing, object lock):
    cdef Held held = Held.__new__(Held)
    held.thing, held.lock = thing, lock
    return held


cdef void *hand_out(int kind, Held held) except NULL:
    cdef void *handle = publish(kind, <void *>held)
    Py_INCREF(held)
    return handle


cdef Held find(const void *handle, int kind):
    """The object of a handle; it lives on while a call has it, whoever destroys the handle."""
    cdef Slot *slot
    cdef Held held
    cdef int32_t status = pin(handle, kind, &slot)
    if status != KVIT_OK:
        raise _Told(status)
    held = <Held>slot.state
    unpin(slot)
    return held


cdef int32_t refuse(object error, kvit_fault *fault=NULL) noexcept:
    return error.status if isinstance(error, _Told) else tell(error, fault)


cdef int32_t cache_create(const kvit_cache_options *options, kvit_cache **cache) noexcept nogil:
    return create(options, cache) if has_python() else KVIT_ERROR_NO_INTERPRETER


cdef int32_t create(const kvit_cache_options *options, kvit_cache **cache) noexcept with gil:
    try:
        check_size(options, sizeof(kvit_cache_options), "kvit_cache_options")
        if cache == NULL:
            raise ArgumentError("cache is NULL; give the address of a kvit_cache *")
        layout = _LAYOUTS.get(options.layout)
        if layout is None:
            raise ArgumentError(f"layout is {options.layout}; give KVIT_LAYOUT_NHD (1) or KVIT_LAYOUT_HND (2)")
        given = {
            "dtype": to_dtype(options.dtype, "dtype of kvit_cache_options"),
            "k": to_dtype(options.k_dtype, "k_dtype of kvit_cache_options"),
            "v": to_dtype(options.v_dtype, "v_dtype of kvit_cache_options"),
            "k_scale": to_tensor(options.k_scale, "k_scale", True),
            "v_scale": to_tensor(options.v_scale, "v_scale", True),
        }
        made = kvit.PagedCache(
            options.pages, options.page_size, options.kv_heads, options.head_dim, layout=layout,
            device=to_device(options.device_type, options.device_id),
            **{name: value for name, value in given.items() if value is not None},
        )
        cache[0] = <kvit_cache *>hand_out(HANDLE_CACHE, hold(made, threading.Lock()))
        return KVIT_OK
    except BaseException as error:
        return refuse(error)


cdef int32_t cache_query(kvit_cache *cache, kvit_cache_info *info) noexcept nogil:
    return query(cache, info) if has_python() else KVIT_ERROR_NO_INTERPRETER


cdef int32_t query(kvit_cache *cache, kvit_cache_info *info) noexcept with gil:
    cdef kvit_cache_info found
    cdef Held held
    cdef Place place
    try:
        held = find(cache, HANDLE_CACHE)
        memset(&found, 0, sizeof(found))
        with held.lock:
            place = place_of(held.thing.view.k)
            found.dtype = held.thing.dtype.code
            found.k_dtype = held.thing.view.k.dtype.code
            found.v_dtype = held.thing.view.v.dtype.code
            found.num_pages = held.thing.num_pages
            found.num_free_pages = held.thing.num_free_pages
            found.page_size = held.thing.page_size
            found.bytes = held.thing.nbytes
            found.kv_heads = held.thing.kv_heads
            found.head_dim = held.thing.head_dim
            found.device_type = place.device_type
            found.device_id = place.device_id
        return answer(info, &found, sizeof(found), b"kvit_cache_info")
    except BaseException as error:
        return refuse(error)


cdef int32_t cache_destroy(kvit_cache *cache) noexcept nogil:
    return destroy(cache) if has_python() else KVIT_ERROR_NO_INTERPRETER


cdef int32_t destroy(kvit_cache *cache) noexcept with gil:
    cdef void *state = NULL
    cdef int32_t status = retire(cache, HANDLE_CACHE, &state)
    if status == KVIT_OK:
        Py_DECREF(<object>state)
    return status


cdef list find_all(kvit_sequence *const *sequences, int64_t count):
    if count < 0 or (sequences == NULL and count != 0):
        raise ArgumentError(f"sequences is {'NULL' if sequences == NULL else 'there'} and count {count}; "
                            "give as many handles as count says")
    return [find(sequences[i], HANDLE_SEQUENCE).thing for i in range(count)]


cdef object to_counts(const int64_t *lengths, int64_t count):
    return None if lengths == NULL else [lengths[i] for i in range(count)]


cdef int32_t cache_append(kvit_cache *cache, kvit_sequence *const *sequences, int64_t count, const kvit_tensor *k,
                          const kvit_tensor *v, const int64_t *lengths, kvit_stream stream) noexcept nogil:
    return append(cache, sequences, count, k, v, lengths, stream) if has_python() else KVIT_ERROR_NO_INTERPRETER


cdef int32_t append(kvit_cache *cache, kvit_sequence *const *sequences, int64_t count, const kvit_tensor *k,
                    const kvit_tensor *v, const int64_t *lengths, kvit_stream stream) noexcept with gil:
    cdef Held held
    try:
        held = find(cache, HANDLE_CACHE)
        seqs = find_all(sequences, count)
        with held.lock:
            held.thing.append(
                seqs, to_tensor(k, "k"), to_tensor(v, "v"), to_counts(lengths, count),
                stream=to_stream(stream, place_of(held.thing.view.k)),
            )
        return KVIT_OK
    except BaseException as error:
        return refuse(error)


cdef int32_t cache_attention(kvit_cache *cache, kvit_sequence *const *sequences, int64_t count, const kvit_tensor *q,
                             const kvit_tensor *out, const kvit_tensor *lse, const int64_t *lengths, float scale,
                             int32_t mask, kvit_stream stream) noexcept nogil:
    if not has_python():
        return KVIT_ERROR_NO_INTERPRETER
    return attend(cache, sequences, count, q, out, lse, lengths, scale, mask, stream)


cdef int32_t attend(kvit_cache *cache, kvit_sequence *const *sequences, int64_t count, const kvit_tensor *q,
                    const kvit_tensor *out, const kvit_tensor *lse, const int64_t *lengths, float scale, int32_t mask,
                    kvit_stream stream) noexcept with gil:
    cdef Held held
    try:
        held = find(cache, HANDLE_CACHE)
        seqs = find_all(sequences, count)
        if mask not in (KVIT_MASK_CAUSAL, KVIT_MASK_NONE):
            raise ArgumentError(f"mask is {mask}; give KVIT_MASK_CAUSAL (0) or KVIT_MASK_NONE (1)")
        with held.lock:
            kvit.attention(
                to_tensor(q, "q"), held.thing, seqs, to_counts(lengths, count), out=to_tensor(out, "out"),
                lse=to_tensor(lse, "lse", True), causal=mask == KVIT_MASK_CAUSAL, scale=scale or None,
                stream=to_stream(stream, place_of(held.thing.view.k)),
            )
        return KVIT_OK
    except BaseException as error:
        return refuse(error)


cdef int32_t cache_check(kvit_cache *cache, kvit_stream stream, kvit_fault *fault) noexcept nogil:
    return check(cache, stream, fault) if has_python() else KVIT_ERROR_NO_INTERPRETER


cdef int32_t check(kvit_cache *cache, kvit_stream stream, kvit_fault *fault) noexcept with gil:
    cdef Held held
    try:
        held = find(cache, HANDLE_CACHE)
        with held.lock:
            held.thing.check(to_stream(stream, place_of(held.thing.view.k)))
        return KVIT_OK
    except BaseException as error:
        return refuse(error, fault)


cdef int32_t sequence_create(kvit_cache *cache, kvit_sequence **sequence) noexcept nogil:
    return create_sequence(cache, sequence) if has_python() else KVIT_ERROR_NO_INTERPRETER


cdef int32_t create_sequence(kvit_cache *cache, kvit_sequence **sequence) noexcept with gil:
    cdef Held held
    try:
        held = find(cache, HANDLE_CACHE)
        if sequence == NULL:
            raise ArgumentError("sequence is NULL; give the address of a kvit_sequence *")
        sequence[0] = <kvit_sequence *>hand_out(HANDLE_SEQUENCE, hold(held.thing.sequence(), held.lock))
        return KVIT_OK
    except BaseException as error:
        return refuse(error)


cdef int32_t sequence_query(kvit_sequence *sequence, kvit_sequence_info *info) noexcept nogil:
    return query_sequence(sequence, info) if has_python() else KVIT_ERROR_NO_INTERPRETER


cdef int32_t query_sequence(kvit_sequence *sequence, kvit_sequence_info *info) noexcept with gil:
    cdef kvit_sequence_info found
    cdef Held held
    try:
        held = find(sequence, HANDLE_SEQUENCE)
        memset(&found, 0, sizeof(found))
        with held.lock:
            found.length = len(held.thing)
            found.num_pages = len(held.thing.pages)
        return answer(info, &found, sizeof(found), b"kvit_sequence_info")
    except BaseException as error:
        return refuse(error)


cdef int32_t sequence_fork(kvit_sequence *sequence, kvit_sequence **fork) noexcept nogil:
    return fork_sequence(sequence, fork) if has_python() else KVIT_ERROR_NO_INTERPRETER


cdef int32_t fork_sequence(kvit_sequence *sequence, kvit_sequence **fork) noexcept with gil:
    cdef Held held
    try:
        held = find(sequence, HANDLE_SEQUENCE)
        if fork == NULL:
            raise ArgumentError("fork is NULL; give the address of a kvit_sequence *")
        with held.lock:
            made = held.thing.fork()
        fork[0] = <kvit_sequence *>hand_out(HANDLE_SEQUENCE, hold(made, held.lock))
        return KVIT_OK
    except BaseException as error:
        return refuse(error)


cdef int32_t sequence_truncate(kvit_sequence *sequence, int64_t length) noexcept nogil:
    return truncate_sequence(sequence, length) if has_python() else KVIT_ERROR_NO_INTERPRETER


cdef int32_t truncate_sequence(kvit_sequence *sequence, int64_t length) noexcept with gil:
    cdef Held held
    try:
        held = find(sequence, HANDLE_SEQUENCE)
        with held.lock:
            held.thing.truncate(length)
        return KVIT_OK
    except BaseException as error:
        return refuse(error)


cdef int32_t sequence_destroy(kvit_sequence *sequence) noexcept nogil:
    return destroy_sequence(sequence) if has_python() else KVIT_ERROR_NO_INTERPRETER


cdef int32_t destroy_sequence(kvit_sequence *sequence) noexcept with gil:
    cdef void *state = NULL
    cdef int32_t status = retire(sequence, HANDLE_SEQUENCE, &state)
    if status != KVIT_OK:
        return status
    try:
        free_pages(<Held>state)
        return KVIT_OK
    except BaseException as error:
        return refuse(error)
    finally:
        Py_DECREF(<object>state)


cdef int free_pages(Held held) except -1:
    with held.lock:
        held.thing.free()
    return 0
