# cython: cdivision=True
"""The tensor maps of K and V of a cache, for kernels that copy by them: made once for a cache, copied into launches."""
from libc.stdint cimport int64_t
from libc.string cimport memcpy

from kvit._native.driver_calls cimport encode_tensor_map
from kvit._native.errors cimport check
from kvit._native.host cimport KVIT_HOST_TENSOR_MAP, KvitHostTensorMap

cdef enum:
    SPAN_BYTES = 128                       # of a row, in one box at most
    STRIDE_MULTIPLE = 16

cdef int64_t STRIDE_LIMIT = <int64_t>1 << 40


cdef int most_box_tokens(const MappedPool *k, const MappedPool *v, int page_size) noexcept nogil:
    cdef int tokens = KVIT_LEAST_BOX_TOKENS << (NUM_BOXES - 1)
    if not (is_mappable(k) and is_mappable(v)):
        return 0
    while tokens >= KVIT_LEAST_BOX_TOKENS and page_size % tokens != 0:
        tokens //= 2
    return tokens if tokens >= KVIT_LEAST_BOX_TOKENS else 0


cdef bint is_mappable(const MappedPool *pool) noexcept nogil:
    cdef int64_t strides = pool.page_stride | pool.token_stride | pool.head_stride
    return (
        pool.row_bytes % SPAN_BYTES == 0 or pool.row_bytes in (32, 64)
    ) and <size_t>pool.base % STRIDE_MULTIPLE == 0 and strides % STRIDE_MULTIPLE == 0 and 0 <= strides < STRIDE_LIMIT


cdef int make_tensor_maps(TensorMaps *maps, int tokens, Device home, const MappedPool *k, const MappedPool *v,
                          int num_pages, int page_size, int num_heads) except -1:
    cdef int index = index_of(tokens)
    cdef int entered = home.enter()
    try:
        encode(maps.maps[index][0], tokens, home, k, num_pages, page_size, num_heads)
        encode(maps.maps[index][1], tokens, home, v, num_pages, page_size, num_heads)
    finally:
        home.leave(entered)
    maps.made |= <unsigned int>1 << index
    return 0


cdef int copy_tensor_maps(const TensorMaps *maps, int tokens, unsigned char *k, unsigned char *v) noexcept nogil:
    cdef int found = tokens if tokens < maps.most_tokens else maps.most_tokens
    cdef int index = index_of(found)
    if not (maps.made >> index) & 1:
        return 0
    memcpy(k, maps.maps[index][0], 128)
    memcpy(v, maps.maps[index][1], 128)
    return found


cdef int index_of(int tokens) noexcept nogil:
    cdef int index = 0
    while KVIT_LEAST_BOX_TOKENS << index < tokens:
        index += 1
    return index


cdef int encode(unsigned char *map, int tokens, Device home, const MappedPool *pool, int num_pages, int page_size,
                int num_heads) except -1:
    cdef int span = SPAN_BYTES if pool.row_bytes >= SPAN_BYTES else pool.row_bytes
    cdef KvitHostTensorMap host
    # An axis has at least one place, and a step, even where nobody takes it.
    cdef int64_t[5] extents = [span, page_size, pool.row_bytes // span, num_heads, max(1, num_pages)]
    cdef int64_t[4] strides = [pool.token_stride, span, pool.head_stride, pool.page_stride]
    for axis in range(4):
        if strides[axis] < STRIDE_MULTIPLE:
            strides[axis] = STRIDE_MULTIPLE
    if not home.is_host:
        check(encode_tensor_map(map, pool.base, extents, strides, span, tokens), b"cuTensorMapEncodeTiled")
        return 0
    host.base = pool.base
    host.extents = extents
    host.strides = strides
    host.box_bytes = span
    host.box_tokens = tokens
    host.magic = KVIT_HOST_TENSOR_MAP
    memcpy(map, &host, sizeof(host))
    return 0
