"""Batches of a cache that owns its memory, for C: kvit.Batch behind a handle."""
import kvit

from libc.string cimport memset

from kvit._native.capi_cache_args cimport stream_for, to_growth
from kvit._native.capi_entry cimport enter_python, leave_python
from kvit._native.capi_error cimport set_last_error
from kvit._native.capi_handle cimport HANDLE_BATCH, HANDLE_CACHE, destroy
from kvit._native.capi_object cimport ObjectRef, decref, find, find_all, hand_out, hold
from kvit._native.capi_option cimport answer, check_size, check_target
from kvit._native.capi_step cimport attention_of, publish_step
from kvit.capi cimport KVIT_ERROR_NO_INTERPRETER, KVIT_OK, kvit_stream


cdef int32_t batch_create(kvit_cache *cache, kvit_sequence *const *sequences, int64_t count,
                          const kvit_batch_options *options, kvit_batch **batch) noexcept nogil:
    if not enter_python():
        return KVIT_ERROR_NO_INTERPRETER
    return leave_python(create(cache, sequences, count, options, batch))


cdef int32_t create(kvit_cache *cache, kvit_sequence *const *sequences, int64_t count,
                    const kvit_batch_options *options, kvit_batch **batch) noexcept with gil:
    cdef int32_t status = KVIT_OK
    cdef kvit_stream stream = NULL
    cdef ObjectRef ref
    try:
        ref = find(cache, HANDLE_CACHE)
        seqs, max_tokens = find_all(sequences, count), None
        if options != NULL:
            check_size(options, sizeof(kvit_batch_options), "kvit_batch_options")
            max_tokens, stream = options.max_tokens or None, options.stream
        check_target(batch, "batch", "kvit_batch")
        ref.lock.acquire()
        try:
            made = kvit.Batch(ref.value, seqs, max_tokens=max_tokens, stream=stream_for(ref.value, stream))
        finally:
            ref.lock.release()
        batch[0] = <kvit_batch *>hand_out(HANDLE_BATCH, hold(made, ref.lock), decref)
    except BaseException as error:
        status = set_last_error(error)
    return status


cdef int32_t batch_query(kvit_batch *batch, kvit_batch_info *info) noexcept nogil:
    return leave_python(query(batch, info)) if enter_python() else KVIT_ERROR_NO_INTERPRETER


cdef int32_t query(kvit_batch *batch, kvit_batch_info *info) noexcept with gil:
    cdef int32_t status = KVIT_OK
    cdef kvit_batch_info found
    cdef ObjectRef ref
    try:
        ref = find(batch, HANDLE_BATCH)
        memset(&found, 0, sizeof(found))
        ref.lock.acquire()
        try:
            found.has_open_step = ref.value.has_open_step
            found.num_sequences = len(ref.value)
            found.max_pages = ref.value.capacity
        finally:
            ref.lock.release()
        status = answer(info, &found, sizeof(found), sizeof(found), b"kvit_batch_info")
    except BaseException as error:
        status = set_last_error(error)
    return status


cdef int32_t batch_use(kvit_batch *batch, kvit_sequence *const *sequences, int64_t count) noexcept nogil:
    return leave_python(use(batch, sequences, count)) if enter_python() else KVIT_ERROR_NO_INTERPRETER


cdef int32_t use(kvit_batch *batch, kvit_sequence *const *sequences, int64_t count) noexcept with gil:
    cdef int32_t status = KVIT_OK
    cdef ObjectRef ref
    try:
        ref = find(batch, HANDLE_BATCH)
        seqs = find_all(sequences, count)
        ref.lock.acquire()
        try:
            ref.value.use(seqs)
        finally:
            ref.lock.release()
    except BaseException as error:
        status = set_last_error(error)
    return status


cdef int32_t batch_step(kvit_batch *batch, const int64_t *new_tokens, kvit_step **step) noexcept nogil:
    return leave_python(begin(batch, new_tokens, step)) if enter_python() else KVIT_ERROR_NO_INTERPRETER


cdef int32_t begin(kvit_batch *batch, const int64_t *new_tokens, kvit_step **step) noexcept with gil:
    cdef int32_t status = KVIT_OK
    cdef ObjectRef ref
    try:
        ref = find(batch, HANDLE_BATCH)
        check_target(step, "step", "kvit_step")
        ref.lock.acquire()
        try:
            made = ref.value.step(to_growth(new_tokens, len(ref.value)))
        finally:
            ref.lock.release()
        step[0] = publish_step(made, ref.lock)
    except BaseException as error:
        status = set_last_error(error)
    return status


cdef int32_t batch_attention(kvit_batch *batch, int32_t layer, const kvit_tensor *q, const kvit_tensor *out,
                             const kvit_tensor *lse, const int64_t *new_tokens,
                             const kvit_attention_options *options) noexcept nogil:
    return attention_of(batch, HANDLE_BATCH, layer, q, out, lse, new_tokens, options)


cdef int32_t batch_destroy(kvit_batch *batch) noexcept nogil:
    return destroy(batch, HANDLE_BATCH)
