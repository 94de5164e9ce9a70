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
from kvit.cache.layer_group import Place
from kvit.cache.storage import channels_of, upload
from kvit.errors import ShapeError
from kvit.layouts.views import Layout
from kvit.ops.gather import pair_of


def gather_layer(
    cache: Any, place: Place, seqs: Iterable[Any], out: Any, layout: Layout, stream: Any
) -> tuple[Any, Any, Buffer]:
    """k, v and indptr, as PagedCache.gather says."""
    group, view, _, stored = place
    shares_kv = group.kind.shares_kv
    _checks.require_layout(layout)
    seqs, stream = calls.members(seqs), Stream.wrap(stream, view.device)
    if out is not None:
        out = pair_of(out)
        if shares_kv and out[1] is not None:
            raise ShapeError("K and V share rows, and v is the first channels of k; give (k, None) as out")
        given = zip("kv", out[:1] if shares_kv else out, strict=False)
        rows = [_checks.tensor(name, x, view.dtype, stream) for name, x in given]
    # From here on no code of the caller runs.
    check_all(cache.pool, seqs)
    starts = [0, *accumulate(map(len, seqs))]
    if starts[-1] > _checks.MOST:
        raise ShapeError(f"the sequences have {starts[-1]} tokens; at most {_checks.MOST} can be gathered at once")
    shapes = [_axes(layout, starts[-1], view.kv_heads, dim) for dim in (view.k_dim, view.v_dim)[: 2 - shares_kv]]
    if out is None:
        rows = [Buffer.empty(tuple(axes.values()), view.dtype, view.device, stream) for axes in shapes]
        out = (*rows, None)[:2]
    for name, found, axes in zip("kv", rows, shapes, strict=False):
        _checks.require_shape(name, found, **axes)
    if shares_kv:
        [whole], first = rows, stored.v_dim
        _checks.require_rows("k", whole)
        rows = [channels_of(whole, first, view.k_dim), channels_of(whole, 0, first)]
        out = out[0], channels_of(whole, 0, view.v_dim)
    indptr = upload(starts, stream)
    sent = cache.tables.take(cache.pool, seqs, None, 0, stream)
    group.gather(stored, sent.table, query_indptr=indptr, out=tuple(rows), layout=layout, stream=stream)
    cache.tables.give(sent)
    return *out, indptr


def _axes(layout: Layout, tokens: int, kv_heads: int, dim: int) -> dict[str, int]:
    axes = {"tokens": tokens, "kv_heads": kv_heads, "head_dim": dim}
    return axes if layout == "NHD" else {name: axes[name] for name in ("kv_heads", "tokens", "head_dim")}
