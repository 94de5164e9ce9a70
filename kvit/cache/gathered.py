"""Tokens of sequences out of the pages of one layer: what PagedCache.gather does."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate
from typing import Any

from kvit import _checks
from kvit._native.buffer import Buffer
from kvit._native.growth import check_all
from kvit._native.stream import Stream
from kvit.cache import calls
from kvit.cache.layer_group import LayerGroup
from kvit.cache.storage import upload
from kvit.errors import ShapeError
from kvit.layouts.views import CacheView, Layout
from kvit.ops.gather import pair_of


def gather_layer(
    cache: Any, group: LayerGroup, view: CacheView, seqs: Iterable[Any], out: Any, layout: Layout, stream: Any
) -> tuple[Any, Any, Buffer]:
    """k, v and indptr, as PagedCache.gather says."""
    _checks.require_layout(layout)
    seqs, stream = calls.members(seqs), Stream.wrap(stream, view.device)
    if out is not None:
        out = pair_of(out)
        rows = [_checks.tensor(name, given, view.dtype, stream) for name, given in zip("kv", out, strict=True)]
    # From here on no code of the caller runs.
    check_all(cache.pool, seqs)
    starts = [0, *accumulate(map(len, seqs))]
    if starts[-1] > _checks.MOST:
        raise ShapeError(f"the sequences have {starts[-1]} tokens; at most {_checks.MOST} can be gathered at once")
    axes = {"tokens": starts[-1], "kv_heads": view.kv_heads, "head_dim": view.head_dim}
    if layout == "HND":
        axes = {name: axes[name] for name in ("kv_heads", "tokens", "head_dim")}
    if out is None:
        out = rows = [Buffer.empty(tuple(axes.values()), view.dtype, view.device, stream) for _ in range(2)]
    for name, found in zip("kv", rows, strict=True):
        _checks.require_shape(name, found, **axes)
    indptr = upload(starts, stream)
    sent = cache.tables.take(cache.pool, seqs, None, 0, stream)
    group.gather(view, sent.table, query_indptr=indptr, out=tuple(rows), layout=layout, stream=stream)
    cache.tables.give(sent)
    return *out, indptr
