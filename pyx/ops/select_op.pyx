"""Packs the launch struct of a selection of entries, and launches. The caller checked all."""
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memset

from kvit._native.context cimport Device
from kvit._native.driver_table cimport LaunchConfig
from kvit._native.launcher cimport launch
from kvit._native.module cimport Kernel, load_kernel
from kvit._native.packed_table cimport PackedTable, use_table
from kvit._native.packers cimport memory_of, pack_tokens
from kvit._native.params cimport KvitFault, KvitSelectParams
from kvit._native.spans cimport Spans, use
from kvit._native.stream cimport Stream, stream_of
from kvit._native.tensor cimport Tensor


def select(object entry, Device device not None, PackedTable table not None, Tensor query_indptr, int each, int rows,
           Tensor indices not None, Tensor pages not None, Tensor lengths not None, int num_pages, int page_size,
           int entry_tokens, int pages_per_entry, tuple steps not None, bint is_causal, Tensor fault not None,
           object stream):
    """Fill pages [rows * choosers, entries * pages_per_entry] and lengths [rows * choosers].

    indices  int32 [rows, choosers, entries]
    steps    (page, part, head): KvitSelectParams says what of
    """
    cdef KvitSelectParams params
    cdef Spans spans
    cdef Stream on_stream = stream_of(stream, device)
    cdef int64_t warps = entry.facts["warps"], items
    if rows == 0:
        return
    memset(&params, 0, sizeof(params))
    spans.count = 0
    params.table = table.value
    pack_tokens(&params.tokens, memory_of(query_indptr), each, rows)
    params.indices = <const int32_t *>indices.memory.data
    params.pages = <int32_t *>pages.memory.data
    params.lengths = <int32_t *>lengths.memory.data
    params.fault = <KvitFault *>fault.memory.data
    params.num_pages = num_pages
    params.page_size = page_size
    params.entry_tokens = entry_tokens
    params.pages_per_entry = pages_per_entry
    params.choosers = <int32_t>indices.memory.shape[1]
    params.entries = <int32_t>indices.memory.shape[2]
    params.page_step, params.part_step, params.head_step = steps
    params.is_causal = is_causal
    use_table(&spans, on_stream, table)
    use(&spans, on_stream, query_indptr, False)
    use(&spans, on_stream, indices, False)
    use(&spans, on_stream, pages, True)
    use(&spans, on_stream, lengths, True)
    use(&spans, on_stream, fault, True)
    items = (<int64_t>rows * params.choosers + warps - 1) // warps
    cdef Kernel kernel = load_kernel(entry, device)
    cdef LaunchConfig config = kernel.config_of(<unsigned int>items)
    launch(kernel, &config, &params, on_stream, &spans)
