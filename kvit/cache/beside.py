"""Attention to the tokens of a step and to entries that lie elsewhere, in one softmax: two calls and a merge."""

from __future__ import annotations

from typing import Any

from kvit._native.buffer import Buffer
from kvit.cache.attention import attention
from kvit.cache.layer import CacheLayer
from kvit.cache.step import Step
from kvit.layouts.views import CacheView, PageTable
from kvit.ops.merge import merge_state
from kvit.ops.sparse import SparseAttention


def attend_beside(
    q: Any,
    layer: CacheLayer,
    step: Step,
    op: SparseAttention,
    view: CacheView,
    table: PageTable,
    indices: Any,
    *,
    out: Any,
    scale: float | None = None,
    **modifiers: Any,
) -> None:
    """Write attention of q to its tokens in a layer and to the entries that it has chosen of a view.

    q, out     [tokens, query_heads, head_dim] of the step
    layer      whose K and V of the step are appended
    op         for entries of one token of `view`, each as wide as the rows of the layer; without sinks
    table      PageTable of the view: a sequence for each of the step
    indices    as calls of `op` take them
    modifiers  window, chunk, softcap and sinks of the layer, as kvit.attention takes them

    Runs on the step's stream, and returns before the work is done. Raises what the calls raise.
    """
    shape, stream = tuple(q.shape), step.stream
    lse, lse_beside = (Buffer.empty(shape[:2], "float32", layer.device, stream) for _ in range(2))
    beside = Buffer.empty((*shape[:2], layer.v_dim), layer.dtype, layer.device, stream)
    attention(q, layer, step, out=out, lse=lse, scale=scale, **modifiers)
    op(q, view, table, indices, out=beside, lse=lse_beside, stream=stream)
    merge_state(out, lse, beside, lse_beside, out=out, lse=lse, stream=stream)
