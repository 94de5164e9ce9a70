"""One sequence's tokens in a PagedCache."""

from __future__ import annotations

from typing import Any, Protocol

from kvit._native.page_lists import PageLists, PooledSequence


class TakesTokens(Protocol):
    """What a sequence asks of its PagedCache."""

    @property
    def pool(self) -> PageLists:
        """Where the sequence is kept."""

    def append(self, seqs: Any, k: Any, v: Any, *, stream: Any = None) -> None:
        """Add tokens to the end of sequences."""

    def shift(self, seqs: Any, drop: Any, *, keep: Any = 0, rotate: bool = True, stream: Any = None) -> None:
        """Drop tokens behind the first ones of sequences."""


class Sequence(PooledSequence):
    """A growing list of tokens in the pages of one cache. Made by PagedCache.sequence() and by fork().

    Its pages go back to the cache by free(), or when nothing refers to it any more. len(sequence) is its number of
    tokens, in every layer of the cache.
    """

    __slots__ = ("_cache",)

    _cache: TakesTokens

    def __new__(cls, *_: Any, **__: Any) -> Sequence:
        """Refuse: it would be in no cache."""
        raise TypeError(f"{cls.__name__}() makes no sequence; cache.sequence() does, and sequence.fork() another")

    @classmethod
    def outside(cls, cache: TakesTokens) -> Sequence:
        """A sequence that is not in the cache's pool yet: the pool puts it there in one step.

        Until then it is as good as freed, and if it goes before, nothing is left of it.
        """
        found = PooledSequence.__new__(cls)
        found._cache = cache
        return found

    @property
    def cache(self) -> Any:  # a PagedCache, which stands above this module
        """The PagedCache that holds the tokens; it lives as long as the sequence."""
        return self._cache

    def append(self, k: Any, v: Any = None, *, stream: Any = None) -> None:
        """Add the tokens k, v [tokens, kv_heads, head_dim]: PagedCache.append of this sequence alone."""
        self._cache.append([self], k, v, stream=stream)

    def fork(self) -> Sequence:
        """A second sequence of the same tokens in the same pages: nothing is copied, and no page taken, until one
        grows.

        Then a last page that is only part full is copied for the one that grows first (copy-on-write). Raises
        SequenceFreed.
        """
        twin = Sequence.outside(self._cache)
        self.share_with(twin)
        return twin

    def shift(self, drop: int, *, keep: int = 0, rotate: bool = True, stream: Any = None) -> None:
        """Drop `drop` tokens behind the first `keep`; those behind them turn to their new places: PagedCache.shift of
        this sequence alone.
        """
        self._cache.shift([self], drop, keep=keep, rotate=rotate, stream=stream)
