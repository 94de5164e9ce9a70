"""Peers that do the same work on the same bytes, where they are installed: FlashInfer, its XQA, FlashAttention-3.

PyTorch lends them kvit's memory through DLPack, and captures and times their graphs as measure.py does kvit's.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import measure
import numpy as np
from inputs import Inputs, pool_shape

_WORKSPACE_BYTES = 256 << 20


def flashinfer(inputs: Inputs) -> float:
    """FlashInfer's paged decode on tensor cores, planned beforehand."""
    import torch
    from flashinfer import BatchDecodeWithPagedKVCacheWrapper

    cell, setting = inputs.cell, inputs.setting
    slots = setting.slots(cell)
    q, out = _torch(inputs.q), _torch(inputs.out)
    workspace = torch.zeros(_WORKSPACE_BYTES, dtype=torch.uint8, device=q.device)
    wrapper = BatchDecodeWithPagedKVCacheWrapper(workspace, setting.layout, backend="fa2", use_tensor_cores=True)
    indptr = torch.arange(cell.batch + 1, dtype=torch.int32, device=q.device) * slots
    last = (cell.context - 1) % setting.page_size + 1
    lasts = torch.full((cell.batch,), last, dtype=torch.int32, device=q.device)
    indices = torch.from_numpy(inputs.pages.reshape(-1)).to(q.device)
    heads = (cell.query_heads, cell.kv_heads, setting.head_dim, setting.page_size)
    wrapper.plan(indptr, indices, lasts, *heads, q_data_type=q.dtype, kv_data_type=q.dtype)
    return _graph_us(inputs, out, [lambda pair=pair: wrapper.run(q, pair, out=out) for pair in _pools(inputs)])


def xqa(inputs: Inputs) -> float:
    """TensorRT-LLM's XQA, as FlashInfer ships it."""
    import torch
    from flashinfer.decode import xqa_batch_decode_with_kv_cache

    cell, setting = inputs.cell, inputs.setting
    q, out = _torch(inputs.q), _torch(inputs.out)
    workspace = torch.zeros(_WORKSPACE_BYTES, dtype=torch.uint8, device=q.device)
    table = torch.from_numpy(inputs.pages).to(q.device)
    lengths = torch.full((cell.batch,), cell.context, dtype=torch.int32, device=q.device)
    options = {"bmm1_scale": setting.head_dim**-0.5, "bmm2_scale": 1.0, "out": out, "kv_layout": setting.layout}

    def run(pair: tuple[Any, Any]) -> None:
        xqa_batch_decode_with_kv_cache(q, pair, workspace, table, lengths, cell.context, **options)

    return _graph_us(inputs, out, [lambda pair=pair: run(pair) for pair in _pools(inputs)])


def fa3(inputs: Inputs) -> float:
    """FlashAttention-3 over the same bytes as if they were contiguous: without the cost of a page table."""
    import torch
    from fa3_fwd_interface import flash_attn_with_kvcache

    cell, setting = inputs.cell, inputs.setting
    if setting.layout != "NHD" or cell.context % setting.page_size:
        raise ValueError("reads contiguous tokens, which pages are in layout NHD with full pages only")
    q = _torch(inputs.q).unsqueeze(1)
    lengths = torch.full((cell.batch,), cell.context, dtype=torch.int32, device=q.device)
    shape = (cell.batch, cell.context, cell.kv_heads, setting.head_dim)
    pairs = [tuple(pool.view(shape) for pool in pair) for pair in _pools(inputs)]

    def run(pair: tuple[Any, Any]) -> None:
        flash_attn_with_kvcache(q, *pair, cache_seqlens=lengths, causal=True)

    # Its tokens are other tokens than the page table's, so there is no result to compare.
    return _graph_us(inputs, None, [lambda pair=pair: run(pair) for pair in pairs])


PEERS: dict[str, Callable[[Inputs], float]] = {"flashinfer": flashinfer, "xqa": xqa, "fa3": fa3}
"""Name -> microseconds of one call. Each raises whatever says that the peer cannot do it here, ImportError foremost."""


def _torch(buffer: Any) -> Any:
    import torch

    return torch.from_dlpack(buffer)


def _pools(inputs: Inputs) -> list[tuple[Any, Any]]:
    """K and V of each cache, in pages."""
    shape, dtype = pool_shape(inputs.cell, inputs.setting), _torch(inputs.q).dtype
    return [tuple(_torch(pool).view(dtype).view(shape) for pool in pair) for pair in inputs.pools]


def _graph_us(inputs: Inputs, out: Any, calls: Sequence[Callable[[], object]]) -> float:
    """measure.graph_us for calls that work on PyTorch's current stream. The first call's result is checked before."""
    import torch

    stream = torch.cuda.Stream()
    if out is not None:
        out.fill_(float("nan"))
    with torch.cuda.stream(stream):
        stream.wait_stream(torch.cuda.default_stream())
        calls[0]()
        torch.cuda.synchronize()
        if out is not None:
            inputs.check(0, np.asarray(out.float().cpu().numpy()), None)
        for one in calls:
            one()
    torch.cuda.synchronize()
    rounds = max(1, measure.CALLS_PER_GRAPH // len(calls))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(rounds):
            for one in calls:
                one()
    times = []
    for _ in range(2 + measure.REPLAYS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.stream(stream):
            start.record()
            graph.replay()
            end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / (rounds * len(calls)))
    return round(statistics.median(times[2:]), 3)
