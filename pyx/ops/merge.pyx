"""The union of two attention results over different keys: packed and launched. All was checked by the caller."""
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memset

from kvit._native.context cimport Device
from kvit._native.driver_table cimport LaunchConfig
from kvit._native.launcher cimport launch
from kvit._native.module cimport Kernel, load_kernel
from kvit._native.packers cimport memory_of, pack_lse, pack_rows
from kvit._native.params cimport KvitMergeParams
from kvit._native.spans cimport Spans, use
from kvit._native.stream cimport Stream, stream_of
from kvit._native.tensor cimport Tensor


def merge(object entry, Device device not None, Tensor a not None, Tensor lse_a not None, Tensor b not None,
          Tensor lse_b not None, Tensor out not None, Tensor lse, object stream):
    """The union of two states. a, b, out [tokens, heads, head_dim]; lse* float32 [tokens, heads]."""
    if a.memory.shape[0] * a.memory.shape[1] == 0:
        return
    cdef KvitMergeParams params
    cdef Spans spans
    cdef LaunchConfig config
    cdef Kernel kernel = load_kernel(entry, device)
    cdef Stream on_stream = stream_of(stream, device)
    memset(&params, 0, sizeof(params))
    spans.count = 0
    pack_rows(&params.a, &a.memory)
    pack_rows(&params.b, &b.memory)
    pack_rows(&params.out, &out.memory)
    pack_lse(&params.lse_a, memory_of(lse_a))
    pack_lse(&params.lse_b, memory_of(lse_b))
    pack_lse(&params.lse, memory_of(lse))
    params.num_tokens = <int32_t>a.memory.shape[0]
    params.num_heads = <int32_t>a.memory.shape[1]
    params.head_dim = <int32_t>a.memory.shape[2]
    use(&spans, on_stream, a, False)
    use(&spans, on_stream, lse_a, False)
    use(&spans, on_stream, b, False)
    use(&spans, on_stream, lse_b, False)
    use(&spans, on_stream, out, True)
    use(&spans, on_stream, lse, True)
    config = kernel.config_of(ctas_for(entry, a.memory.shape[0] * a.memory.shape[1]))
    launch(kernel, &config, &params, on_stream, &spans)


cdef unsigned int ctas_for(object entry, int64_t rows) except 0:
    """CTAs for so many (token, head) rows."""
    cdef int64_t rows_per_cta = entry.facts["rows_per_cta"]
    return <unsigned int>((rows + rows_per_cta - 1) // rows_per_cta)
