# cython: cdivision=True
"""The tensor maps of K and V of a cache, for kernels that copy by them: made once for a cache, copied into launches."""
from libc.stdint cimport int64_t, uintptr_t
from libc.string cimport memcpy

from kvit._native.context cimport Device, device_of
from kvit._native.driver_kernels cimport encode_tensor_map
from kvit._native.errors cimport check
from kvit._native.host cimport KVIT_HOST_TENSOR_MAP, KvitHostTensorMap

from kvit.errors import LayoutError, ShapeError

cdef enum:
    SPAN_BYTES = 128                       # of a row, in one box at most
    STRIDE_MULTIPLE = 16

cdef int64_t STRIDE_LIMIT = <int64_t>1 << 40


cdef void describe_maps(TensorMaps *maps, const MappedPool *k, const MappedPool *v, const MappedPool *k_pairs,
                        const MappedPool *v_pairs, int page_size) noexcept nogil:
    cdef int tokens = MOST_BOX
    maps.most_tokens = 0
    maps.shares_kv = lie_within(v, k)
    maps.may_be_packed = may_be_packed(k) and may_be_packed(v) and lie_by_twos(k_pairs) and lie_by_twos(v_pairs)
    if not (is_mappable(k) and is_mappable(v)):
        return
    while tokens >= KVIT_LEAST_BOX_TOKENS and page_size % tokens != 0:
        tokens //= 2
    if tokens >= KVIT_LEAST_BOX_TOKENS:
        maps.most_tokens = tokens


cdef bint is_mappable(const MappedPool *pool) noexcept nogil:
    cdef int64_t strides = pool.page_stride | pool.token_stride | pool.head_stride
    return (
        pool.row_bytes % SPAN_BYTES == 0 or pool.row_bytes in (32, 64)
    ) and <size_t>pool.base % STRIDE_MULTIPLE == 0 and strides % STRIDE_MULTIPLE == 0 and 0 <= strides < STRIDE_LIMIT


cdef bint may_be_packed(const MappedPool *pool) noexcept nogil:
    return pool.row_bytes >= SPAN_BYTES or pool.token_stride == pool.row_bytes


cdef bint lie_by_twos(const MappedPool *pairs) noexcept nogil:
    if pairs == NULL:
        return True
    cdef int64_t places = <int64_t>pairs.base | pairs.page_stride | pairs.head_stride
    return pairs.token_stride == pairs.row_bytes and places % (2 * pairs.row_bytes) == 0


cdef bint lie_within(const MappedPool *v, const MappedPool *k) noexcept nogil:
    """Whether rows of V are the first bytes of the rows of K."""
    return (v.base == k.base and v.page_stride == k.page_stride and v.token_stride == k.token_stride
            and v.head_stride == k.head_stride and v.row_bytes <= k.row_bytes)


cdef bint can_copy(const TensorMaps *maps, Boxes boxes) noexcept nogil:
    if boxes.shares_kv and not maps.shares_kv:
        return False
    return boxes.tokens == 0 or (maps.most_tokens > 0 and (maps.may_be_packed or not boxes.is_packed))


def pack_tensor_map(device, uintptr_t base, tuple strides, *, int row_bytes, int num_pages, int page_size,
                    int num_heads, int box_tokens, bint is_packed=False) -> bytes:
    """The KvitTensorMap of one pool, for a launch on `device` whose struct the caller packs.

    base        address of the pool on the device
    strides     (page, token, head), in bytes
    row_bytes   of a row, dense
    box_tokens  of a box: a power of two from 8 to 128 that divides page_size
    is_packed   several rows of fewer than 128 bytes, which lie one after the other, are one row of the map

    Raises LayoutError (a pool that no map describes, or none with packed rows), ShapeError (another box), DriverError.
    """
    cdef Device dev = device_of(device)
    cdef MappedPool pool
    cdef unsigned char[128] map
    cdef int entered
    pool.base = <void *>base
    pool.page_stride, pool.token_stride, pool.head_stride = strides
    pool.row_bytes = row_bytes
    if not is_mappable(&pool):
        raise LayoutError(
            f"rows of {row_bytes} bytes at {base:#x}, strides {strides} cannot be copied by boxes; rows must be 32 or "
            f"64 bytes or whole lines of {SPAN_BYTES}, the address and strides multiples of {STRIDE_MULTIPLE}, strides "
            f"not negative and below 2^40"
        )
    if is_packed and not may_be_packed(&pool):
        raise LayoutError(
            f"rows of {row_bytes} bytes lie {strides[1]} bytes apart; to be packed they must lie one after the other"
        )
    boxes = []
    for i in range(NUM_BOXES):
        boxes.append(KVIT_LEAST_BOX_TOKENS << i)
    if box_tokens not in boxes or page_size % box_tokens != 0:
        raise ShapeError(
            f"a box of {box_tokens} tokens in pages of {page_size}; it must be a power of two from "
            f"{KVIT_LEAST_BOX_TOKENS} to {MOST_BOX} that divides the page size"
        )
    entered = dev.enter()
    try:
        encode(map, Boxes(box_tokens, is_packed, False), dev, &pool, num_pages, page_size, num_heads)
    finally:
        dev.leave(entered)
    return (<const char *>map)[:sizeof(map)]


cdef int make_tensor_maps(TensorMaps *maps, Boxes boxes, Device dev, const MappedPool *k, const MappedPool *v,
                          int num_pages, int page_size, int num_heads) except -1:
    cdef int index, entered
    boxes = fitting(maps, boxes)
    index = index_of(boxes)
    entered = dev.enter()
    try:
        encode(maps.maps[index][0], boxes, dev, k, num_pages, page_size, num_heads)
        encode(maps.maps[index][1], boxes, dev, v, num_pages, page_size, num_heads)
    finally:
        dev.leave(entered)
    maps.made |= <unsigned int>1 << index
    return 0


cdef int copy_tensor_maps(const TensorMaps *maps, Boxes boxes, unsigned char *k, unsigned char *v) noexcept nogil:
    cdef int index
    boxes = fitting(maps, boxes)
    index = index_of(boxes)
    if not (maps.made >> index) & 1:
        return 0
    memcpy(k, maps.maps[index][0], 128)
    memcpy(v, maps.maps[index][1], 128)
    return boxes.tokens


cdef Boxes fitting(const TensorMaps *maps, Boxes boxes) noexcept nogil:
    if boxes.tokens > maps.most_tokens:
        boxes.tokens = maps.most_tokens
    return boxes


cdef int index_of(Boxes boxes) noexcept nogil:
    cdef int index = 0
    while KVIT_LEAST_BOX_TOKENS << index < boxes.tokens:
        index += 1
    return index + NUM_BOXES if boxes.is_packed else index


cdef int encode(unsigned char *map, Boxes boxes, Device dev, const MappedPool *pool, int num_pages, int page_size,
                int num_heads) except -1:
    cdef int span = SPAN_BYTES if pool.row_bytes >= SPAN_BYTES else pool.row_bytes
    cdef int packed_tokens = SPAN_BYTES // span if boxes.is_packed else 1
    cdef int box_rows = boxes.tokens // packed_tokens
    cdef KvitHostTensorMap host
    # An axis has at least one place, and a step, even where nobody takes it.
    cdef int64_t[5] extents = [span * packed_tokens, page_size // packed_tokens, pool.row_bytes // span, num_heads,
                               max(1, num_pages)]
    cdef int64_t[4] strides = [pool.token_stride * packed_tokens, span, pool.head_stride, pool.page_stride]
    for axis in range(4):
        if strides[axis] < STRIDE_MULTIPLE:
            strides[axis] = STRIDE_MULTIPLE
    if not dev.is_host:
        check(encode_tensor_map(map, pool.base, extents, strides, span * packed_tokens, box_rows,
                                min(dense_bytes(pool), promoted_bytes(dev))), b"cuTensorMapEncodeTiled")
        return 0
    host.base = pool.base
    host.extents = extents
    host.strides = strides
    host.box_bytes = span * packed_tokens
    host.box_tokens = box_rows
    host.magic = KVIT_HOST_TENSOR_MAP
    memcpy(map, &host, sizeof(host))
    return 0


cdef int64_t promoted_bytes(Device dev) except -1:
    """What L2 fetches at once, at most: by the rules for the card, as the choice of a kernel has them."""
    from kvit.selection.tuning import l2_promotion_bytes  # its files wait for the first map
    return l2_promotion_bytes(dev)


cdef int64_t dense_bytes(const MappedPool *pool) noexcept nogil:
    """Bytes that surely belong together: to fetch more than these into L2 would fetch other heads'."""
    return STRIDE_LIMIT if pool.token_stride == pool.row_bytes else pool.row_bytes
