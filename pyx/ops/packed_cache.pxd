# K and V of a cache as kernels take them, packed once.
from libc.stdint cimport int32_t
from libc.string cimport memcmp

from kvit._native.checks cimport DeviceId
from kvit._native.context cimport Device
from kvit._native.overlaps cimport Extent, cross
from kvit._native.params cimport KvitCache
from kvit._native.spans cimport Spans
from kvit._native.stream cimport Stream
from kvit._native.tensor cimport Tensor
from kvit._native.tensor_map cimport Boxes, TensorMaps
from kvit.capi cimport kvit_tensor


# What calls that were made for one cache ask of another: shape, dtypes (enum KvitDtype), device.
cdef struct CacheType:
    DeviceId device
    int32_t dtype                      # of queries, of (scale, zero), and of rows that are appended
    int32_t k_dtype
    int32_t v_dtype
    int32_t kv_heads
    int32_t k_dim, v_dim
    int32_t k_hadamard, v_hadamard     # channels of a block, as KvitCache has them
    int32_t smoothing                  # of keys: 0 none, 1 widths, 2 means too

cdef inline bint is_same_type(const CacheType *a, const CacheType *b) noexcept nogil:
    return memcmp(a, b, sizeof(CacheType)) == 0


cdef class PackedCache:
    cdef KvitCache value
    cdef CacheType type
    cdef TensorMaps maps               # made when a kernel first asks for them
    cdef readonly Tensor k
    cdef readonly Tensor v
    cdef readonly Tensor k_params
    cdef readonly Tensor v_params
    cdef readonly Tensor smoothing     # float32 [3, kv_heads, k_dim] of keys: mean, width, 1 / width; None: none
    cdef readonly Tensor blocks
    cdef readonly tuple memory
    cdef Extent[6] extents             # of k, v, k_params, v_params, blocks and all of `memory`
    # Whether rows lie over each other, of one pool or of two: nobody may write such a cache. Not asked of blocks.
    cdef readonly bint meets_itself

    # Makes the maps of boxes of at most `tokens`, for kernels on `device`.
    cdef int make_maps(self, Boxes boxes, Device device) except -1


# What kvit.CacheView derives from: a call finds `packed` without a look-up.
cdef class HoldsCache:
    cdef public PackedCache packed


# Whether an extent crosses the cache's memory: what does not, does not lie over it.
cdef inline bint crosses_cache(const Extent *extent, PackedCache cache) noexcept:
    cdef int i
    for i in range(6):
        if cross(extent, &cache.extents[i]):
            return True
    return False

# Whether these elements lie over the cache's memory; also where strides do not tell them apart. False for NULL.
cdef bint meets_cache(const kvit_tensor *memory, PackedCache cache) noexcept

# Lets a launch touch all of a cache, once its producers are done.
cdef int use_cache(Spans *spans, Stream stream, PackedCache cache, bint is_written) except -1
