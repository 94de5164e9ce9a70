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
        """K and V as [page, token, head, channel] views: token t of a sequence is row t % page_size of its page t // page_size."""
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

    def fault(self, cache: Cache, sequence: int, at_least: int = 0) -> Fault | None:
        """What keeps a sequence of `at_least` tokens from being used, or None."""
        pages, length = np.asarray(self.pages[sequence]), int(self.lengths[sequence])
        if not at_least <= length <= len(pages) * cache.page_size:
            return Fault("length", sequence, 0, length)
        for slot, page in enumerate(pages[: -(-length // cache.page_size)]):
            if not 0 <= page < cache.num_pages:
                return Fault("page", sequence, slot, int(page))
        return None

    def places(self, cache: Cache, sequence: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """(page, row in the page) of every token of a sequence, in order."""
        slot, row = np.divmod(np.arange(self.lengths[sequence]), cache.page_size)
        return np.asarray(self.pages[sequence], dtype=np.intp)[slot], row


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

    A sequence that the table describes wrongly (Table.fault) gives NaN.
    """
    q = np.asarray(q)
    counts = [1] * len(table.lengths) if counts is None else counts
    out = np.full(q.shape, np.nan)
    lse = np.full(q.shape[:2], np.nan)
    for sequence, tokens in enumerate(token_ranges(counts)):
        if table.fault(cache, sequence) is None:
            k, v = (pool[table.places(cache, sequence)] for pool in cache.pools())
            out[tokens], lse[tokens] = attention(q[tokens], k, v, causal=causal, scale=scale)
    return State(out, lse)


def append(cache: Cache, table: Table, k: ArrayLike, v: ArrayLike, counts: Sequence[int] | None = None) -> None:
    """Write new tokens, the last `counts[sequence]` ones of each sequence, to their places. Lengths are those after the call.

    k, v    [sum(counts), kv_heads, head_dim], sequence after sequence, in the cache's dtype

    Of a sequence that the table describes wrongly, or that is shorter than its new tokens, nothing is written.
    """
    counts = [1] * len(table.lengths) if counts is None else counts
    for sequence, tokens in enumerate(token_ranges(counts)):
        if table.fault(cache, sequence, at_least=counts[sequence]) is None:
            page, row = (place[table.lengths[sequence] - counts[sequence] :] for place in table.places(cache, sequence))
            for pool, new in zip(cache.pools(), (k, v), strict=True):
                pool[page, row] = np.asarray(new)[tokens]


def gather(cache: Cache, table: Table) -> tuple[NDArray, NDArray, NDArray[np.int32]]:
    """Every sequence's tokens, laid end to end: k and v [tokens, kv_heads, head_dim], and indptr [sequences + 1]."""
    places = [table.places(cache, sequence) for sequence in range(len(table.lengths))]
    page, row = (np.concatenate([np.empty(0, np.intp), *parts]) for parts in zip(*places, strict=True)) if places else ([], [])
    k, v = (pool[page, row] for pool in cache.pools())
    return k, v, np.cumsum([0, *table.lengths], dtype=np.int32)


def copy_pages(cache: Cache, source: ArrayLike, target: ArrayLike) -> None:
    """Copy whole pages, K and V. No page is both a source and a target, nor twice a target."""
    for pool in cache.pools():
        pool[np.asarray(target, np.intp)] = pool[np.asarray(source, np.intp)]
