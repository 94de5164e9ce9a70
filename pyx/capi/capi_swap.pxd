# Sequences in host memory, for C: functions of kvit_api. All take the GIL; those on a cache its lock too.
from libc.stdint cimport int32_t

from kvit.capi cimport kvit_cache, kvit_sequence, kvit_stream, kvit_swapped, kvit_swapped_info

cdef int32_t cache_swap_out(kvit_cache *cache, kvit_sequence *sequence, kvit_stream stream,
                            kvit_swapped **swapped) noexcept nogil
cdef int32_t cache_swap_in(kvit_cache *cache, kvit_swapped *swapped, kvit_stream stream,
                           kvit_sequence **sequence) noexcept nogil
cdef int32_t swapped_query(kvit_swapped *swapped, kvit_swapped_info *info) noexcept nogil
cdef int32_t swapped_destroy(kvit_swapped *swapped) noexcept nogil
