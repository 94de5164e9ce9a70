"""kvit.attention: attention to sequences of a PagedCache, in one call."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kvit import _checks
from kvit._native.buffer import Buffer
from kvit._native.growth import check_all
from kvit._native.stream import Stream
from kvit._native.tensor import Tensor
from kvit.cache.batch import Batch
from kvit.cache.calls import counts_of, members
from kvit.cache.layer import CacheLayer
from kvit.cache.paged_cache import PagedCache
from kvit.cache.sequence import Sequence
from kvit.cache.shared_prefix import Held, attend, refuse_modifiers, runs_of
from kvit.cache.step import Step
from kvit.errors import ShapeError
from kvit.ops.modifiers import Window


def attention(
    q: Any,
    cache: PagedCache | CacheLayer,
    seqs: Iterable[Sequence] | Step | Batch,
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
    shared_prefix: bool = False,
    stream: Any = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attend the last tokens of each sequence to all its tokens in the cache.

    q           [tokens, query_heads, head_dim], sequence after sequence, in the cache's dtype
    cache       a PagedCache of one layer, or cache.layer(i)
    seqs        sequences of `cache`, whose new K and V were appended before; or an open step, cache.step(...) or a
                kvit.Batch, whose new tokens are attended
    new_tokens  how many rows of q each sequence has; equally many if absent, or the step's
    out         like q, written in place; allocated if absent
    lse         float32 [tokens, query_heads], written in place; allocated if absent and return_lse
    causal      query i of n sees keys up to length - n + i; else all keys of its sequence
    scale       of the scores, before exp; head_dim ** -0.5 if absent
    window, chunk, softcap, sinks, alibi, temperature
                as kvit.Attention takes them; a window that is absent is the layer's
    spans, tree arrays of the call's tokens, as calls of kvit.Attention take them
    shared_prefix
                True: whole pages that sequences next to each other in `seqs` begin with, as forks do, are read once for
                all of them, and not once for each. Where there are any, the call is three launches, and allocates
                tables and the outputs of both parts. Not of a kvit.Batch; of masks and scores with causal, scale,
                softcap and sinks alone
    stream      Stream, int handle, or an object with __cuda_stream__; the device's default stream if absent, or the
                step's

    Returns out, or (out, lse) if return_lse. A sequence with no tokens gives zeros and lse = -inf, or its sinks.
    Raises ShapeError, DtypeError, DeviceError, LayoutError, SequenceFreed, KernelMissing; nothing is launched then.
    Defined by kvit.reference.paged_attention. Shared prefixes: Juravsky et al., Hydragen, 2024.
    """
    owner, layer = _layer_of(cache)
    _, view, own_window, _ = owner.places[layer]
    causal, return_lse = _checks.flag("causal", causal), _checks.flag("return_lse", return_lse)
    is_step = isinstance(seqs, Step | Batch)
    stream = seqs.stream_of(stream) if is_step else Stream.wrap(stream, owner.device)
    q = _checks.tensor("q", q, None, stream)
    _checks.require_shape("q", q, tokens=None, query_heads=None, head_dim=view.k_dim)
    given_out, given_lse = out, lse
    if out is not None:
        out = _checks.tensor("out", out, None, stream)
    if lse is not None:
        lse = _checks.tensor("lse", lse, None, stream)
    window = own_window if window is None else window
    modifiers = {}
    if not (window is chunk is spans is tree is softcap is sinks is alibi is temperature is None):
        sinks, alibi, temperature, spans, tree = (
            None if x is None else _checks.tensor(name, x, None, stream)
            for name, x in (
                ("sinks", sinks), ("alibi", alibi), ("temperature", temperature), ("spans", spans), ("tree", tree)
            )
        )  # fmt: skip
        wishes = {
            "window": window, "chunk": chunk, "softcap": softcap, "sinks": sinks, "alibi": alibi,
            "temperature": temperature, "spans": spans is not None or None, "tree": tree is not None or None,
        }  # fmt: skip
        modifiers = {name: wish for name, wish in wishes.items() if wish is not None}
    if shared_prefix is not False and _checks.flag("shared_prefix", shared_prefix):
        refuse_modifiers(modifiers)
        if isinstance(seqs, Batch):
            raise ShapeError(
                "shared_prefix makes tables anew for each call, and those of a kvit.Batch stay where they are"
            )
    tokens, heads, _ = q.shape
    sent = None
    if new_tokens is not None:
        new_tokens = _checks.listed("new_tokens", new_tokens, "a number for each sequence")
    if not is_step:
        seqs = members(seqs)
    # From here on no code of the caller runs, which might change a sequence, or the memory of the cache.
    group, view, _, _ = place = owner.places[layer]
    if shared_prefix:
        held = _held(owner, seqs, q.shape[0], new_tokens)
        runs = runs_of(held, owner.page_size)
        if any(run.shared for run in runs):
            how: dict[str, Any] = {"causal": causal, "scale": scale, "modifiers": modifiers, "stream": stream}
            found, sums = attend(q, place, held, runs, out=out, lse=lse, **how)
            out = found if given_out is None else given_out
            return (out, sums if given_lse is None else given_lse) if return_lse else out
    if is_step:
        if seqs.cache is not owner:
            raise ShapeError("the step is of another cache than the layer; begin one of its own: cache.step(...)")
        table, indptr, most = seqs.rows_of(tokens, new_tokens)
        op = group.operations.find(heads, most, causal, scale, **modifiers)
    else:
        counts = counts_of("q", tokens, len(seqs), new_tokens)
        most = counts if isinstance(counts, int) else max(counts, default=1)
        check_all(owner.pool, seqs)
        op = group.operations.find(heads, most, causal, scale, **modifiers)
        sent = owner.tables.take(owner.pool, seqs, None, counts, stream)
        table, indptr = sent.table, sent.rows
    if q.dtype is not op.dtype:
        q = _checks.tensor("q", q, op.dtype)
    if return_lse and lse is None:
        lse = Buffer.empty(q.shape[:2], "float32", owner.device, stream)
    found = op(q, view, table, query_indptr=indptr, out=out, lse=lse, spans=spans, tree=tree, stream=stream)
    if sent is not None:
        owner.tables.give(sent)
    out = found if given_out is None else given_out
    return (out, lse if given_lse is None else given_lse) if return_lse else out


def _held(owner: PagedCache, seqs: Any, tokens: int, new_tokens: Any) -> list[Held]:
    """What a call reads of each sequence of a tuple or a step. Raises ShapeError, SequenceFreed, KvitError."""
    if isinstance(seqs, Step):
        if seqs.cache is not owner:
            raise ShapeError("the step is of another cache than the layer; begin one of its own: cache.step(...)")
        seqs.rows_of(tokens, new_tokens)  # which checks all
        pages, lengths, counts = seqs.growth.pages, seqs.lengths, seqs.counts if new_tokens is None else new_tokens
    else:
        counts = counts_of("q", tokens, len(seqs), new_tokens)
        check_all(owner.pool, seqs)
        pages, lengths = [seq.pages for seq in seqs], [len(seq) for seq in seqs]
    each = [counts] * len(lengths) if isinstance(counts, int) else counts
    return [Held(*of_one) for of_one in zip(pages, lengths, each, strict=True)]


def _layer_of(cache: Any) -> tuple[PagedCache, int]:
    """The cache of a call, and which layer it is about. Raises TypeError, ShapeError (a cache of several layers)."""
    if isinstance(cache, CacheLayer):
        _checks.made("cache", cache, CacheLayer, "a kvit.PagedCache or cache.layer(i)")
        return cache.cache, cache.index
    _checks.made("cache", cache, PagedCache, "a kvit.PagedCache or cache.layer(i) (Attention takes views)")
    cache.only_place("K and V")
    return cache, 0
