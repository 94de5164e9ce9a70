"""Launches of attention: constants packed once, a call's arguments by every launch. All was checked by the caller."""
from libc.stdint cimport int32_t, uint64_t
from libc.string cimport memset

from kvit._native.context cimport Device
from kvit._native.kernel_graph cimport graph_of
from kvit._native.launcher cimport launch
from kvit._native.module cimport load_kernel
from kvit._native.packed_cache cimport use_cache
from kvit._native.packed_table cimport use_table
from kvit._native.packers cimport address_of, memory_of, pack_lse, pack_rows, pack_tokens
from kvit._native.params cimport KvitFault, KvitGeneral, divisor_of
from kvit._native.spans cimport Spans, set_pre_dependency, set_workspace, use
from kvit._native.tensor_map cimport copy_tensor_maps


cdef class AttentionLaunch:
    """An attention kernel with its grid, its workspace and its constants.

    partitions   lines that the work is dealt out on: divides the grid and the KV heads
    workspace    uint8, all zero: as abi/params.h has it, for this grid
    fault        int32 [4]
    split_tiles  every head is cut after each so many tiles; 0: where a CTA's range ends
    reads_ahead  what is old may be read before the launch in front has ended
    by_graph     launch the kernel by a graph of it
    modifiers    kvit.ops.modifiers.Modifiers, for kernels of variant `general`
    """

    def __cinit__(self, object entry, Device device not None, unsigned int grid, int partitions,
                  Tensor workspace not None, Tensor fault not None, int num_query_heads, int group, float scale,
                  bint is_causal, int split_tiles=0, bint reads_ahead=False, bint by_graph=False,
                  object modifiers=None):
        memset(&self.plan, 0, sizeof(AttentionPlan))
        self.kernel = load_kernel(entry, device)
        self.graph = graph_of(self.kernel) if by_graph else None
        self.plan.config = self.kernel.config_of(grid)
        self.workspace = workspace
        # CTAs take their tickets before the launch in front has ended.
        self.tickets = Tensor.from_pointer(workspace.pointer, (entry.facts["workspace_head_bytes"],), "uint8",
                                           workspace.device, owner=workspace)
        self.fault = fault
        self.plan.boxes = Boxes(entry.facts["box_tokens"], entry.facts["is_packed"],
                                entry.facts.get("shares_kv", 0))
        self.plan.constants.group = divisor_of(group)
        self.plan.constants.workspace = workspace.memory.data
        self.plan.constants.fault = <KvitFault *>fault.memory.data
        self.plan.constants.num_query_heads = num_query_heads
        self.plan.constants.scale = scale
        self.plan.constants.causal = is_causal
        self.plan.constants.partitions = partitions
        self.plan.constants.split_tiles = split_tiles
        self.plan.constants.reads_ahead = reads_ahead
        self.arrays = ()
        if modifiers is not None:
            self.modify(modifiers)

    cdef int modify(self, object modifiers) except -1:
        cdef KvitGeneral *general = &self.plan.constants.general
        self.arrays = modifiers.arrays
        self.takes_spans, self.takes_trees = modifiers.takes_spans, modifiers.takes_trees
        general.window_left, general.window_right = modifiers.window
        general.chunk = modifiers.chunk
        general.by_chunk = divisor_of(max(1, modifiers.chunk))
        if modifiers.softcap:
            general.cap_log2 = modifiers.softcap * 1.44269504088896341
            general.cap_rate = 2.0 / modifiers.softcap
        general.sinks = <const float *>address_of(modifiers.sinks)
        general.alibi = <const float *>address_of(modifiers.alibi)
        general.temperature = <const float *>address_of(modifiers.temperature)
        if modifiers.temperature is not None:
            general.positions = modifiers.temperature.shape[0]
        return 0

    cdef int run(self, PackedCache cache, PackedTable table, Tensor q, Tensor out, Tensor lse, Tensor indptr, int each,
                 Tensor ranges, Tensor tree, Stream stream) except -1:
        if q.memory.shape[0] == 0 or table.value.num_sequences == 0:
            return 0
        cdef KvitDecodeParams params  # of this call alone: several threads may be at it
        cdef Spans spans
        cdef int count
        if not pack_attention(&params, &self.plan, &cache.value, &cache.maps, &table.value, memory_of(indptr), each,
                              &q.memory, &out.memory, memory_of(lse), memory_of(ranges), memory_of(tree)):
            cache.make_maps(self.plan.boxes, self.kernel.dev)
            pack_attention(&params, &self.plan, &cache.value, &cache.maps, &table.value, memory_of(indptr), each,
                           &q.memory, &out.memory, memory_of(lse), memory_of(ranges), memory_of(tree))
        spans.count = 0
        use_cache(&spans, stream, cache, False)
        use_table(&spans, stream, table)
        use(&spans, stream, indptr, False)
        use(&spans, stream, ranges, False)
        use(&spans, stream, tree, False)
        for array in self.arrays:
            use(&spans, stream, array, False)
        if params.reads_ahead:
            set_pre_dependency(&spans, 0)
        use(&spans, stream, q, False)
        use(&spans, stream, out, True)
        use(&spans, stream, lse, True)
        use(&spans, stream, self.workspace, True)
        set_workspace(&spans)
        count = spans.count
        use(&spans, stream, self.tickets, True)
        use(&spans, stream, self.fault, True)
        set_pre_dependency(&spans, count)
        return launch(self.kernel, &self.plan.config, &params, stream, &spans, self.graph)


cdef bint pack_attention(KvitDecodeParams *params, const AttentionPlan *plan, const KvitCache *cache,
                         const TensorMaps *maps, const KvitPageTable *table, const kvit_tensor *indptr, int each,
                         const kvit_tensor *q, const kvit_tensor *out, const kvit_tensor *lse,
                         const kvit_tensor *spans, const kvit_tensor *tree) noexcept nogil:
    params[0] = plan.constants
    params.cache = cache[0]
    params.page_size = divisor_of(cache.page_size)
    params.table = table[0]
    pack_tokens(&params.tokens, indptr, each, q.shape[0])
    pack_rows(&params.q, q)
    pack_rows(&params.out, out)
    pack_lse(&params.lse, lse)
    if spans != NULL:
        params.general.spans = <const int32_t *>spans.data
    if tree != NULL:
        params.general.trees = <const uint64_t *>tree.data
        params.general.tree_words = <int32_t>tree.shape[1]
    if plan.boxes.tokens == 0:
        return True
    params.box_tokens = copy_tensor_maps(maps, plan.boxes, params.k_map.bytes, params.v_map.bytes)
    return params.box_tokens != 0
