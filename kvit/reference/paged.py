"""Operations on a paged cache: attention, append, gather, and pages copied or converted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from .attention import State, attention
from .cache import Cache, Table
from .norm import RowNorm
from .rope import Rotation, biased, rotate
from .smoothing import Smoothing


def token_ranges(counts: Sequence[int]) -> list[slice]:
    """Where each sequence's tokens lie when the sequences are laid end to end."""
    ends = np.cumsum(counts, dtype=np.int64)
    return [slice(int(end - count), int(end)) for end, count in zip(ends, counts, strict=True)]


def paged_attention(
    q: ArrayLike,
    cache: Cache,
    table: Table,
    counts: Sequence[int] | None = None,
    *,
    causal: bool = True,
    scale: float | None = None,
    spans: ArrayLike | None = None,
    tree: ArrayLike | None = None,
    **options: Any,
) -> State:
    """Attention of each sequence's new tokens to all its tokens in the cache.

    q            [sum(counts), query_heads, head_dim], sequence after sequence
    counts       new tokens of each sequence, which are its last ones; one each if absent
    spans, tree  [sum(counts), 2] and [sum(counts), words]
    options      the others of `attention`

    A query that sees a token without a place, and every query of a sequence with an impossible length, gives NaN.
    Kernels may give NaN for the other queries of that sequence too: they look at whole tiles of tokens.
    """
    q = np.asarray(q)
    counts = [1] * len(table.lengths) if counts is None else counts
    out = np.full((*q.shape[:2], cache.v_codec.channels(cache.v.shape[-1])), np.nan)
    lse = np.full(q.shape[:2], np.nan)
    for sequence, tokens in enumerate(token_ranges(counts)):
        if table.has_room(cache, sequence):
            k, v = table.read(cache, sequence)
            own = {
                name: None if rows is None else np.asarray(rows)[tokens]
                for name, rows in (("spans", spans), ("tree", tree))
            }
            out[tokens], lse[tokens] = attention(q[tokens], k, v, causal=causal, scale=scale, **own, **options)
    return State(out, lse)


def append(
    cache: Cache,
    table: Table,
    k: ArrayLike,
    v: ArrayLike,
    counts: Sequence[int] | None = None,
    *,
    k_bias: NDArray | None = None,
    v_bias: NDArray | None = None,
    k_norm: RowNorm | None = None,
    rotation: Rotation | None = None,
    positions: ArrayLike | None = None,
    prefix_lengths: Sequence[int] | None = None,
    smoothing: Smoothing | None = None,
) -> None:
    """Write new tokens, the last `counts[sequence]` ones of each sequence, to their places. Lengths are those after the
    call.

    k, v            [sum(counts), kv_heads, head_dim], sequence after sequence, in the cache's dtype before encoding
    k_bias, v_bias  [kv_heads, head_dim] in that dtype, added first
    k_norm          normalises rows of k before they turn
    rotation        turns k to `positions` [sum(counts)], or [3, sum(counts)] of a rotation with axes; to a token's
                    place in its sequence, if those are absent
    prefix_lengths  of each sequence: tokens of lower positions are in pages that others share, and are not written,
                    whatever the table says of their pages
    smoothing       of keys, behind the rotation

    Rows are encoded one by one: what a token leaves in the cache depends on no other token. A token without a place is
    not written.
    """
    counts = [1] * len(table.lengths) if counts is None else counts
    k, v = np.asarray(k), biased(np.asarray(v), v_bias)
    last = None if smoothing is None else smoothing.of_keys
    if rotation is None:
        k = biased(k, k_bias, k_norm, last)
    else:
        positions = token_positions(table, counts) if positions is None else positions
        k = rotate(k, positions, rotation, k_bias, k_norm, last)
    for sequence, tokens in enumerate(token_ranges(counts)):
        page, row = table.places(cache, sequence)
        # Of more new tokens than the sequence is long, only the last ones.
        num_written = min(counts[sequence], len(page))
        if prefix_lengths is not None:
            num_written = min(num_written, max(0, len(page) - prefix_lengths[sequence]))
        page, row = page[len(page) - num_written :], row[len(row) - num_written :]
        found = page >= 0
        for pool, new in zip(cache.stores(), (k, v), strict=True):
            pool.write(page[found], row[found], new[tokens.stop - num_written : tokens.stop][found])


def token_positions(table: Table, counts: Sequence[int]) -> NDArray[np.int64]:
    """[sum(counts)] the place of each new token in its sequence; below 0 for one that the sequence is too short for."""
    places = [length - count + np.arange(count) for length, count in zip(table.lengths, counts, strict=True)]
    return np.concatenate([np.empty(0, np.int64), *places])


def gather(
    cache: Cache, table: Table, dtype: DTypeLike | None = None, smoothing: Smoothing | None = None
) -> tuple[NDArray, NDArray, NDArray[np.int32]]:
    """Every sequence's tokens, laid end to end: k and v [tokens, kv_heads, head_dim], and indptr [sequences + 1].

    dtype      of k and v; if absent, the cache's own where it holds rows as they are, and float64 where it does not
    smoothing  that keys were appended with

    A token without a place gives NaN.
    """
    rows = [table.read(cache, sequence, dtype) for sequence in range(len(table.lengths))]
    # Where there are no sequences, the shape still says heads and dtype.
    none = np.empty(0, np.intp)
    nothing = tuple(pool.read(none, none, dtype) for pool in cache.stores())
    k, v = (np.concatenate(parts) for parts in zip(nothing, *rows, strict=True))
    if smoothing is not None:
        k = smoothing.undone(k)
    return k, v, np.cumsum([0, *map(len, (k for k, _ in rows))], dtype=np.int32)


def copy_pages(cache: Cache, source: ArrayLike, target: ArrayLike) -> None:
    """Copy whole pages, K and V, with the parameters of their rows. No page is both a source and a target, or twice a
    target.
    """
    for array in (cache.k, cache.v, cache.k_params, cache.v_params):
        if array is not None and array.ndim > 1:  # one scale, or one per head, belongs to no page
            array[np.asarray(target, np.intp)] = array[np.asarray(source, np.intp)]


def convert_pages(
    source: Cache, target: Cache, source_pages: ArrayLike, target_pages: ArrayLike, dtype: DTypeLike
) -> None:
    """Store whole pages of one cache in pages of another, which may lay them out and store them otherwise.

    K or V whose codec does not change is copied bit for bit, with the parameters of its rows. float8 whose scales
    belong to no row keeps its bits too, and so does nvfp4: both caches must have the same scales. What changes its
    codec is decoded to T = `dtype` and encoded. Going down in steps, 16-bit to int8 to int4, adds the errors of both.
    """
    row = np.arange(source.page_size)
    old_page, _ = np.meshgrid(np.asarray(source_pages, np.intp), row, indexing="ij")
    new_page, rows = np.meshgrid(np.asarray(target_pages, np.intp), row, indexing="ij")
    here, there = (old_page.reshape(-1), rows.reshape(-1)), (new_page.reshape(-1), rows.reshape(-1))
    owns = [[array is not None and array.ndim > 1 for array in (x.k_params, x.v_params)] for x in (source, target)]
    for side, (old, new) in enumerate(zip(source.stores(), target.stores(), strict=True)):
        if old.codec is not new.codec:
            new.write(*there, old.read(*here, dtype))
            continue
        new.data[there] = old.data[here]
        scales = [1 if pool.scale is None else pool.scale[places] for pool, places in ((old, here), (new, there))]
        assert np.all(np.equal(*scales)), "nvfp4 is moved between equal scales only"
        if old.params is None or new.params is None:
            assert old.params is new.params, "one of the two has scales"
        elif owns[0][side] and owns[1][side]:
            new.params[there] = old.params[here]
        else:
            assert np.array_equal(old.params[here], new.params[there]), "float8 is moved between equal scales only"
