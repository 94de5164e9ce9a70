"""Packs the launch structs of what moves rows: append, gather and shift, and launches. The caller checked all."""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t
from libc.string cimport memset

cimport cython

from kvit._native.context cimport Device
from kvit._native.driver_table cimport LaunchConfig
from kvit._native.kernel_graph cimport KernelGraph
from kvit._native.launcher cimport launch
from kvit._native.module cimport Kernel, load_kernel
from kvit._native.packed_cache cimport PackedCache, use_cache
from kvit._native.packed_table cimport PackedTable, use_table
from kvit._native.packers cimport address_of, memory_of, pack_rows, pack_tokens
from kvit._native.params cimport KvitAppendParams, KvitFault, KvitRope, KvitShiftParams
from kvit._native.prepared cimport prepare
from kvit._native.spans cimport Spans, set_pre_dependency, use
from kvit._native.stream cimport Stream, stream_of
from kvit._native.tensor cimport Tensor

from kvit.errors import ShapeError


cdef class PackedRope:
    """How positions turn pairs of channels, as kernels take it.

    steps             int64 [rotary_dim / 2] on the device, the bits of kvit.Rope.steps
    attention_factor  of cosines and sines
    axes              uint8 [rotary_dim / 2] on the device: which row of positions turns a pair; None: there is one
    """

    def __cinit__(self, Tensor steps not None, bint is_interleaved, float attention_factor, Tensor axes=None):
        memset(&self.value, 0, sizeof(KvitRope))
        self.steps = steps
        self.value.steps = <const uint64_t *>steps.memory.data
        self.value.attention_factor = attention_factor
        self.value.rotary_dim = <int32_t>(2 * steps.memory.shape[0])
        self.value.is_interleaved = is_interleaved
        self.axes = axes


def append(object entry, Device device not None, PackedCache cache not None, PackedTable table not None,
           Tensor k not None, Tensor v not None, Tensor query_indptr, int each, Tensor fault not None,
           object stream, *, Tensor k_bias=None, Tensor v_bias=None, Tensor prefix_lengths=None, PackedRope rope=None,
           Tensor positions=None, Tensor q=None, Tensor q_out=None, Tensor q_bias=None, Tensor k_norm=None,
           Tensor q_norm=None, float norm_epsilon=0, float norm_offset=0, KernelGraph graph=None):
    """Write k and v [tokens, kv_heads, head_dim] to their places. The table's lengths are those after the append.

    k_bias, v_bias, q_bias  [heads, head_dim] in the rows' dtype, dense
    prefix_lengths          int32 [sequences]
    positions               int32 [tokens], or [3, tokens] of a rope with axes
    k_norm, q_norm          [head_dim] in the rows' dtype, weights of RMSNorm; they, axes and a cache with a smoothing
                            need an extended kernel
    q, q_out                [tokens, query_heads, head_dim], both or neither
    graph                   of the kernel, to launch it by
    """
    cdef KvitAppendParams params
    cdef Spans spans
    cdef Stream on_stream
    if k.memory.shape[0] == 0:
        return
    on_stream = stream_of(stream, device)
    memset(&params, 0, sizeof(params))
    spans.count = 0
    pack_transfer(&params.transfer, &cache.value, &table.value, memory_of(query_indptr), each, &k.memory,
                  &v.memory, <KvitFault *>fault.memory.data)
    params.transfer.smoothing = <const float *>address_of(cache.smoothing)
    use_transfer(&spans, on_stream, cache, table, query_indptr, k, v, fault, True)
    params.k_bias = address_of(k_bias)
    params.v_bias = address_of(v_bias)
    params.q_bias = address_of(q_bias)
    params.prefix_lengths = <const int32_t *>address_of(prefix_lengths)
    if rope is not None:
        params.rope = rope.value
        params.rope.positions = <const int32_t *>address_of(positions)
        use_rope(&spans, on_stream, rope)
        params.extras.axes = <const uint8_t *>address_of(rope.axes)
        if positions is not None and positions.memory.ndim == 2:
            params.extras.axis_stride = <int32_t>positions.memory.shape[1]
    params.extras.k_norm = address_of(k_norm)
    params.extras.q_norm = address_of(q_norm)
    params.extras.norm_epsilon = norm_epsilon
    params.extras.norm_offset = norm_offset
    if q is not None:
        pack_rows(&params.q, &q.memory)
        pack_rows(&params.q_out, &q_out.memory)
        params.num_query_heads = <int32_t>q.memory.shape[1]
        use(&spans, on_stream, q, False)
        use(&spans, on_stream, q_out, True)
    for tensor in (k_bias, v_bias, q_bias, k_norm, q_norm, prefix_lengths, positions):
        use(&spans, on_stream, tensor, False)
    cdef WarpShares shares = shares_of(entry, device)
    cdef RowGrid grid = checked_grid(&shares, k, params.num_query_heads)
    params.passes = <int32_t>grid.passes
    cdef Kernel kernel = load_kernel(entry, device)
    cdef LaunchConfig config = kernel.config_of(<unsigned int>grid.ctas)
    launch(kernel, &config, &params, on_stream, &spans, graph)


def gather(object entry, Device device not None, PackedCache cache not None, PackedTable table not None,
           Tensor k not None, Tensor v not None, Tensor query_indptr, int each, Tensor fault not None,
           object stream, *, KernelGraph graph=None):
    """Fill k and v [tokens, kv_heads, head_dim] with the last tokens of the table's sequences."""
    move_rows(load_kernel(entry, device), shares_of(entry, device), cache, table, k, v, query_indptr, each,
              fault, stream_of(stream, device), False, None, graph)


def prepare_shift(object entry, Device device not None, PackedCache cache not None, PackedTable table not None,
                  PackedTable source, Tensor by, int by_each, Tensor first, int first_each, PackedRope rope,
                  Tensor fault not None, Stream stream not None) -> list:
    """Prepare to turn the keys of the table's tokens by other positions, where they are, or on their way from source's
    places.

    source     PackedTable of as many sequences; None: tokens stay where they are
    by, first  int32 [sequences]; None: by_each, first_each
    rope       None: no key turns

    Returns a PreparedLaunch, for launch_all, or none where there is nothing to do.
    """
    cdef KvitShiftParams params
    cdef Spans spans
    cdef int64_t sequences = table.value.num_sequences, warps = entry.facts["warps"]
    cdef PackedTable origin = table if source is None else source
    memset(&params, 0, sizeof(params))
    spans.count = 0
    params.cache = cache.value
    params.table = table.value
    params.source = origin.value
    params.is_in_place = source is None
    params.by = <const int32_t *>address_of(by)
    params.first = <const int32_t *>address_of(first)
    params.by_each = by_each
    params.first_each = first_each
    params.fault = <KvitFault *>fault.memory.data
    use_cache(&spans, stream, cache, True)
    use_table(&spans, stream, table)
    if source is not None:
        use_table(&spans, stream, source)
    use(&spans, stream, by, False)
    use(&spans, stream, first, False)
    use(&spans, stream, fault, True)
    if rope is not None:
        params.rope = rope.value
        params.rope.attention_factor = 1  # it is in the keys already
        use_rope(&spans, stream, rope)
    params.smoothing = <const float *>address_of(cache.smoothing)
    use_weights(&spans, stream, cache.smoothing)
    cdef int64_t parts = shift_parts(&table.value, cache.value.page_size, sequences,
                                     <int64_t>device.num_sms * entry.min_ctas, warps)
    params.parts = <int32_t>parts
    if parts == 0:
        return []
    return [prepare(load_kernel(entry, device), <unsigned int>(parts * sequences), &params, sizeof(params), &spans)]


@cython.cdivision(True)
cdef int64_t shift_parts(const KvitPageTable *table, int64_t page_size, int64_t sequences, int64_t resident,
                         int64_t warps) noexcept nogil:
    """CTAs of each sequence: as many as run side by side, and no more than its tokens may need."""
    if sequences == 0:
        return 0
    # Of a ragged table nobody knows on the host which sequence has how many of the entries.
    cdef int64_t most = (table.max_pages * page_size + warps - 1) // warps
    return max(1, min(most, (resident + sequences - 1) // sequences))


cdef int move_rows(Kernel kernel, WarpShares shares, PackedCache cache, PackedTable table, Tensor k, Tensor v,
                   Tensor query_indptr, int each, Tensor fault, Stream stream, bint into_pages,
                   PackedRope rope, KernelGraph graph) except -1:
    cdef KvitAppendParams params  # begins with what gather takes
    cdef Spans spans
    if k.memory.shape[0] == 0:
        return 0
    memset(&params, 0, sizeof(params))
    spans.count = 0
    pack_transfer(&params.transfer, &cache.value, &table.value, memory_of(query_indptr), each, &k.memory,
                  &v.memory, <KvitFault *>fault.memory.data)
    params.transfer.smoothing = <const float *>address_of(cache.smoothing)
    use_transfer(&spans, stream, cache, table, query_indptr, k, v, fault, into_pages)
    if rope is not None:
        params.rope = rope.value
        use_rope(&spans, stream, rope)
    cdef RowGrid grid = checked_grid(&shares, k, 0)
    params.passes = <int32_t>grid.passes
    cdef LaunchConfig config = kernel.config_of(<unsigned int>grid.ctas)
    return launch(kernel, &config, &params, stream, &spans, graph)


cdef void pack_transfer(KvitTransferParams *params, const KvitCache *cache, const KvitPageTable *table,
                        const kvit_tensor *indptr, int each, const kvit_tensor *k, const kvit_tensor *v,
                        KvitFault *fault) noexcept nogil:
    params.cache = cache[0]
    params.table = table[0]
    pack_tokens(&params.tokens, indptr, each, k.shape[0])
    pack_rows(&params.k, k)
    pack_rows(&params.v, v)
    params.fault = fault


cdef int use_transfer(Spans *spans, Stream stream, PackedCache cache, PackedTable table, Tensor indptr, Tensor k,
                      Tensor v, Tensor fault, bint into_pages) except -1:
    use_cache(spans, stream, cache, into_pages)
    use_table(spans, stream, table)
    use(spans, stream, indptr, False)
    use(spans, stream, k, not into_pages)
    use(spans, stream, v, not into_pages)
    use_weights(spans, stream, cache.smoothing)
    return use(spans, stream, fault, True)


cdef int use_rope(Spans *spans, Stream stream, PackedRope rope) except -1:
    use_weights(spans, stream, rope.steps)
    return use_weights(spans, stream, rope.axes)


cdef int use_weights(Spans *spans, Stream stream, Tensor weights) except -1:
    """Of memory that no launch writes."""
    cdef int count = spans.count
    use(spans, stream, weights, False)
    set_pre_dependency(spans, count)
    return 0


cdef WarpShares shares_of(object entry, Device device) except *:
    cdef WarpShares shares
    shares.warps = entry.facts["warps"]
    shares.resident = 0
    if "heads_per_warp" in entry.facts:
        shares.heads_per_pass = entry.facts["heads_per_warp"]
    else:
        shares.heads_per_pass = entry.facts["heads_per_pass"]
        shares.resident = device.num_sms * entry.min_ctas * shares.warps
    return shares


@cython.cdivision(True)
cdef RowGrid grid_for(const WarpShares *shares, int64_t tokens, int64_t heads, int64_t query_heads) noexcept nogil:
    cdef int64_t of_heads = (heads + shares.heads_per_pass - 1) // shares.heads_per_pass
    cdef int64_t of_queries = (query_heads + 2 * shares.heads_per_pass - 1) // (2 * shares.heads_per_pass)
    cdef RowGrid grid
    grid.passes = 1
    if shares.resident != 0:
        grid.passes = (tokens * (of_heads + of_queries) + shares.resident - 1) // shares.resident
        grid.passes = max(1, min(grid.passes, max(of_heads, of_queries)))
    of_heads = (of_heads + grid.passes - 1) // grid.passes
    of_queries = (of_queries + grid.passes - 1) // grid.passes
    grid.ctas = (tokens * (of_heads + of_queries) + shares.warps - 1) // shares.warps
    return grid


cdef bint fits_grid(const WarpShares *shares, int64_t tokens, int64_t heads) noexcept nogil:
    return grid_for(shares, tokens, heads, 0).ctas * shares.warps <= MOST_WARPS


cdef RowGrid checked_grid(const WarpShares *shares, Tensor k, int64_t query_heads) except *:
    cdef RowGrid grid = grid_for(shares, k.memory.shape[0], k.memory.shape[1], query_heads)
    if grid.ctas * shares.warps > MOST_WARPS:
        raise ShapeError(
            f"k has {k.memory.shape[0]} tokens of {k.memory.shape[1]} heads, and one call moves at most {MOST_WARPS} "
            f"times {grid.passes * shares.heads_per_pass} heads; move them in several calls"
        )
    return grid
