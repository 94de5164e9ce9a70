"""kvit.attention: attention to sequences of a PagedCache, in one call."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kvit import _checks
from kvit._native.buffer import Buffer
from kvit._native.stream import Stream
from kvit._native.tensor import Tensor
from kvit.cache.batch import counts_of, listed, numbers_of
from kvit.cache.paged_cache import PagedCache
from kvit.cache.sequence import Sequence
from kvit.ops.modifiers import Window


def attention(
    q: Any,
    cache: PagedCache,
    seqs: Iterable[Sequence],
    new_tokens: Iterable[int] | None = None,
    *,
    out: Any = None,
    lse: Any = None,
    return_lse: bool = False,
    causal: bool = True,
    scale: float | None = None,
    window: Window = None,
    chunk: int | None = None,
    spans: Any = None,
    tree: Any = None,
    softcap: float | None = None,
    sinks: Any = None,
    alibi: Any = None,
    temperature: Any = None,
    stream: Any = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attend the last tokens of each sequence to all its tokens in the cache.

    q           [tokens, query_heads, head_dim], sequence after sequence, in the cache's dtype
    seqs        sequences of `cache`; their new K and V were appended before
    new_tokens  how many rows of q each sequence has; equally many if absent
    out         like q, written in place; allocated if absent
    lse         float32 [tokens, query_heads], written in place; allocated if absent and return_lse
    causal      query i of n sees keys up to length - n + i; else all keys of its sequence
    scale       of the scores, before exp; head_dim ** -0.5 if absent
    window, chunk, softcap, sinks, alibi, temperature
                as kvit.Attention takes them
    spans, tree arrays of the call's tokens, as calls of kvit.Attention take them
    stream      Stream, int handle, or an object with __cuda_stream__; the device's default stream if absent

    Returns out, or (out, lse) if return_lse. A sequence with no tokens gives zeros and lse = -inf, or its sinks.
    Raises ShapeError, DtypeError, DeviceError, LayoutError, SequenceFreed, KernelMissing; nothing is launched then.
    Defined by kvit.reference.paged_attention.
    """
    _checks.made("cache", cache, PagedCache, "a kvit.PagedCache (Attention takes views)")
    stream = Stream.wrap(stream, cache.device)
    causal, return_lse = _checks.flag("causal", causal), _checks.flag("return_lse", return_lse)
    q = _checks.tensor("q", q, None, stream)
    _checks.require_shape("q", q, tokens=None, query_heads=None, head_dim=cache.head_dim)
    given = out, lse
    out, lse = (
        None if x is None else _checks.tensor(name, x, None, stream) for name, x in (("out", out), ("lse", lse))
    )
    sinks, alibi, temperature, spans, tree = (
        None if x is None else _checks.tensor(name, x, None, stream)
        for name, x in (
            ("sinks", sinks), ("alibi", alibi), ("temperature", temperature), ("spans", spans), ("tree", tree)
        )
    )  # fmt: skip
    seqs = listed(seqs)
    counts = counts_of("q", q.shape[0], len(seqs), new_tokens)
    # From here on no code of the caller runs, which might change a sequence.
    numbers = numbers_of(cache.pool, seqs)
    wishes = {
        "window": window, "chunk": chunk, "softcap": softcap, "sinks": sinks, "alibi": alibi,
        "temperature": temperature, "spans": spans is not None or None, "tree": tree is not None or None,
    }  # fmt: skip
    modifiers = {name: wish for name, wish in wishes.items() if wish is not None}
    op = cache.operations.find(q.shape[1], max(counts, default=1), causal, scale, **modifiers)
    q = _checks.tensor("q", q, op.dtype)
    if return_lse and lse is None:
        lse = Buffer.empty(q.shape[:2], "float32", cache.device, stream)
    table, indptr = cache.tables.send(cache.pool.pages_of_all(numbers), counts, stream)
    found = op(q, cache.view, table, query_indptr=indptr, out=out, lse=lse, spans=spans, tree=tree, stream=stream)
    out, lse = (made if own is None else own for made, own in zip((found, lse), given, strict=True))
    return (out, lse) if return_lse else out
