"""Packs the launch structs of abi/params.h and launches. Shapes, dtypes and devices were checked by the caller."""
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memset

cimport cython

from kvit._native.context cimport Device
from kvit._native.launcher cimport Spans, add_span, launch
from kvit._native.module cimport Kernel, load_kernel
from kvit._native.stream cimport Stream, stream_of
from kvit._native.tensor cimport Tensor
from kvit._native.tensor_map cimport MappedPool, copy_tensor_maps, make_tensor_maps, most_box_tokens

from kvit.errors import ShapeError


cdef class PackedCache:
    """K and V of a cache as kernels take them.

    k, v                  memory of the pools, any shape
    strides               (page, token, head) in bytes, of K and of V
    code                  enum KvitDtype of queries and of (scale, zero); K's where that is 16 bits wide
    k_params, v_params    memory of the parameters, None where the codec has none, with their strides
    blocks                int64 [num_pages], addresses of pages; None: pages lie at their strides
    offsets               with blocks: where K, V and their parameters begin in a page; the tensors above are empty
                          then, and say types alone
    memory                with blocks: what their addresses point into
    """

    def __cinit__(self, Tensor k not None, Tensor v not None, tuple k_strides, tuple v_strides, int num_pages,
                  int page_size, int num_kv_heads, int head_dim, int code=0, Tensor k_params=None,
                  Tensor v_params=None, tuple k_params_strides=None, tuple v_params_strides=None,
                  Tensor blocks=None, tuple offsets=None, tuple memory=()):
        memset(&self.value, 0, sizeof(KvitCache))
        self.k = k
        self.v = v
        self.k_params = k_params
        self.v_params = v_params
        self.code = code if code else k.code
        set_pool(&self.value.pool[0], k, k_strides)
        set_pool(&self.value.pool[1], v, v_strides)
        if k_params is not None:
            set_pool(&self.value.pool[2], k_params, k_params_strides)
        if v_params is not None:
            set_pool(&self.value.pool[3], v_params, v_params_strides)
        self.value.num_pages = num_pages
        self.value.page_size = page_size
        self.value.num_kv_heads = num_kv_heads
        self.value.head_dim = head_dim
        self.blocks = blocks
        self.memory = memory
        if blocks is not None:
            self.value.blocks = <const void *const *>blocks.data
            for pool in range(4):
                self.value.pool[pool].base = <void *><uintptr_t>offsets[pool]
            return  # a tensor map has strides and no pointers
        cdef MappedPool keys = mapped(&self.value.pool[0], k, head_dim)
        cdef MappedPool values = mapped(&self.value.pool[1], v, head_dim)
        self.maps.most_tokens = most_box_tokens(&keys, &values, page_size)

    @property
    def shape(self) -> tuple:
        """(pages, page_size, kv_heads, head_dim)."""
        return self.value.num_pages, self.value.page_size, self.value.num_kv_heads, self.value.head_dim

    @property
    def pools(self) -> tuple:
        """(base, page stride, token stride, head stride) of K, V and their parameters; zeros where there is none."""
        return tuple([(<uintptr_t>pool.base, pool.page_stride, pool.token_stride, pool.head_stride)
                      for pool in self.value.pool])

    cdef int make_maps(self, int tokens, Device home) except -1:
        cdef MappedPool k = mapped(&self.value.pool[0], self.k, self.value.head_dim)
        cdef MappedPool v = mapped(&self.value.pool[1], self.v, self.value.head_dim)
        return make_tensor_maps(&self.maps, min(tokens, self.maps.most_tokens), home, &k, &v, self.value.num_pages,
                                self.value.page_size, self.value.num_kv_heads)


cdef class PackedTable:
    """A page table as kernels take it, all int32: pages [sequences, slots], or [entries] with `indptr`."""

    def __cinit__(self, Tensor pages not None, Tensor indptr, Tensor lengths not None):
        memset(&self.value, 0, sizeof(KvitPageTable))
        self.pages = pages
        self.indptr = indptr
        self.lengths = lengths
        self.value.pages = <const int32_t *>pages.data
        self.value.lengths = <const int32_t *>lengths.data
        self.value.num_sequences = <int32_t>lengths.dims[0]
        self.value.max_pages = <int32_t>pages.dims[pages.ndim - 1]
        if indptr is None:
            self.value.row_stride = pages.steps[0] // <int64_t>sizeof(int32_t)
        else:
            self.value.indptr = <const int32_t *>indptr.data


cdef class PackedRope:
    """How positions turn pairs of channels, as kernels take it.

    steps             int64 [rotary_dim / 2] on the device, the bits of kvit.Rope.steps
    attention_factor  of cosines and sines
    """

    def __cinit__(self, Tensor steps not None, bint is_interleaved, float attention_factor):
        memset(&self.value, 0, sizeof(KvitRope))
        self.steps = steps
        self.value.steps = <const uint64_t *>steps.data
        self.value.attention_factor = attention_factor
        self.value.rotary_dim = <int32_t>(2 * steps.dims[0])
        self.value.is_interleaved = is_interleaved


cdef class HoldsCache:
    """Base of kvit.CacheView."""


cdef class HoldsTable:
    """Base of kvit.PageTable."""


cdef class HoldsFaults:
    """Base of the record of faults that operations share."""


cdef class AttentionLaunch:
    """An attention kernel with its grid, its workspace and its constants.

    partials   float32 [grid, 2, rows, head_dim + 4], all zero
    fault      int32 [4]
    """

    def __cinit__(self, object entry, Device device not None, unsigned int grid, Tensor partials not None,
                  Tensor fault not None, int num_query_heads, int group, float scale, bint is_causal):
        memset(&self.params, 0, sizeof(KvitDecodeParams))
        self.kernel = load_kernel(entry, device)
        self.grid = grid
        self.partials = partials
        self.fault = fault
        self.box_tokens = entry.facts["box_tokens"]
        self.params.group = divisor_of(group)
        self.params.partials = <float *>partials.data
        self.params.fault = <KvitFault *>fault.data
        self.params.num_query_heads = num_query_heads
        self.params.scale = scale
        self.params.causal = is_causal

    cdef int run(self, PackedCache cache, PackedTable table, Tensor q, Tensor out, Tensor lse, Tensor token_indptr,
                 int tokens_each, Stream queue) except -1:
        if q.dims[0] == 0 or table.value.num_sequences == 0:
            return 0
        cdef KvitDecodeParams params = self.params  # a copy: calls from several threads must not share one struct
        cdef Spans spans
        spans.count = 0
        params.cache = cache.value
        params.page_size = divisor_of(cache.value.page_size)
        if self.box_tokens:
            if not copy_tensor_maps(&cache.maps, self.box_tokens, params.k_map.bytes, params.v_map.bytes):
                cache.make_maps(self.box_tokens, self.kernel.home)
            params.box_tokens = copy_tensor_maps(&cache.maps, self.box_tokens, params.k_map.bytes, params.v_map.bytes)
        params.table = table.value
        set_tokens(&params.tokens, token_indptr, tokens_each, q.dims[0])
        set_rows(&params.q, q)
        set_rows(&params.out, out)
        set_lse(&params.lse, lse)
        use_cache(&spans, queue, cache, False)
        use_table(&spans, queue, table)
        use(&spans, queue, token_indptr, False)
        use(&spans, queue, q, False)
        use(&spans, queue, out, True)
        use(&spans, queue, lse, True)
        use(&spans, queue, self.partials, True)
        use(&spans, queue, self.fault, True)
        return launch(self.kernel, &params, self.grid, queue, &spans)


def append(object entry, Device device not None, PackedCache cache not None, PackedTable table not None,
           Tensor k not None, Tensor v not None, Tensor token_indptr, int tokens_each, Tensor fault not None,
           object stream, *, Tensor k_bias=None, Tensor v_bias=None, Tensor prefix_lengths=None, PackedRope rope=None,
           Tensor positions=None, Tensor q=None, Tensor q_out=None, Tensor q_bias=None):
    """Write k and v [tokens, kv_heads, head_dim] to their places. The table's lengths are those after the append.

    k_bias, v_bias, q_bias  [heads, head_dim] in the rows' dtype, dense
    prefix_lengths          int32 [sequences]
    positions               int32 [tokens]
    q, q_out                [tokens, query_heads, head_dim], both or neither, with a rope
    """
    cdef KvitAppendParams params
    cdef Spans spans
    cdef Stream queue
    if k.dims[0] == 0:
        return
    queue = stream_of(stream, device)
    memset(&params, 0, sizeof(params))
    spans.count = 0
    set_transfer(&params.transfer, &spans, queue, cache, table, k, v, token_indptr, tokens_each, fault, True)
    params.k_bias = address_of(k_bias)
    params.v_bias = address_of(v_bias)
    params.q_bias = address_of(q_bias)
    params.prefix_lengths = <const int32_t *>address_of(prefix_lengths)
    if rope is not None:
        params.rope = rope.value
        params.rope.positions = <const int32_t *>address_of(positions)
        use(&spans, queue, rope.steps, False)
    if q is not None:
        set_rows(&params.q, q)
        set_rows(&params.q_out, q_out)
        params.num_query_heads = <int32_t>q.dims[1]
        use(&spans, queue, q, False)
        use(&spans, queue, q_out, True)
    for tensor in (k_bias, v_bias, q_bias, prefix_lengths, positions):
        use(&spans, queue, tensor, False)
    cdef WarpShares shares = shares_of(entry)
    cdef unsigned int grid = transfer_grid(&shares, k, params.num_query_heads)
    launch(load_kernel(entry, device), &params, grid, queue, &spans)


def gather(object entry, Device device not None, PackedCache cache not None, PackedTable table not None,
           Tensor k not None, Tensor v not None, Tensor token_indptr, int tokens_each, Tensor fault not None,
           object stream):
    """Fill k and v [tokens, kv_heads, head_dim] with the last tokens of the table's sequences."""
    move_rows(load_kernel(entry, device), shares_of(entry), cache, table, k, v, token_indptr, tokens_each, fault,
              stream_of(stream, device), False, None)


cdef int move_rows(Kernel kernel, WarpShares shares, PackedCache cache, PackedTable table, Tensor k, Tensor v,
                   Tensor token_indptr, int tokens_each, Tensor fault, Stream queue, bint into_pages,
                   PackedRope rope) except -1:
    cdef KvitAppendParams params  # begins with what gather takes
    cdef Spans spans
    if k.dims[0] == 0:
        return 0
    memset(&params, 0, sizeof(params))
    spans.count = 0
    set_transfer(&params.transfer, &spans, queue, cache, table, k, v, token_indptr, tokens_each, fault, into_pages)
    if rope is not None:
        params.rope = rope.value
        use(&spans, queue, rope.steps, False)
    return launch(kernel, &params, transfer_grid(&shares, k, 0), queue, &spans)


cdef int set_transfer(KvitTransferParams *params, Spans *spans, Stream queue, PackedCache cache, PackedTable table,
                      Tensor k, Tensor v, Tensor token_indptr, int tokens_each, Tensor fault,
                      bint into_pages) except -1:
    params.cache = cache.value
    params.table = table.value
    set_tokens(&params.tokens, token_indptr, tokens_each, k.dims[0])
    set_rows(&params.k, k)
    set_rows(&params.v, v)
    params.fault = <KvitFault *>fault.data
    use_cache(spans, queue, cache, into_pages)
    use_table(spans, queue, table)
    use(spans, queue, token_indptr, False)
    use(spans, queue, k, not into_pages)
    use(spans, queue, v, not into_pages)
    return use(spans, queue, fault, True)


cdef WarpShares shares_of(object entry) except *:
    cdef WarpShares shares
    shares.warps = entry.facts["warps"]
    shares.heads_per_warp = entry.facts["heads_per_warp"]
    shares.query_heads_per_warp = entry.facts.get("query_heads_per_warp", 1)
    return shares


@cython.cdivision(True)
cdef int64_t ctas_for(const WarpShares *shares, int64_t tokens, int64_t heads, int64_t query_heads) noexcept nogil:
    cdef int64_t of_token = (heads + shares.heads_per_warp - 1) // shares.heads_per_warp
    of_token += (query_heads + shares.query_heads_per_warp - 1) // shares.query_heads_per_warp
    return (tokens * of_token + shares.warps - 1) // shares.warps


cdef unsigned int transfer_grid(const WarpShares *shares, Tensor k, int64_t query_heads) except 0:
    cdef int64_t ctas = ctas_for(shares, k.dims[0], k.dims[1], query_heads)
    if ctas * shares.warps > MOST_WARPS:
        raise ShapeError(
            f"k has {k.dims[0]} tokens of {k.dims[1]} heads, and one call moves at most {MOST_WARPS} times "
            f"{shares.heads_per_warp} heads; move them in several calls"
        )
    return <unsigned int>ctas


def merge(object entry, Device device not None, Tensor a not None, Tensor lse_a not None, Tensor b not None,
          Tensor lse_b not None, Tensor out not None, Tensor lse, object stream):
    """The union of two states. a, b, out [tokens, heads, head_dim]; lse* float32 [tokens, heads]."""
    if a.dims[0] * a.dims[1] == 0:
        return
    cdef KvitMergeParams params
    cdef Spans spans
    cdef Stream queue = stream_of(stream, device)
    memset(&params, 0, sizeof(params))
    spans.count = 0
    set_rows(&params.a, a)
    set_rows(&params.b, b)
    set_rows(&params.out, out)
    set_lse(&params.lse_a, lse_a)
    set_lse(&params.lse_b, lse_b)
    set_lse(&params.lse, lse)
    params.num_tokens = <int32_t>a.dims[0]
    params.num_heads = <int32_t>a.dims[1]
    params.head_dim = <int32_t>a.dims[2]
    use(&spans, queue, a, False)
    use(&spans, queue, lse_a, False)
    use(&spans, queue, b, False)
    use(&spans, queue, lse_b, False)
    use(&spans, queue, out, True)
    use(&spans, queue, lse, True)
    launch(load_kernel(entry, device), &params, grid_for(entry, a.dims[0] * a.dims[1]), queue, &spans)


cdef unsigned int grid_for(object entry, int64_t rows) except 0:
    """CTAs for so many (token, head) rows."""
    cdef int64_t rows_per_cta = entry.facts["rows_per_cta"]
    return <unsigned int>((rows + rows_per_cta - 1) // rows_per_cta)


cdef KvitDivisor divisor_of(int divisor) noexcept nogil:
    cdef KvitDivisor found
    cdef int bits = 0
    while <int64_t>1 << bits < divisor:
        bits += 1
    found.shift = 31 + bits
    found.magic = <uint32_t>(((<uint64_t>1 << found.shift) + <uint64_t>divisor - 1) // <uint64_t>divisor)
    return found


cdef MappedPool mapped(const KvitPool *pool, Tensor tensor, int head_dim) noexcept:
    cdef MappedPool found
    found.base = pool.base
    found.page_stride = pool.page_stride
    found.token_stride = pool.token_stride
    found.head_stride = pool.head_stride
    found.row_bytes = tensor.bits * head_dim // 8
    return found


cdef void set_pool(KvitPool *pool, Tensor tensor, tuple strides) except *:
    pool.base = tensor.data
    pool.page_stride, pool.token_stride, pool.head_stride = strides


cdef const void *address_of(Tensor tensor) noexcept:
    return NULL if tensor is None else tensor.data


cdef void set_rows(KvitRows *rows, Tensor tensor) noexcept:
    rows.base = tensor.data
    rows.token_stride = tensor.steps[0]
    rows.head_stride = tensor.steps[1]


cdef void set_lse(KvitLse *lse, Tensor tensor) noexcept:
    if tensor is None:
        memset(lse, 0, sizeof(KvitLse))
        return
    lse.base = <float *>tensor.data
    lse.token_stride = tensor.steps[0]
    lse.head_stride = tensor.steps[1]


cdef void set_tokens(KvitTokens *tokens, Tensor indptr, int each, int64_t total) noexcept:
    tokens.indptr = NULL
    if indptr is not None:
        tokens.indptr = <const int32_t *>indptr.data
    tokens.each = each
    tokens.total = <int32_t>total


cdef int use(Spans *spans, Stream stream, Tensor tensor, bint is_writable) except -1:
    """Let the launch touch a tensor once its producer is done. None is skipped; a GPU needs no spans."""
    if tensor is None:
        return 0
    stream.order_after(tensor)
    stream.keep(tensor)
    return add_span(spans, tensor, is_writable) if stream.home.is_host else 0


cdef int use_cache(Spans *spans, Stream stream, PackedCache cache, bint is_writable) except -1:
    cdef Tensor piece
    use(spans, stream, cache.k, is_writable)
    use(spans, stream, cache.v, is_writable)
    use(spans, stream, cache.k_params, is_writable)
    use(spans, stream, cache.v_params, is_writable)
    use(spans, stream, cache.blocks, False)
    for piece in cache.memory:
        use(spans, stream, piece, is_writable)
    return 0


cdef int use_table(Spans *spans, Stream stream, PackedTable table) except -1:
    use(spans, stream, table.pages, False)
    use(spans, stream, table.indptr, False)
    return use(spans, stream, table.lengths, False)
