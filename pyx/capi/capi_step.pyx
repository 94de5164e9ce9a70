"""Steps of a cache that owns its memory, for C: kvit.PagedCache.step behind a handle."""
from kvit._native.capi_cache_args cimport attend as attend_to
from kvit._native.capi_cache_args cimport shares_kv, stream_for, to_attention, to_counts, to_growth
from kvit._native.capi_entry cimport enter_python, leave_python
from kvit._native.capi_error cimport set_last_error
from kvit._native.capi_handle cimport HANDLE_BATCH, HANDLE_CACHE, HANDLE_STEP, destroy
from kvit._native.capi_object cimport CacheLock, ObjectRef, decref, find, find_all, hand_out, hold
from kvit._native.capi_option cimport check_target
from kvit._native.capi_tensor cimport to_tensor
from kvit.capi cimport KVIT_ERROR_NO_INTERPRETER, KVIT_OK


cdef int32_t step_create(kvit_cache *cache, kvit_sequence *const *sequences, int64_t count, const int64_t *new_tokens,
                         kvit_stream stream, kvit_step **step) noexcept nogil:
    if not enter_python():
        return KVIT_ERROR_NO_INTERPRETER
    return leave_python(create(cache, sequences, count, new_tokens, stream, step))


cdef int32_t create(kvit_cache *cache, kvit_sequence *const *sequences, int64_t count, const int64_t *new_tokens,
                    kvit_stream stream, kvit_step **step) noexcept with gil:
    cdef int32_t status = KVIT_OK
    cdef ObjectRef ref
    try:
        ref = find(cache, HANDLE_CACHE)
        seqs = find_all(sequences, count)
        check_target(step, "step", "kvit_step")
        ref.lock.acquire()
        try:
            made = ref.value.step(seqs, to_growth(new_tokens, count), stream=stream_for(ref.value, stream))
        finally:
            ref.lock.release()
        step[0] = publish_step(made, ref.lock)
    except BaseException as error:
        status = set_last_error(error)
    return status


cdef int32_t step_append(kvit_step *step, int32_t layer, const kvit_tensor *k, const kvit_tensor *v,
                         const kvit_tensor *q, const kvit_tensor *q_out) noexcept nogil:
    return leave_python(append(step, layer, k, v, q, q_out)) if enter_python() else KVIT_ERROR_NO_INTERPRETER


cdef int32_t append(kvit_step *step, int32_t layer, const kvit_tensor *k, const kvit_tensor *v, const kvit_tensor *q,
                    const kvit_tensor *q_out) noexcept with gil:
    cdef int32_t status = KVIT_OK
    cdef ObjectRef ref
    try:
        ref = find(step, HANDLE_STEP)
        ref.lock.acquire()
        try:
            cache = ref.value.cache
            cache.layer(layer).append(
                ref.value, to_tensor(k, "k"), to_tensor(v, "v", shares_kv(cache, layer)), q=to_tensor(q, "q", True),
                q_out=to_tensor(q_out, "q_out", True),
            )
        finally:
            ref.lock.release()
    except BaseException as error:
        status = set_last_error(error)
    return status


cdef int32_t step_attention(kvit_step *step, int32_t layer, const kvit_tensor *q, const kvit_tensor *out,
                            const kvit_tensor *lse, const int64_t *new_tokens,
                            const kvit_attention_options *options) noexcept nogil:
    return attention_of(step, HANDLE_STEP, layer, q, out, lse, new_tokens, options)


cdef int32_t attention_of(const void *handle, int kind, int32_t layer, const kvit_tensor *q, const kvit_tensor *out,
                          const kvit_tensor *lse, const int64_t *new_tokens,
                          const kvit_attention_options *options) noexcept nogil:
    if not enter_python():
        return KVIT_ERROR_NO_INTERPRETER
    return leave_python(attend(handle, kind, layer, q, out, lse, new_tokens, options))


cdef int32_t attend(const void *handle, int kind, int32_t layer, const kvit_tensor *q, const kvit_tensor *out,
                    const kvit_tensor *lse, const int64_t *new_tokens,
                    const kvit_attention_options *options) noexcept with gil:
    cdef int32_t status = KVIT_OK
    cdef ObjectRef ref
    try:
        ref = find(handle, kind)
        wishes = to_attention(options)
        ref.lock.acquire()
        try:
            members = ref.value.seqs if kind == HANDLE_BATCH else ref.value.lengths
            counts = to_counts(new_tokens, len(members))
            attend_to(ref.value.cache.layer(layer), ref.value, counts, q, out, lse, None, wishes)
        finally:
            ref.lock.release()
    except BaseException as error:
        status = set_last_error(error)
    return status


cdef int32_t step_commit(kvit_step *step) noexcept nogil:
    return leave_python(commit(step)) if enter_python() else KVIT_ERROR_NO_INTERPRETER


cdef int32_t commit(kvit_step *step) noexcept with gil:
    cdef int32_t status = KVIT_OK
    cdef ObjectRef ref
    try:
        ref = find(step, HANDLE_STEP)
        ref.lock.acquire()
        try:
            ref.value.commit()
        finally:
            ref.lock.release()
    except BaseException as error:
        status = set_last_error(error)
    return status


cdef int32_t step_destroy(kvit_step *step) noexcept nogil:
    return destroy(step, HANDLE_STEP)


cdef kvit_step *publish_step(object step, CacheLock lock) except NULL:
    return <kvit_step *>hand_out(HANDLE_STEP, hold(step, lock), drop)


cdef int32_t drop(void *state) noexcept:
    """Give the pages back now, whoever else has the object, and whatever the handlers of signals raise meanwhile."""
    cdef ObjectRef ref = <ObjectRef>state
    cdef int32_t status = KVIT_OK
    try:
        ref.lock.acquire()
        try:
            ref.value.growth.close()  # in C, and before any Python code: the table alone is left to Python
            ref.value.close()
        finally:
            ref.lock.release()
    except BaseException as error:
        status = set_last_error(error)
    decref(state)
    return status
