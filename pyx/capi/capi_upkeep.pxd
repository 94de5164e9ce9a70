# What C does with whole pages, and with a cache besides its steps.
from libc.stdint cimport int32_t, int64_t

from kvit.capi cimport kvit_cache, kvit_op, kvit_stream, kvit_tensor, kvit_view

# The functions of kvit_api. All take the GIL; those of a cache, then its lock.
cdef int32_t copy_pages(kvit_view *view, const kvit_tensor *source, const kvit_tensor *target,
                        kvit_stream stream) noexcept nogil
cdef int32_t convert_pages(kvit_view *source, kvit_view *target, const kvit_tensor *source_pages,
                           const kvit_tensor *target_pages, kvit_stream stream) noexcept nogil
cdef int32_t op_copy_pages(kvit_op *op, kvit_view *view, const kvit_tensor *source, const kvit_tensor *target,
                           const kvit_tensor *chains, kvit_stream stream) noexcept nogil
cdef int32_t op_convert_pages(kvit_op *op, kvit_view *source, kvit_view *target, const kvit_tensor *source_pages,
                              const kvit_tensor *target_pages, kvit_stream stream) noexcept nogil
cdef int32_t cache_defragment(kvit_cache *cache, int64_t *moved, kvit_stream stream) noexcept nogil
cdef int32_t cache_requantise(kvit_cache *cache, int32_t k_dtype, int32_t v_dtype, const kvit_tensor *k_scale,
                              const kvit_tensor *v_scale, kvit_stream stream) noexcept nogil
