"""K and V of a cache as kernels take them, packed once."""
from libc.stdint cimport int16_t, int64_t, uintptr_t
from libc.string cimport memset

from kvit._native.checks cimport are_pool, device_id_of
from kvit._native.elements cimport bits_of
from kvit._native.overlaps cimport extent_at, meet, meets_itself
from kvit._native.packers cimport memory_of
from kvit._native.params cimport KvitPool
from kvit._native.spans cimport use
from kvit._native.tensor_map cimport MappedPool, describe_maps, make_tensor_maps

from kvit.errors import refuse_copy


cdef enum:
    PAIR = 2                               # elements of a token's parameters, where these are integers'


cdef class PackedCache:
    """K and V of a cache as kernels take them.

    k, v                  memory of the pools, any shape
    strides               (page, token, head) in bytes, of K and of V
    k_dim, v_dim          channels of a row of K and of V
    dtype                 enum KvitDtype of queries and of (scale, zero); K's where that is 16 bits wide
    k_params, v_params    memory of the parameters, None where the codec has none, with their strides
    hadamard              channels of a block of the Hadamard transform of K and of V, 0: none
    smoothing             float32 [3, num_kv_heads, k_dim] of keys: mean, width and 1 / width; None: none
    has_mean              with a smoothing: a mean is not 0
    blocks                int64 [num_pages], addresses of pages; None: pages lie at their strides
    offsets               with blocks: where K, V and their parameters begin in a page; the tensors above are empty
                          then, and say types alone
    memory                with blocks: what their addresses point into
    """

    def __cinit__(self, Tensor k not None, Tensor v not None, tuple k_strides, tuple v_strides, int num_pages,
                  int page_size, int num_kv_heads, int k_dim, int v_dim, int dtype=0, Tensor k_params=None,
                  Tensor v_params=None, tuple k_params_strides=None, tuple v_params_strides=None,
                  Tensor blocks=None, tuple offsets=None, tuple memory=(), tuple hadamard=(0, 0),
                  Tensor smoothing=None, bint has_mean=False):
        memset(&self.value, 0, sizeof(KvitCache))
        self.k = k
        self.v = v
        self.k_params = k_params
        self.v_params = v_params
        set_pool(&self.value.pool[0], k, k_strides)
        set_pool(&self.value.pool[1], v, v_strides)
        if k_params is not None:
            set_pool(&self.value.pool[2], k_params, k_params_strides)
        if v_params is not None:
            set_pool(&self.value.pool[3], v_params, v_params_strides)
        self.value.num_pages = num_pages
        self.value.page_size = page_size
        self.value.num_kv_heads = num_kv_heads
        self.value.k_dim = <int16_t>k_dim
        self.value.v_dim = <int16_t>v_dim
        self.value.k_hadamard, self.value.v_hadamard = hadamard
        self.type.device = device_id_of(k)
        self.type.dtype = dtype if dtype else k.memory.dtype
        self.type.k_dtype = k.memory.dtype
        self.type.v_dtype = v.memory.dtype
        self.type.kv_heads = num_kv_heads
        self.type.k_dim = k_dim
        self.type.v_dim = v_dim
        self.type.k_hadamard, self.type.v_hadamard = hadamard
        if smoothing is not None:
            self.type.smoothing = 2 if has_mean else 1
        self.smoothing = smoothing
        self.blocks = blocks
        self.memory = memory
        set_extents(self)
        self.meets_itself = blocks is None and rows_meet(self)
        if blocks is not None:
            self.value.blocks = <const void *const *>blocks.memory.data
            for pool in range(4):
                self.value.pool[pool].base = <void *><uintptr_t>offsets[pool]
            return  # a tensor map has strides and no pointers
        cdef MappedPool keys = mapped(&self.value.pool[0], k, k_dim)
        cdef MappedPool values = mapped(&self.value.pool[1], v, v_dim)
        cdef MappedPool key_pairs, value_pairs
        if k_params is not None:
            key_pairs = mapped(&self.value.pool[2], k_params, PAIR)
        if v_params is not None:
            value_pairs = mapped(&self.value.pool[3], v_params, PAIR)
        describe_maps(&self.maps, &keys, &values, &key_pairs if has_pairs(k_params) else NULL,
                      &value_pairs if has_pairs(v_params) else NULL, page_size)

    @staticmethod
    def places(Tensor k not None, Tensor v not None, str layout not None, page_size):
        """Where rows lie in pools that fit as they are; None for others, of which Python's checks say what is wrong.

        layout     "NHD" or "HND"
        page_size  at least 1, for pools without an axis of pages; None: the pools have one, and their own size

        Returns (pages, page_size, kv_heads, k_dim, v_dim, strides of K, strides of V).
        """
        cdef int ndim = k.memory.ndim
        cdef bint cuts_pages = page_size is not None and ndim == 3
        cdef int heads_axis = ndim - (2 if layout == "NHD" else 3)
        cdef int tokens_axis = ndim - (3 if layout == "NHD" else 2)
        cdef int64_t pages, size
        cdef int i
        if ndim != (3 if cuts_pages else 4):
            return None
        if not (are_pool(&k.memory, device_id_of(k), ndim) and are_pool(&v.memory, device_id_of(k), ndim)):
            return None
        for i in range(ndim - 1):
            if k.memory.shape[i] != v.memory.shape[i]:
                return None
        pages, size = k.memory.shape[0], k.memory.shape[tokens_axis]
        if cuts_pages:
            if size % page_size != 0:
                return None
            pages, size = size // page_size, page_size
        elif page_size is not None and page_size != size:
            return None
        if size == 0 or 0 in (k.memory.shape[heads_axis], k.memory.shape[ndim - 1], v.memory.shape[ndim - 1]):
            return None
        return (pages, size, k.memory.shape[heads_axis], k.memory.shape[ndim - 1], v.memory.shape[ndim - 1],
                steps_of(k, tokens_axis, heads_axis, size), steps_of(v, tokens_axis, heads_axis, size))

    @property
    def shape(self) -> tuple:
        """(pages, page_size, kv_heads, k_dim, v_dim)."""
        return (self.value.num_pages, self.value.page_size, self.value.num_kv_heads, self.value.k_dim,
                self.value.v_dim)

    @property
    def pools(self) -> tuple:
        """(base, page stride, token stride, head stride) of K, V and their parameters; zeros where there is none."""
        pools = []
        for pool in self.value.pool:
            pools.append((<uintptr_t>pool.base, pool.page_stride, pool.token_stride, pool.head_stride))
        return tuple(pools)

    @property
    def may_be_packed(self) -> bool:
        """Whether rows of fewer than 128 bytes and the parameters of integers lie one after the other in a page."""
        return self.maps.may_be_packed

    cdef int make_maps(self, Boxes boxes, Device device) except -1:
        cdef MappedPool k = mapped(&self.value.pool[0], self.k, self.value.k_dim)
        cdef MappedPool v = mapped(&self.value.pool[1], self.v, self.value.v_dim)
        return make_tensor_maps(&self.maps, boxes, device, &k, &v, self.value.num_pages, self.value.page_size,
                                self.value.num_kv_heads)


cdef class HoldsCache:
    """Base of kvit.CacheView."""

    def __reduce_ex__(self, protocol):
        refuse_copy(self, "it stands for memory of its owner; make another of the same arrays")


cdef tuple steps_of(Tensor pool, int tokens_axis, int heads_axis, int64_t page_size):
    """Bytes from one page, token and head to the next. Pools without an axis of pages have pages end to end."""
    cdef int64_t token = pool.memory.strides[tokens_axis]
    cdef int64_t page = pool.memory.strides[0] if pool.memory.ndim == 4 else token * page_size
    return page, token, pool.memory.strides[heads_axis]


cdef void set_extents(PackedCache cache) noexcept:
    cdef Extent piece
    cdef Extent *all_pieces = &cache.extents[5]
    set_extent(&cache.extents[0], cache.k)
    set_extent(&cache.extents[1], cache.v)
    set_extent(&cache.extents[2], cache.k_params)
    set_extent(&cache.extents[3], cache.v_params)
    set_extent(&cache.extents[4], cache.blocks)
    for tensor in cache.memory:
        piece = extent_at(&(<Tensor>tensor).memory)
        if all_pieces.low == all_pieces.high:
            all_pieces[0] = piece
        elif piece.low != piece.high:
            all_pieces.low = min(all_pieces.low, piece.low)
            all_pieces.high = max(all_pieces.high, piece.high)


cdef void set_extent(Extent *extent, Tensor tensor) noexcept:
    if tensor is not None:
        extent[0] = extent_at(&tensor.memory)


cdef bint rows_meet(PackedCache cache) noexcept:
    """Whether rows of a pool lie over each other, or over those of another pool."""
    cdef (const kvit_tensor *)[4] pools
    pools[:] = [memory_of(cache.k), memory_of(cache.v), memory_of(cache.k_params), memory_of(cache.v_params)]
    cdef int i, j
    # Scales of float8, which may be one for all rows, or the same for K and V, are read only; but nothing may be
    # written over them.
    cdef bint[4] is_written = [True, True, False, False]
    for i in range(2, 4):
        is_written[i] = pools[i] != NULL and bits_of(pools[i].dtype) == 16
    for i in range(4):
        if is_written[i] and meets_itself(pools[i]):
            return True
        for j in range(i):
            if (is_written[i] or is_written[j]) and meet(pools[i], pools[j]):
                return True
    return False


cdef bint meets_cache(const kvit_tensor *memory, PackedCache cache) noexcept:
    cdef Extent extent
    if memory == NULL:
        return False
    extent = extent_at(memory)
    if not crosses_cache(&extent, cache):
        return False
    for tensor in (cache.k, cache.v, cache.k_params, cache.v_params, cache.blocks, *cache.memory):
        if meet(memory, memory_of(<Tensor>tensor)):
            return True
    return False


cdef int use_cache(Spans *spans, Stream stream, PackedCache cache, bint is_writable) except -1:
    cdef Tensor piece
    use(spans, stream, cache.k, is_writable)
    use(spans, stream, cache.v, is_writable)
    use(spans, stream, cache.k_params, is_writable and not is_locked_scale(cache.k_params))
    use(spans, stream, cache.v_params, is_writable and not is_locked_scale(cache.v_params))
    use(spans, stream, cache.blocks, False)
    for piece in cache.memory:
        use(spans, stream, piece, is_writable)
    return 0


cdef bint is_locked_scale(Tensor params) noexcept:
    """Whether these are scales of float8 that nobody may write: append reads them alone."""
    return params is not None and params.memory.readonly != 0 and not has_pairs(params)


cdef MappedPool mapped(const KvitPool *pool, Tensor tensor, int channels) noexcept:
    cdef MappedPool found
    found.base = pool.base
    found.page_stride = pool.page_stride
    found.token_stride = pool.token_stride
    found.head_stride = pool.head_stride
    found.row_bytes = tensor.bits * channels // 8
    return found


cdef bint has_pairs(Tensor params) noexcept:
    """Whether parameters are (scale, zero), in 16 bits each; float8 has a scale in 32."""
    return params is not None and params.bits == 16


cdef void set_pool(KvitPool *pool, Tensor tensor, tuple strides) except *:
    pool.base = tensor.memory.data
    pool.page_stride, pool.token_stride, pool.head_stride = strides
