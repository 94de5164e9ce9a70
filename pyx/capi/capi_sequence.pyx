"""Sequences of the caches of capi_cache, for C: kvit.Sequence behind handles."""
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memset

from kvit._native.capi_entry cimport enter_python, leave_python
from kvit._native.capi_error cimport set_last_error
from kvit._native.capi_handle cimport HANDLE_CACHE, HANDLE_SEQUENCE, destroy
from kvit._native.capi_object cimport CacheLock, ObjectRef, decref, find, hand_out, hold
from kvit._native.capi_option cimport answer, check_target
from kvit.capi cimport KVIT_ERROR_NO_INTERPRETER, KVIT_OK

from kvit._native.capi_error import ArgumentError


cdef int32_t sequence_create(kvit_cache *cache, kvit_sequence **sequence) noexcept nogil:
    return leave_python(create_sequence(cache, sequence)) if enter_python() else KVIT_ERROR_NO_INTERPRETER


cdef int32_t create_sequence(kvit_cache *cache, kvit_sequence **sequence) noexcept with gil:
    cdef int32_t status = KVIT_OK
    cdef ObjectRef ref
    try:
        ref = find(cache, HANDLE_CACHE)
        check_target(sequence, "sequence", "kvit_sequence")
        ref.lock.acquire()
        try:
            made = ref.value.sequence()
        finally:
            ref.lock.release()
        sequence[0] = publish_sequence(made, ref.lock)
    except BaseException as error:
        status = set_last_error(error)
    return status


cdef int32_t sequence_query(kvit_sequence *sequence, kvit_sequence_info *info) noexcept nogil:
    return leave_python(query_sequence(sequence, info)) if enter_python() else KVIT_ERROR_NO_INTERPRETER


cdef int32_t query_sequence(kvit_sequence *sequence, kvit_sequence_info *info) noexcept with gil:
    cdef int32_t status = KVIT_OK
    cdef kvit_sequence_info found
    cdef ObjectRef ref
    try:
        ref = find(sequence, HANDLE_SEQUENCE)
        memset(&found, 0, sizeof(found))
        ref.lock.acquire()
        try:
            found.length = len(ref.value)
            found.num_pages = len(ref.value.pages)
        finally:
            ref.lock.release()
        status = answer(info, &found, sizeof(found), sizeof(found), b"kvit_sequence_info")
    except BaseException as error:
        status = set_last_error(error)
    return status


cdef int32_t sequence_pages(kvit_sequence *sequence, int32_t *pages, int64_t capacity, int64_t *count) noexcept nogil:
    return leave_python(write_pages(sequence, pages, capacity, count)) if enter_python() else KVIT_ERROR_NO_INTERPRETER


cdef int32_t write_pages(kvit_sequence *sequence, int32_t *pages, int64_t capacity, int64_t *count) noexcept with gil:
    cdef int32_t status = KVIT_OK
    cdef ObjectRef ref
    cdef int64_t i
    try:
        ref = find(sequence, HANDLE_SEQUENCE)
        if capacity < 0 or (pages == NULL and capacity != 0):
            raise ArgumentError(f"pages is {'NULL' if pages == NULL else 'there'} and capacity {capacity}; give memory "
                                "for so many, or capacity 0 to ask how many there are")
        ref.lock.acquire()
        try:
            ids = ref.value.pages
        finally:
            ref.lock.release()
        for i in range(min(capacity, <int64_t>len(ids))):
            pages[i] = ids[i]
        if count != NULL:
            count[0] = len(ids)
    except BaseException as error:
        status = set_last_error(error)
    return status


cdef int32_t sequence_fork(kvit_sequence *sequence, kvit_sequence **fork) noexcept nogil:
    return leave_python(fork_sequence(sequence, fork)) if enter_python() else KVIT_ERROR_NO_INTERPRETER


cdef int32_t fork_sequence(kvit_sequence *sequence, kvit_sequence **fork) noexcept with gil:
    cdef int32_t status = KVIT_OK
    cdef ObjectRef ref
    try:
        ref = find(sequence, HANDLE_SEQUENCE)
        check_target(fork, "fork", "kvit_sequence")
        ref.lock.acquire()
        try:
            made = ref.value.fork()
        finally:
            ref.lock.release()
        fork[0] = publish_sequence(made, ref.lock)
    except BaseException as error:
        status = set_last_error(error)
    return status


cdef int32_t sequence_truncate(kvit_sequence *sequence, int64_t length) noexcept nogil:
    return leave_python(truncate_sequence(sequence, length)) if enter_python() else KVIT_ERROR_NO_INTERPRETER


cdef int32_t truncate_sequence(kvit_sequence *sequence, int64_t length) noexcept with gil:
    cdef int32_t status = KVIT_OK
    cdef ObjectRef ref
    try:
        ref = find(sequence, HANDLE_SEQUENCE)
        ref.lock.acquire()
        try:
            ref.value.truncate(length)
        finally:
            ref.lock.release()
    except BaseException as error:
        status = set_last_error(error)
    return status


cdef int32_t sequence_destroy(kvit_sequence *sequence) noexcept nogil:
    return destroy(sequence, HANDLE_SEQUENCE)


cdef kvit_sequence *publish_sequence(object sequence, CacheLock lock) except NULL:
    return <kvit_sequence *>hand_out(HANDLE_SEQUENCE, hold(sequence, lock), drop)


cdef int32_t drop(void *state) noexcept:
    """Free the pages now, whoever else has the object, and whatever the handlers of signals raise meanwhile."""
    cdef ObjectRef ref = <ObjectRef>state
    cdef int32_t status = KVIT_OK
    try:
        interrupts = []
        ref.lock.acquire()
        try:
            free_whatever_comes(ref.value, interrupts)
        finally:
            ref.lock.release()
        for error in interrupts:
            status = set_last_error(error)
    except BaseException as error:
        status = set_last_error(error)
    decref(state)
    return status


cdef int free_whatever_comes(object sequence, list interrupts) except -1:
    """What was raised is kept for later: raised in Python's code, it would keep that from freeing again."""
    while True:
        try:
            sequence.free()
            return 0
        except Exception:
            raise
        except BaseException as error:
            interrupts.append(error)
