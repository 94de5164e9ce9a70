"""The union of attention results over different keys: packed and launched. All was checked by the caller."""
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memset

from kvit._native.context cimport Device
from kvit._native.driver_table cimport LaunchConfig
from kvit._native.launcher cimport launch
from kvit._native.module cimport Kernel, load_kernel
from kvit._native.packers cimport memory_of, pack_lse, pack_rows
from kvit._native.params cimport KVIT_MERGE_PARTS, KvitMergeParams
from kvit._native.spans cimport Spans, use
from kvit._native.stream cimport Stream, stream_of
from kvit._native.tensor cimport Tensor

from kvit.errors import ShapeError

MOST_PARTS = KVIT_MERGE_PARTS
"""Parts of a list that one launch merges."""

cdef enum:
    MOST_CTAS = 0x7FFFFFFF  # of a grid


def merge_list(object entry, Device device not None, list outs not None, list lses not None, Tensor out not None,
               Tensor lse not None, object stream):
    """The union of 1 to MOST_PARTS states. outs, out [tokens, heads, dim]; lses, lse float32 [tokens, heads]."""
    cdef KvitMergeParams params
    cdef Spans spans
    cdef Stream on_stream = stream_of(stream, device)
    cdef Tensor part, part_lse
    memset(&params, 0, sizeof(params))
    spans.count = 0
    for i, (part, part_lse) in enumerate(zip(outs, lses, strict=True)):
        pack_rows(&params.places[i], &part.memory)
        pack_lse(&params.lses[i], &part_lse.memory)
        use(&spans, on_stream, part, False)
        use(&spans, on_stream, part_lse, False)
    params.num_parts = <int32_t>len(outs)
    merge(entry, device, &params, &spans, out, lse, on_stream)


def merge_stacked(object entry, Device device not None, Tensor outs not None, Tensor lses not None, Tensor out not None,
                  Tensor lse not None, object stream):
    """The same of stacked states, 1 or more: outs [parts, tokens, heads, dim], lses float32 [parts, tokens, heads]."""
    cdef KvitMergeParams params
    cdef Spans spans
    cdef Stream on_stream = stream_of(stream, device)
    memset(&params, 0, sizeof(params))
    spans.count = 0
    params.places[0].base = outs.memory.data
    params.places[0].token_stride = outs.memory.strides[1]
    params.places[0].head_stride = outs.memory.strides[2]
    params.lses[0].base = <float *>lses.memory.data
    params.lses[0].token_stride = lses.memory.strides[1]
    params.lses[0].head_stride = lses.memory.strides[2]
    params.part_stride = outs.memory.strides[0]
    params.lse_part_stride = lses.memory.strides[0]
    params.is_stacked = 1
    params.num_parts = <int32_t>outs.memory.shape[0]
    use(&spans, on_stream, outs, False)
    use(&spans, on_stream, lses, False)
    merge(entry, device, &params, &spans, out, lse, on_stream)


cdef int merge(object entry, Device device, KvitMergeParams *params, Spans *spans, Tensor out, Tensor lse,
               Stream stream) except -1:
    cdef Kernel kernel
    cdef LaunchConfig config
    if out.memory.shape[0] * out.memory.shape[1] == 0:
        return 0
    pack_rows(&params.out, &out.memory)
    pack_lse(&params.lse, memory_of(lse))
    params.num_tokens = <int32_t>out.memory.shape[0]
    params.num_heads = <int32_t>out.memory.shape[1]
    params.head_dim = <int32_t>out.memory.shape[2]
    use(spans, stream, out, True)
    use(spans, stream, lse, True)
    kernel = load_kernel(entry, device)
    config = kernel.config_of(ctas_for(entry, out.memory.shape[0] * out.memory.shape[1]))
    return launch(kernel, &config, params, stream, spans)


cdef unsigned int ctas_for(object entry, int64_t rows) except 0:
    """CTAs for so many (token, head) rows. Raises ShapeError where a grid has not as many."""
    cdef int64_t rows_per_cta = entry.facts["rows_per_cta"]
    cdef int64_t ctas = (rows + rows_per_cta - 1) // rows_per_cta
    if ctas > MOST_CTAS:
        raise ShapeError(f"out has {rows} rows of tokens and heads; one call merges at most {MOST_CTAS * rows_per_cta}")
    return <unsigned int>ctas
