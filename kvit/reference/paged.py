"""The paged cache: which row of which page holds a token, and the operations on it: attention, append, gather, ..."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from .attention import State, attention
from .codecs import UNCODED, Codec, codec_of
from .rope import Rotation, biased, rotate


class Fault(NamedTuple):
    """What is wrong with a page table: the first such thing of each sequence."""

    kind: Literal["page", "length"]
    sequence: int
    slot: int  # place in the sequence's list of pages; 0 for a length
    value: int  # the page id or the length


Layout = Literal["NHD", "HND"]


@dataclass(frozen=True)
class Pool:
    """K or V of every page: what is stored, and how."""

    data: NDArray  # [page, token, head, element] in the codec's data_dtype
    codec: Codec = UNCODED
    params: NDArray | None = None  # Encoded.params of all rows: [page, token, head, 2]; float8: [page, token, head]

    @property
    def head_dim(self) -> int:
        return self.codec.channels(self.data.shape[3])

    def read(self, page: NDArray[np.intp], row: NDArray[np.intp], dtype: DTypeLike | None = None) -> NDArray:
        """Rows [places, head, channel], decoded to `dtype`; if absent, their own where uncoded, and else float64."""
        data = self.data[page, row]
        if dtype is None:
            dtype = data.dtype if self.codec.keeps_values else np.float64
        return self.codec.decode(data, None if self.params is None else self.params[page, row], dtype)

    def write(self, page: NDArray[np.intp], row: NDArray[np.intp], x: NDArray) -> None:
        """Encode rows x [places, head, channel] into their places; by the scales that lie there, if it is scaled."""
        scale = self.params[page, row] if self.codec.is_scaled and self.params is not None else None
        self.data[page, row], params = self.codec.encode(x, scale)
        if self.params is not None and not self.codec.is_scaled:
            self.params[page, row] = params


@dataclass(frozen=True)
class Cache:
    """Pages of K and V, each stored by its own codec.

    k, v                NHD: [pages, page_size, kv_heads, elements];  HND: [pages, kv_heads, page_size, elements]; any
                        strides; elements is head_dim, of int4 head_dim / 2
    k_codec, v_codec    how rows are stored; as they are if absent
    k_params, v_params  of int8 and int4: like k or v, with the pair (scale, zero) in T in place of the elements.
                        Of float8: the scales in float32: one, [kv_heads], or like k or v without the elements; 1 if
                        absent
    """

    k: NDArray
    v: NDArray
    layout: Layout = "NHD"
    k_codec: Codec = UNCODED
    v_codec: Codec = UNCODED
    k_params: NDArray | None = None
    v_params: NDArray | None = None

    @classmethod
    def poisoned(
        cls,
        pages: int,
        page_size: int,
        kv_heads: int,
        head_dim: int,
        *,
        dtype: DTypeLike,
        k: str | Codec = UNCODED,
        v: str | Codec = UNCODED,
        layout: Layout = "NHD",
        k_scale: ArrayLike | None = None,
        v_scale: ArrayLike | None = None,
    ) -> Cache:
        """A cache without tokens: every byte of it is 0xff, NaN in every float type. dtype is T; scales, float8's."""
        rows = (pages, page_size, kv_heads) if layout == "NHD" else (pages, kv_heads, page_size)
        codecs = [codec_of(name) for name in (k, v)]
        data = [_poison((*rows, codec.row_elements(head_dim)), codec.data_dtype(dtype)) for codec in codecs]
        params = [
            (None if scale is None else np.asarray(scale, np.float32))
            if codec.is_scaled
            else (_poison((*rows, 2), dtype) if codec.param_bytes else None)
            for codec, scale in zip(codecs, (k_scale, v_scale), strict=True)
        ]
        return cls(*data, layout, *codecs, *params)

    def pools(self) -> tuple[NDArray, NDArray]:
        """The data of K and V as [page, token, head, element] views."""
        return self._tokens_first(self.k), self._tokens_first(self.v)

    def stores(self) -> tuple[Pool, Pool]:
        """K and V with their codecs and parameters, views of this cache."""
        k, v = self.pools()
        k_params, v_params = self._params(k, self.k_params), self._params(v, self.v_params)
        return Pool(k, self.k_codec, k_params), Pool(v, self.v_codec, v_params)

    @property
    def num_pages(self) -> int:
        return self.k.shape[0]

    @property
    def page_size(self) -> int:
        return self.pools()[0].shape[1]

    def _tokens_first(self, x: NDArray) -> NDArray:
        return x if self.layout == "NHD" else x.swapaxes(1, 2)

    def _params(self, data: NDArray, params: NDArray | None) -> NDArray | None:
        if params is None:
            return None
        # One scale, or one per head, is the same for all pages and tokens: a view with strides of zero.
        return self._tokens_first(params) if params.ndim > 1 else np.broadcast_to(params, data.shape[:3])


@dataclass(frozen=True)
class Table:
    """Which pages hold which sequence. Tokens fill the pages in order; slots past the last token are not looked at."""

    pages: Sequence[ArrayLike]  # [sequence][slot] page id; rows may differ in length, or be a dense array
    lengths: Sequence[int]  # [sequence] tokens, those that a call adds or asks about included

    @classmethod
    def from_indptr(cls, indptr: ArrayLike, indices: ArrayLike, lengths: Sequence[int]) -> Table:
        """The ragged form: the pages of sequence s are indices[indptr[s]:indptr[s + 1]]."""
        return cls(np.split(np.asarray(indices), np.asarray(indptr)[1:-1]), lengths)

    def has_room(self, cache: Cache, sequence: int) -> bool:
        """Whether the length is one that the sequence's pages can hold."""
        return 0 <= self.lengths[sequence] <= len(self.pages[sequence]) * cache.page_size

    def fault(self, cache: Cache, sequence: int) -> Fault | None:
        """The first thing wrong with a sequence, or None."""
        if not self.has_room(cache, sequence):
            return Fault("length", sequence, 0, int(self.lengths[sequence]))
        pages = np.asarray(self.pages[sequence])[: -(-self.lengths[sequence] // cache.page_size)]
        wrong = np.flatnonzero((pages < 0) | (pages >= cache.num_pages))
        return Fault("page", sequence, int(wrong[0]), int(pages[wrong[0]])) if len(wrong) else None

    def places(self, cache: Cache, sequence: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """(page, row in the page) of every token of a sequence, in order.

        Token t is row t % page_size of page t // page_size. The page is -1 for a token without a place: the table names
        none that exists.
        """
        slot, row = np.divmod(np.arange(max(0, self.lengths[sequence])), cache.page_size)
        if not self.has_room(cache, sequence):
            return np.full_like(slot, -1), row
        page = np.asarray(self.pages[sequence], np.intp)[slot]
        return np.where(page < cache.num_pages, np.maximum(page, -1), -1), row

    def read(self, cache: Cache, sequence: int, dtype: DTypeLike | None = None) -> tuple[NDArray, NDArray]:
        """k and v [length, kv_heads, head_dim] of a sequence, as Pool.read; NaN for tokens that have no place."""
        page, row = self.places(cache, sequence)
        found = page >= 0
        stored = [pool.read(page[found], row[found], dtype) for pool in cache.stores()]
        k, v = (np.full((len(page), *rows.shape[1:]), np.nan, rows.dtype) for rows in stored)
        k[found], v[found] = stored
        return k, v


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
) -> State:
    """Attention of each sequence's new tokens to all its tokens in the cache.

    q       [sum(counts), query_heads, head_dim], sequence after sequence
    counts  new tokens of each sequence, which are its last ones; one each if absent

    A query that sees a token without a place, and every query of a sequence with an impossible length, gives NaN.
    Kernels may give NaN for the other queries of that sequence too: they look at whole tiles of tokens.
    """
    q = np.asarray(q)
    counts = [1] * len(table.lengths) if counts is None else counts
    out = np.full(q.shape, np.nan)
    lse = np.full(q.shape[:2], np.nan)
    for sequence, tokens in enumerate(token_ranges(counts)):
        if table.has_room(cache, sequence):
            k, v = table.read(cache, sequence)
            out[tokens], lse[tokens] = attention(q[tokens], k, v, causal=causal, scale=scale)
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
    rotation: Rotation | None = None,
    positions: ArrayLike | None = None,
    prefix_lengths: Sequence[int] | None = None,
) -> None:
    """Write new tokens, the last `counts[sequence]` ones of each sequence, to their places. Lengths are those after the
    call.

    k, v            [sum(counts), kv_heads, head_dim], sequence after sequence, in the cache's dtype before encoding
    k_bias, v_bias  [kv_heads, head_dim] in that dtype, added first
    rotation        turns k to `positions` [sum(counts)]; to a token's place in its sequence, if those are absent
    prefix_lengths  of each sequence: tokens of lower positions are in pages that others share, and are not written,
                    whatever the table says of their pages

    Rows are encoded one by one: what a token leaves in the cache depends on no other token. A token without a place is
    not written.
    """
    counts = [1] * len(table.lengths) if counts is None else counts
    k, v = biased(np.asarray(k), k_bias if rotation is None else None), biased(np.asarray(v), v_bias)
    if rotation is not None:
        k = rotate(k, token_positions(table, counts) if positions is None else positions, rotation, k_bias)
    for sequence, tokens in enumerate(token_ranges(counts)):
        page, row = table.places(cache, sequence)
        num_written = min(
            counts[sequence], len(page)
        )  # of more new tokens than the sequence is long, only the last ones
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


def gather(cache: Cache, table: Table, dtype: DTypeLike | None = None) -> tuple[NDArray, NDArray, NDArray[np.int32]]:
    """Every sequence's tokens, laid end to end: k and v [tokens, kv_heads, head_dim], and indptr [sequences + 1].

    dtype  of k and v; if absent, the cache's own where it holds rows as they are, and float64 where it does not

    A token without a place gives NaN.
    """
    rows = [table.read(cache, sequence, dtype) for sequence in range(len(table.lengths))]
    # Where there are no sequences, the shape still says heads and dtype.
    none = np.empty(0, np.intp)
    nothing = tuple(pool.read(none, none, dtype) for pool in cache.stores())
    k, v = (np.concatenate(parts) for parts in zip(nothing, *rows, strict=True))
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
    belong to no row keeps its bits too: both caches must have the same scales. What changes its codec is decoded to
    T = `dtype` and encoded. Going down in steps, 16-bit to int8 to int4, adds the errors of both.
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
        if old.params is None or new.params is None:
            assert old.params is new.params, "one of the two has scales"
        elif owns[0][side] and owns[1][side]:
            new.params[there] = old.params[here]
        else:
            assert np.array_equal(old.params[here], new.params[there]), "float8 is moved between equal scales only"


def _poison(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray:
    array = np.empty(shape, dtype)
    array.view(np.uint8)[...] = 0xFF
    return array
