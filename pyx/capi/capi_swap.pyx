"""Sequences in host memory, for C: kvit.cache.swap.SwappedSequence behind a handle."""
from libc.string cimport memset

from kvit._native.capi_cache_args cimport stream_for
from kvit._native.capi_entry cimport enter_python, leave_python
from kvit._native.capi_error cimport set_last_error
from kvit._native.capi_handle cimport HANDLE_CACHE, HANDLE_SEQUENCE, HANDLE_SWAPPED, destroy
from kvit._native.capi_object cimport ObjectRef, decref, find, hand_out, hold
from kvit._native.capi_option cimport answer, check_target
from kvit._native.capi_sequence cimport publish_sequence
from kvit.capi cimport KVIT_ERROR_NO_INTERPRETER, KVIT_OK


cdef int32_t cache_swap_out(kvit_cache *cache, kvit_sequence *sequence, kvit_stream stream,
                            kvit_swapped **swapped) noexcept nogil:
    return leave_python(swap_out(cache, sequence, stream, swapped)) if enter_python() else KVIT_ERROR_NO_INTERPRETER


cdef int32_t swap_out(kvit_cache *cache, kvit_sequence *sequence, kvit_stream stream,
                      kvit_swapped **swapped) noexcept with gil:
    cdef int32_t status = KVIT_OK
    cdef ObjectRef ref
    try:
        ref = find(cache, HANDLE_CACHE)
        seq = find(sequence, HANDLE_SEQUENCE).value
        check_target(swapped, "swapped", "kvit_swapped")
        ref.lock.acquire()
        try:
            made = ref.value.swap_out(seq, stream=stream_for(ref.value, stream))
        finally:
            ref.lock.release()
        swapped[0] = <kvit_swapped *>hand_out(HANDLE_SWAPPED, hold(made, None), decref)  # of no cache
    except BaseException as error:
        status = set_last_error(error)
    return status


cdef int32_t cache_swap_in(kvit_cache *cache, kvit_swapped *swapped, kvit_stream stream,
                           kvit_sequence **sequence) noexcept nogil:
    return leave_python(swap_in(cache, swapped, stream, sequence)) if enter_python() else KVIT_ERROR_NO_INTERPRETER


cdef int32_t swap_in(kvit_cache *cache, kvit_swapped *swapped, kvit_stream stream,
                     kvit_sequence **sequence) noexcept with gil:
    cdef int32_t status = KVIT_OK
    cdef ObjectRef ref
    try:
        ref = find(cache, HANDLE_CACHE)
        source = find(swapped, HANDLE_SWAPPED).value
        check_target(sequence, "sequence", "kvit_sequence")
        ref.lock.acquire()
        try:
            made = ref.value.swap_in(source, stream=stream_for(ref.value, stream))
        finally:
            ref.lock.release()
        sequence[0] = publish_sequence(made, ref.lock)
    except BaseException as error:
        status = set_last_error(error)
    return status


cdef int32_t swapped_query(kvit_swapped *swapped, kvit_swapped_info *info) noexcept nogil:
    return leave_python(query(swapped, info)) if enter_python() else KVIT_ERROR_NO_INTERPRETER


cdef int32_t query(kvit_swapped *swapped, kvit_swapped_info *info) noexcept with gil:
    cdef int32_t status = KVIT_OK
    cdef kvit_swapped_info found
    try:
        source = find(swapped, HANDLE_SWAPPED).value
        memset(&found, 0, sizeof(found))
        found.length = source.length
        found.num_pages = source.pages
        found.bytes = source.nbytes
        status = answer(info, &found, sizeof(found), sizeof(found), b"kvit_swapped_info")
    except BaseException as error:
        status = set_last_error(error)
    return status


cdef int32_t swapped_destroy(kvit_swapped *swapped) noexcept nogil:
    return destroy(swapped, HANDLE_SWAPPED)
