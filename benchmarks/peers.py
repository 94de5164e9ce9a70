"""Peers that do the same work on the same bytes, where they are installed: FlashInfer, its XQA, FlashAttention-3.

PyTorch lends them kvit's memory through DLPack, and captures and times their graphs as measure.Replay does kvit's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import measure
import numpy as np
from inputs import FLOAT8_SCALES, Inputs, dense

_WORKSPACE_BYTES = 256 << 20


def flashinfer(inputs: Inputs) -> measure.Contender:
    """FlashInfer's paged decode on tensor cores, planned beforehand."""
    import torch
    from flashinfer import BatchDecodeWithPagedKVCacheWrapper

    cell = inputs.cell
    pools, scales = _pools(inputs), _scales(inputs)
    q, out = _torch(inputs.q), _torch(inputs.out)
    workspace = torch.zeros(_WORKSPACE_BYTES, dtype=torch.uint8, device=q.device)
    wrapper = BatchDecodeWithPagedKVCacheWrapper(workspace, cell.layout, backend="fa2", use_tensor_cores=True)
    indptr, last = np.cumsum([0, *cell.slots()]), (cell.tokens() - 1) % cell.page_size + 1
    tables = [torch.from_numpy(array.astype(np.int32)) for array in (indptr, np.concatenate(inputs.pages), last)]
    heads = (cell.query_heads, cell.kv_heads, cell.head_dim, cell.page_size)
    wrapper.plan(*(table.to(q.device) for table in tables), *heads, q_data_type=q.dtype, kv_data_type=pools[0][0].dtype)
    # A scale of 1 is left out: to multiply by it would be a kernel more.
    options = {"out": out, **{name: x for name, x in zip(("k_scale", "v_scale"), scales, strict=True) if x != 1}}
    return _Replay(inputs, out, [lambda pair=pair: wrapper.run(q, pair, **options) for pair in pools])


def xqa(inputs: Inputs) -> measure.Contender:
    """TensorRT-LLM's XQA, as FlashInfer ships it."""
    import torch
    from flashinfer.decode import xqa_batch_decode_with_kv_cache

    cell = inputs.cell
    pools, (k_scale, v_scale) = _pools(inputs), _scales(inputs)
    q, out = _torch(inputs.q), _torch(inputs.out)
    workspace = torch.zeros(_WORKSPACE_BYTES, dtype=torch.uint8, device=q.device)
    table = torch.from_numpy(dense(inputs.pages, 0)).to(q.device)
    lengths, longest = torch.from_numpy(cell.tokens()).to(q.device), int(cell.tokens().max())
    scales = {"bmm1_scale": cell.head_dim**-0.5 * k_scale, "bmm2_scale": v_scale}
    options = {**scales, "out": out, "kv_layout": cell.layout}

    def run(pair: tuple[Any, Any]) -> None:
        xqa_batch_decode_with_kv_cache(q, pair, workspace, table, lengths, longest, **options)

    return _Replay(inputs, out, [lambda pair=pair: run(pair) for pair in pools])


def fa3(inputs: Inputs) -> measure.Contender:
    """FlashAttention-3 over the same bytes as if they were contiguous: without the cost of a page table."""
    import torch
    from fa3_fwd_interface import flash_attn_with_kvcache

    cell = inputs.cell
    is_whole = cell.lengths == "uniform" and cell.context % cell.page_size == 0
    if cell.layout != "NHD" or not is_whole or cell.kv != "bfloat16":
        raise ValueError("reads contiguous tokens in 16 bits: full pages in NHD, of sequences of one length")
    q = _torch(inputs.q).unsqueeze(1)
    lengths = torch.from_numpy(cell.tokens()).to(q.device)
    shape = (cell.batch, cell.context, cell.kv_heads, cell.head_dim)
    pairs = [tuple(pool.view(shape) for pool in pair) for pair in _pools(inputs)]

    def run(pair: tuple[Any, Any]) -> None:
        flash_attn_with_kvcache(q, *pair, cache_seqlens=lengths, causal=True)

    # Its tokens are other tokens than the page table's, so there is no result to compare.
    return _Replay(inputs, None, [lambda pair=pair: run(pair) for pair in pairs])


def fa3_prompts(inputs: Any) -> measure.Contender:
    """FlashAttention-3 over as many contiguous tokens as a prefill.Inputs has, of its own: without a page table."""
    import torch
    from fa3_fwd_interface import flash_attn_func, flash_attn_with_kvcache

    prompt = inputs.prompt
    if len(prompt.groups) != 1 or prompt.kv != "bfloat16":
        raise ValueError("reads bfloat16 tokens of sequences of one length")
    ((batch, new, length),) = prompt.groups
    device = _torch(inputs.out).device
    q, k, v = (
        torch.randn(batch, tokens, heads, prompt.head_dim, device=device, dtype=torch.bfloat16)
        for tokens, heads in ((new, prompt.query_heads), (length, prompt.kv_heads), (length, prompt.kv_heads))
    )
    lengths = torch.full((batch,), length, dtype=torch.int32, device=device)

    def run() -> None:
        if new == length:
            flash_attn_func(q, k, v, causal=prompt.causal)
        else:  # which cuts the keys where there are few queries
            flash_attn_with_kvcache(q, k, v, cache_seqlens=lengths, causal=prompt.causal)

    return _Replay(inputs, None, [run])


def flashinfer_latent(inputs: Any) -> measure.Contender:
    """FlashInfer's MLA for Hopper, planned beforehand, on rows of its own in the order of latent.Inputs' page table."""
    import torch
    from flashinfer.mla import BatchMLAPagedAttentionWrapper

    cell, device = inputs.cell, _torch(inputs.q).device
    latent, turning, options = 512, 64, {"dtype": torch.bfloat16, "device": device}
    workspace = torch.zeros(_WORKSPACE_BYTES, dtype=torch.uint8, device=device)
    wrapper = BatchMLAPagedAttentionWrapper(workspace, backend="fa3")
    slots = len(inputs.pages[0])
    indptr = [
        torch.arange(cell.batch + 1, dtype=torch.int32, device=device) * each for each in (cell.new_tokens, slots)
    ]
    pages = torch.from_numpy(np.concatenate(inputs.pages)).to(device)
    lengths = torch.full((cell.batch,), cell.context, dtype=torch.int32, device=device)
    q = torch.randn(cell.batch * cell.new_tokens, cell.heads, latent + turning, **options)
    parts, out = (q[..., :latent].contiguous(), q[..., latent:].contiguous()), torch.empty_like(q[..., :latent])
    wrapper.plan(
        *indptr, pages, lengths, cell.heads, latent, turning, cell.page_size, True, (latent + turning) ** -0.5,
        q.dtype, q.dtype,
    )  # fmt: skip
    caches = [
        [torch.randn(len(pages), cell.page_size, channels, **options) for channels in (latent, turning)]
        for _ in inputs.views
    ]
    return _Replay(inputs, None, [lambda rows=rows: wrapper.run(*parts, *rows, out=out) for rows in caches])


PEERS: dict[str, Callable[[Inputs], measure.Contender]] = {"flashinfer": flashinfer, "xqa": xqa, "fa3": fa3}
"""Name -> a peer, ready to be timed. Each raises whatever says that it cannot do it here, ImportError foremost."""


def _torch(buffer: Any) -> Any:
    import torch

    return torch.from_dlpack(buffer)


def _pools(inputs: Inputs) -> list[tuple[Any, Any]]:
    """K and V of each cache, in pages. Raises ValueError for codecs that PyTorch has no dtype for."""
    import torch

    known = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float8_e4m3": torch.float8_e4m3fn}
    if inputs.cell.kv not in known:
        raise ValueError("reads caches in 16 bits or float8_e4m3")
    shape, dtype = inputs.shape(inputs.cell.head_dim), known[inputs.cell.kv]
    return [
        tuple(_torch(inputs.arena.buffer(part)).view(dtype).view(shape) for part in (pools.k, pools.v))
        for pools in inputs.pools
    ]


def _scales(inputs: Inputs) -> tuple[float, float]:
    """Of K and V."""
    return FLOAT8_SCALES if inputs.cell.kv.startswith("float8") else (1.0, 1.0)


class _Replay:
    """A contender whose calls work on PyTorch's current stream. The first call's result is checked, if it has one."""

    def __init__(self, inputs: Inputs, out: Any, calls: Sequence[Callable[[], object]]):
        import torch

        self._stream = torch.cuda.Stream()
        if out is not None:
            out.fill_(float("nan"))
        with torch.cuda.stream(self._stream):
            self._stream.wait_stream(torch.cuda.default_stream())
            calls[0]()
            torch.cuda.synchronize()
            if out is not None:
                inputs.check(0, np.asarray(out.float().cpu().numpy()), None)
            for one in calls:
                one()
        torch.cuda.synchronize()
        rounds = max(1, measure.CALLS_PER_GRAPH // len(calls))
        self._held = calls  # and with them the memory that the graph works on
        self._calls, self._graph = rounds * len(calls), torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=self._stream):
            for _ in range(rounds):
                for one in calls:
                    one()

    def us(self) -> float:
        import torch

        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.stream(self._stream):
            start.record()
            self._graph.replay()
            end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e3 / self._calls

    def close(self) -> None:
        self._graph.reset()
