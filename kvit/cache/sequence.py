"""One sequence's tokens in a PagedCache: a handle on what the cache's pool keeps of it."""

from __future__ import annotations

from typing import Any, Protocol

from kvit.cache.page_pool import PagePool


class TakesTokens(Protocol):
    """What a sequence asks of its PagedCache."""

    @property
    def pool(self) -> PagePool:
        """Where the sequence is kept."""

    def append(self, seqs: Any, k: Any, v: Any, *, stream: Any = None) -> None:
        """Add tokens to the end of sequences."""


class Sequence:
    """A growing list of tokens in the pages of one cache. Made by PagedCache.sequence() and by fork().

    Its pages go back to the cache by free(), or when nothing refers to it any more. len(sequence) is its number of
    tokens.

    cache   PagedCache that holds the tokens; it lives as long as the sequence
    number  of the sequence in the cache's pool
    """

    __slots__ = ("__weakref__", "cache", "number")

    cache: Any  # PagedCache, which stands above this module
    number: int

    def __init__(self, cache: TakesTokens, number: int):
        self.cache, self.number = cache, number

    @property
    def pages(self) -> tuple[int, ...]:
        """Ids of the pages that hold the tokens, in order. Raises SequenceFreed."""
        pages: tuple[int, ...] = self.cache.pool.pages_of(self.number)[0]
        return pages

    @property
    def is_freed(self) -> bool:
        """Whether its pages went back to the cache."""
        found: bool = self.cache.pool.is_freed(self.number)
        return found

    def __len__(self) -> int:
        return 0 if self.is_freed else self.cache.pool.pages_of(self.number)[1]

    def append(self, k: Any, v: Any, *, stream: Any = None) -> None:
        """Add the tokens k, v [tokens, kv_heads, head_dim]: PagedCache.append of this sequence alone."""
        self.cache.append([self], k, v, stream=stream)

    def fork(self) -> Sequence:
        """A second sequence of the same tokens in the same pages: nothing is copied, and no page taken, until one
        grows.

        Then a last page that is only part full is copied for the one that grows first (copy-on-write). Raises
        SequenceFreed.
        """
        return Sequence(self.cache, self.cache.pool.fork(self.number))

    def truncate(self, length: int) -> None:
        """Keep the first `length` tokens and give back the pages that hold none of them.

        Raises ShapeError (length negative, or more than there are), SequenceFreed.
        """
        self.cache.pool.truncate(self.number, length)

    def free(self) -> None:
        """Give all pages back. Any use after this raises SequenceFreed; freeing again does nothing."""
        self.cache.pool.free(self.number)

    def __del__(self) -> None:
        self.free()

    def __repr__(self) -> str:
        return "<Sequence freed>" if self.is_freed else f"<Sequence of {len(self)} tokens in {len(self.pages)} pages>"
