"""Packs and launches what moves whole pages. Shapes, dtypes, devices and overlaps were checked by the caller."""
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memset

from kvit._native.context cimport Device
from kvit._native.driver_table cimport LaunchConfig
from kvit._native.launcher cimport launch
from kvit._native.module cimport Kernel, load_kernel
from kvit._native.packed_cache cimport PackedCache, use_cache
from kvit._native.packers cimport address_of
from kvit._native.prepared cimport prepare
from kvit._native.params cimport KvitCopyPagesParams, KvitFault, KvitRelayoutParams, KvitRequantiseParams
from kvit._native.spans cimport Spans, use
from kvit._native.stream cimport Stream, stream_of
from kvit._native.tensor cimport Tensor

from kvit.errors import ShapeError

cdef enum:
    MOST_CTAS = 65536      # more than any GPU runs at once; kernels that take any grid go round
    LARGEST_GRID = 0x7FFFFFFF
    MOST_ROWS = 0x20000000  # of a page: kernels count twice as many, and a batch, in int32


MOST_ITEMS = 2**62
"""Tiles that the kernel counts in int64 without a wrap, whatever it adds for a CTA."""


def prepare_copies(tuple launches, Device device not None, PackedCache cache not None, Tensor source not None,
                   Tensor target not None, Tensor chains, Tensor fault not None, Stream stream not None) -> list:
    """Prepare to copy pages source[i] to target[i], int32 [count], in the order that chains, int32 [chains + 1], ask
    for.

    launches  (kernel, row_bytes) of each; row_bytes are those of a row in each pool, where 0 leaves it alone

    Launched apart, rows would be left with the parameters of others: PreparedLaunch of each, for launch_all.
    """
    cdef KvitCopyPagesParams params
    cdef Spans spans
    memset(&params, 0, sizeof(params))
    spans.count = 0
    params.cache = cache.value
    params.source = <const int32_t *>source.memory.data
    params.target = <const int32_t *>target.memory.data
    params.count = <int32_t>source.memory.shape[0]
    params.num_chains = params.count
    if chains is not None:
        params.chains = <const int32_t *>chains.memory.data
        params.num_chains = <int32_t>chains.memory.shape[0] - 1
    params.fault = <KvitFault *>fault.memory.data
    ctas = int(params.num_chains) * cache.value.num_kv_heads
    if ctas > LARGEST_GRID:
        raise ShapeError(
            f"{params.num_chains} pairs or chains of pages of {cache.value.num_kv_heads} KV heads are {ctas} CTAs, and "
            f"a launch has at most {LARGEST_GRID}; copy them in several calls"
        )
    prepared = []
    if params.count != 0 and params.num_chains > 0:
        use_cache(&spans, stream, cache, True)
        use(&spans, stream, source, False)
        use(&spans, stream, target, False)
        use(&spans, stream, chains, False)
        use(&spans, stream, fault, True)
        for entry, row_bytes in launches:
            for pool in range(4):
                params.row_bytes[pool] = row_bytes[pool]
            prepared.append(prepare(load_kernel(entry, device), <unsigned int>ctas, &params, sizeof(params), &spans))
    return prepared


def relayout(object entry, Device device not None, PackedCache source not None, PackedCache target not None,
             Tensor source_pages, Tensor target_pages, tuple row_bytes, tuple source_chunks, tuple target_chunks,
             Tensor fault not None, object stream):
    """Copy rows of pages to the rows of other pages, pool by pool. Page lists int32 [count]; None: 0, 1, ...

    row_bytes      of a row in each pool; 0 leaves it alone
    source_chunks  (bytes, stride) of each pool's rows, as KvitChunks says
    """
    cdef KvitRelayoutParams params
    cdef Spans spans
    cdef Stream on_stream = stream_of(stream, device)
    cdef int64_t tokens = entry.facts["tile_tokens"]
    tiles = (source.value.page_size + tokens - 1) // tokens  # a Python number, as what it is multiplied with
    memset(&params, 0, sizeof(params))
    spans.count = 0
    params.source = source.value
    params.target = target.value
    params.count = count_of(source, source_pages, target_pages)
    for pool in range(4):
        params.row_bytes[pool] = row_bytes[pool]
        params.source_chunks[pool].bytes, params.source_chunks[pool].stride = source_chunks[pool]
        params.target_chunks[pool].bytes, params.target_chunks[pool].stride = target_chunks[pool]
    params.source_pages = <const int32_t *>address_of(source_pages)
    params.target_pages = <const int32_t *>address_of(target_pages)
    params.fault = <KvitFault *>fault.memory.data
    if params.count == 0:
        return
    use_both(&spans, on_stream, source, target, source_pages, target_pages, fault)
    items = tiles * params.count * source.value.num_kv_heads
    if items > MOST_ITEMS:
        raise ShapeError(
            f"{params.count} pages of {source.value.num_kv_heads} KV heads are {items} tiles of {tokens} tokens, and "
            f"one call moves at most {MOST_ITEMS}; move them in several calls"
        )
    launch_ctas(entry, device, &params, <unsigned int>min(items, MOST_CTAS), on_stream, &spans)


def requantise(object entry, Device device not None, PackedCache source not None, PackedCache target not None,
               Tensor source_pages, Tensor target_pages, int side, bint is_in_order, Tensor fault not None,
               object stream):
    """Decode K (side 0) or V (1) of pages, and encode them into other pages. Page lists int32 [count]; None: 0, 1, ...

    is_in_order  each page is read before it is overwritten, by one CTA
    """
    cdef KvitRequantiseParams params
    cdef Spans spans
    cdef Stream on_stream = stream_of(stream, device)
    cdef int64_t rows = <int64_t>source.value.page_size * source.value.num_kv_heads
    cdef int64_t vec8s = (source.value.k_dim if side == 0 else source.value.v_dim) // 8
    cdef int64_t batch = <int64_t>entry.threads // vec8s * <int64_t>entry.facts["passes"]
    cdef int64_t parts = 1 if is_in_order else (rows + batch - 1) // batch
    if rows > MOST_ROWS:
        raise ShapeError(
            f"a page of {source.value.page_size} tokens and {source.value.num_kv_heads} KV heads has {rows} rows; "
            f"codecs are changed in pages of at most {MOST_ROWS}"
        )
    memset(&params, 0, sizeof(params))
    spans.count = 0
    params.source = source.value
    params.target = target.value
    params.count = count_of(source, source_pages, target_pages)
    params.source_pages = <const int32_t *>address_of(source_pages)
    params.target_pages = <const int32_t *>address_of(target_pages)
    params.fault = <KvitFault *>fault.memory.data
    params.side = side
    if params.count == 0:
        return
    params.parts = <int32_t>max(1, min(parts, LARGEST_GRID // params.count))
    params.in_order = is_in_order
    use_both(&spans, on_stream, source, target, source_pages, target_pages, fault)
    launch_ctas(entry, device, &params, <unsigned int>(params.parts * params.count), on_stream, &spans)


cdef int launch_ctas(object entry, Device device, const void *params, unsigned int ctas, Stream stream,
                     const Spans *spans) except -1:
    cdef Kernel kernel = load_kernel(entry, device)
    cdef LaunchConfig config = kernel.config_of(ctas)
    return launch(kernel, &config, params, stream, spans)


cdef int32_t count_of(PackedCache source, Tensor source_pages, Tensor target_pages) noexcept:
    if source_pages is not None:
        return <int32_t>source_pages.memory.shape[0]
    return source.value.num_pages if target_pages is None else <int32_t>target_pages.memory.shape[0]


cdef int use_both(Spans *spans, Stream stream, PackedCache source, PackedCache target, Tensor source_pages,
                  Tensor target_pages, Tensor fault) except -1:
    use_cache(spans, stream, source, False)
    use_cache(spans, stream, target, True)
    use(spans, stream, source_pages, False)
    use(spans, stream, target_pages, False)
    return use(spans, stream, fault, True)
