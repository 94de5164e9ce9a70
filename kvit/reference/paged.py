"""The paged cache: which row of which page holds a token, and attention, append, gather and page copies over it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .attention import State, attention


class Fault(NamedTuple):
    """What is wrong with a page table: the first such thing of each sequence."""

    kind: Literal["page", "length"]
    sequence: int
    slot: int  # place in the sequence's list of pages; 0 for a length
    value: int  # the page id or the length


@dataclass(frozen=True)
class Cache:
    """Pages of K and V.

    k, v    NHD: [pages, page_size, kv_heads, head_dim];  HND: [pages, kv_heads, page_size, head_dim]; any strides
    """

    k: NDArray
    v: NDArray
    layout: Literal["NHD", "HND"] = "NHD"

    def pools(self) -> tuple[NDArray, NDArray]:
        """K and V as [page, token, head, channel] views."""
        if self.layout == "NHD":
            return self.k, self.v
        return self.k.swapaxes(1, 2), self.v.swapaxes(1, 2)

    @property
    def num_pages(self) -> int:
        return self.k.shape[0]

    @property
    def page_size(self) -> int:
        return self.pools()[0].shape[1]


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

    def read(self, cache: Cache, sequence: int) -> tuple[NDArray, NDArray]:
        """k and v [length, kv_heads, head_dim] of a sequence; NaN for tokens that have no place."""
        page, row = self.places(cache, sequence)
        found = page >= 0
        k, v = (np.full((len(page), *pool.shape[2:]), np.nan, pool.dtype) for pool in cache.pools())
        for rows, pool in zip((k, v), cache.pools(), strict=True):
            rows[found] = pool[page[found], row[found]]
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


def append(cache: Cache, table: Table, k: ArrayLike, v: ArrayLike, counts: Sequence[int] | None = None) -> None:
    """Write new tokens, the last `counts[sequence]` ones of each sequence, to their places. Lengths are those after the
    call.

    k, v    [sum(counts), kv_heads, head_dim], sequence after sequence, in the cache's dtype

    A token without a place is not written.
    """
    counts = [1] * len(table.lengths) if counts is None else counts
    for sequence, tokens in enumerate(token_ranges(counts)):
        page, row = table.places(cache, sequence)
        num_written = min(
            counts[sequence], len(page)
        )  # of more new tokens than the sequence is long, only the last ones
        page, row = page[len(page) - num_written :], row[len(row) - num_written :]
        for pool, new in zip(cache.pools(), (k, v), strict=True):
            pool[page[page >= 0], row[page >= 0]] = np.asarray(new)[tokens.stop - num_written : tokens.stop][page >= 0]


def gather(cache: Cache, table: Table) -> tuple[NDArray, NDArray, NDArray[np.int32]]:
    """Every sequence's tokens, laid end to end: k and v [tokens, kv_heads, head_dim], and indptr [sequences + 1].

    A token without a place gives NaN.
    """
    rows = [table.read(cache, sequence) for sequence in range(len(table.lengths))]
    nothing = tuple(
        pool[:0, 0] for pool in cache.pools()
    )  # where there are no sequences, the shape still says heads and dtype
    k, v = (np.concatenate(parts) for parts in zip(nothing, *rows, strict=True))
    return k, v, np.cumsum([0, *map(len, (k for k, _ in rows))], dtype=np.int32)


def copy_pages(cache: Cache, source: ArrayLike, target: ArrayLike) -> None:
    """Copy whole pages, K and V. No page is both a source and a target, or twice a target."""
    for pool in cache.pools():
        pool[np.asarray(target, np.intp)] = pool[np.asarray(source, np.intp)]
