"""Packs the launch structs of abi/params.h and launches. Shapes, dtypes and devices were checked by the caller."""
from libc.stdint cimport int32_t, int64_t, uintptr_t
from libc.string cimport memset

from kvit._native.context cimport Device
from kvit._native.kernel_graph cimport graph_of
from kvit._native.launcher cimport Spans, add_span, launch
from kvit._native.module cimport load_kernel
from kvit._native.stream cimport Stream, stream_of
from kvit._native.tensor cimport Tensor
from kvit._native.tensor_map cimport Boxes, MappedPool, copy_tensor_maps, describe_maps, make_tensor_maps


cdef enum:
    PAIR = 2                               # elements of a token's parameters, where these are integers'


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
        cdef MappedPool key_pairs, value_pairs
        if k_params is not None:
            key_pairs = mapped(&self.value.pool[2], k_params, PAIR)
        if v_params is not None:
            value_pairs = mapped(&self.value.pool[3], v_params, PAIR)
        describe_maps(&self.maps, &keys, &values, &key_pairs if has_pairs(k_params) else NULL,
                      &value_pairs if has_pairs(v_params) else NULL, page_size)

    @property
    def shape(self) -> tuple:
        """(pages, page_size, kv_heads, head_dim)."""
        return self.value.num_pages, self.value.page_size, self.value.num_kv_heads, self.value.head_dim

    @property
    def pools(self) -> tuple:
        """(base, page stride, token stride, head stride) of K, V and their parameters; zeros where there is none."""
        return tuple([(<uintptr_t>pool.base, pool.page_stride, pool.token_stride, pool.head_stride)
                      for pool in self.value.pool])

    @property
    def may_have_lines(self) -> bool:
        """Whether rows of fewer than 128 bytes and the parameters of integers lie one after the other in a page."""
        return self.maps.may_have_lines

    cdef int make_maps(self, Boxes boxes, Device home) except -1:
        cdef MappedPool k = mapped(&self.value.pool[0], self.k, self.value.head_dim)
        cdef MappedPool v = mapped(&self.value.pool[1], self.v, self.value.head_dim)
        return make_tensor_maps(&self.maps, boxes, home, &k, &v, self.value.num_pages, self.value.page_size,
                                self.value.num_kv_heads)


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


cdef class HoldsCache:
    """Base of kvit.CacheView."""


cdef class HoldsTable:
    """Base of kvit.PageTable."""


cdef class HoldsFaults:
    """Base of the record of faults that operations share."""


cdef class AttentionLaunch:
    """An attention kernel with its grid, its workspace and its constants.

    strands      lines that the work is dealt out on: divides the grid and the KV heads
    partials     float32 [grid, parts, rows, head_dim + 2], all zero
    fault        int32 [4]
    split_tiles  every head is cut after each so many tiles; 0: where a CTA's share ends
    reads_ahead  what is old may be read before the launch in front has ended
    by_graph     launch the kernel by a graph of it
    """

    def __cinit__(self, object entry, Device device not None, unsigned int grid, int strands,
                  Tensor partials not None, Tensor fault not None, int num_query_heads, int group, float scale,
                  bint is_causal, int split_tiles=0, bint reads_ahead=False, bint by_graph=False):
        memset(&self.params, 0, sizeof(KvitDecodeParams))
        self.kernel = load_kernel(entry, device)
        self.graph = graph_of(self.kernel) if by_graph else None
        self.grid = grid
        self.partials = partials
        self.fault = fault
        self.boxes = Boxes(entry.facts["box_tokens"], entry.facts["has_lines"])
        self.params.group = divisor_of(group)
        self.params.partials = <float *>partials.data
        self.params.fault = <KvitFault *>fault.data
        self.params.num_query_heads = num_query_heads
        self.params.scale = scale
        self.params.causal = is_causal
        self.params.strands = strands
        self.params.split_tiles = split_tiles
        self.params.reads_ahead = reads_ahead

    cdef int run(self, PackedCache cache, PackedTable table, Tensor q, Tensor out, Tensor lse, Tensor token_indptr,
                 int tokens_each, Stream queue) except -1:
        if q.dims[0] == 0 or table.value.num_sequences == 0:
            return 0
        cdef KvitDecodeParams params = self.params  # a copy: calls from several threads must not share one struct
        cdef Spans spans
        cdef int i
        spans.count = 0
        params.cache = cache.value
        params.page_size = divisor_of(cache.value.page_size)
        if self.boxes.tokens:
            if not copy_tensor_maps(&cache.maps, self.boxes, params.k_map.bytes, params.v_map.bytes):
                cache.make_maps(self.boxes, self.kernel.home)
            params.box_tokens = copy_tensor_maps(&cache.maps, self.boxes, params.k_map.bytes, params.v_map.bytes)
        params.table = table.value
        set_tokens(&params.tokens, token_indptr, tokens_each, q.dims[0])
        set_rows(&params.q, q)
        set_rows(&params.out, out)
        set_lse(&params.lse, lse)
        use_cache(&spans, queue, cache, False)
        use_table(&spans, queue, table)
        use(&spans, queue, token_indptr, False)
        for i in range(spans.count):
            spans.items[i].any_time = params.reads_ahead
        use(&spans, queue, q, False)
        use(&spans, queue, out, True)
        use(&spans, queue, lse, True)
        use(&spans, queue, self.partials, True)
        use_any_time(&spans, queue, self.fault, True)
        return launch(self.kernel, &params, self.grid, queue, &spans, self.graph)


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


cdef MappedPool mapped(const KvitPool *pool, Tensor tensor, int head_dim) noexcept:
    cdef MappedPool found
    found.base = pool.base
    found.page_stride = pool.page_stride
    found.token_stride = pool.token_stride
    found.head_stride = pool.head_stride
    found.row_bytes = tensor.bits * head_dim // 8
    return found


cdef bint has_pairs(Tensor params) noexcept:
    """Whether parameters are (scale, zero), in 16 bits each; float8 has a scale in 32."""
    return params is not None and params.bits == 16


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


cdef int use_any_time(Spans *spans, Stream stream, Tensor tensor, bint is_writable) except -1:
    """Let it be touched before the kernel's turn too: what the launch in front does not write."""
    cdef int i
    cdef int first = spans.count
    use(spans, stream, tensor, is_writable)
    for i in range(first, spans.count):
        spans.items[i].any_time = 1
    return 0


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
