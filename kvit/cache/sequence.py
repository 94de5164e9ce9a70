"""One sequence's tokens in a PagedCache: a handle on what the cache's pool keeps of it."""

from __future__ import annotations

from typing import Any, NoReturn, Protocol

from kvit.cache.page_pool import PagePool
from kvit.errors import refuse_copy


class TakesTokens(Protocol):
    """What a sequence asks of its PagedCache."""

    @property
    def pool(self) -> PagePool:
        """Where the sequence is kept."""

    def append(self, seqs: Any, k: Any, v: Any, *, stream: Any = None) -> None:
        """Add tokens to the end of sequences."""

    def shift(self, seqs: Any, drop: Any, *, keep: Any = 0, rotate: bool = True, stream: Any = None) -> None:
        """Drop tokens behind the first ones of sequences."""


class Sequence:
    """A growing list of tokens in the pages of one cache. Made by PagedCache.sequence() and by fork().

    Its pages go back to the cache by free(), or when nothing refers to it any more. len(sequence) is its number of
    tokens.
    """

    __slots__ = ("__weakref__", "_cache", "_number")

    _cache: TakesTokens
    _number: int

    def __new__(cls, *_: Any, **__: Any) -> Sequence:
        """Refuse: two of one number would free its pages twice."""
        raise TypeError(f"{cls.__name__}() makes no sequence; cache.sequence() does, and sequence.fork() another")

    @classmethod
    def outside(cls, cache: TakesTokens) -> Sequence:
        """A sequence that is not in the cache's pool yet: the pool puts it there, under its number, in one step.

        Until then it is as good as freed, and if it goes before, nothing is left of it.
        """
        found = object.__new__(cls)
        found._cache = cache
        found._number = cache.pool.new_number(found)
        return found

    @property
    def cache(self) -> Any:  # a PagedCache, which stands above this module
        """The PagedCache that holds the tokens; it lives as long as the sequence."""
        return self._cache

    @property
    def number(self) -> int:
        """Of the sequence in the cache's pool."""
        return self._number

    @property
    def pages(self) -> tuple[int, ...]:
        """Ids of the pages that hold the tokens, in order. Raises SequenceFreed."""
        return self._cache.pool.pages_of(self._number)[0]

    @property
    def is_freed(self) -> bool:
        """Whether its pages went back to the cache."""
        return self._cache.pool.is_freed(self._number)

    def __len__(self) -> int:
        return 0 if self.is_freed else self._cache.pool.pages_of(self._number)[1]

    def append(self, k: Any, v: Any, *, stream: Any = None) -> None:
        """Add the tokens k, v [tokens, kv_heads, head_dim]: PagedCache.append of this sequence alone."""
        self._cache.append([self], k, v, stream=stream)

    def fork(self) -> Sequence:
        """A second sequence of the same tokens in the same pages: nothing is copied, and no page taken, until one
        grows.

        Then a last page that is only part full is copied for the one that grows first (copy-on-write). Raises
        SequenceFreed.
        """
        fork = Sequence.outside(self._cache)
        self._cache.pool.fork(self._number, fork.number)
        return fork

    def truncate(self, length: int) -> None:
        """Keep the first `length` tokens and give back the pages that hold none of them.

        Raises ShapeError (length negative, or more than there are), SequenceFreed.
        """
        self._cache.pool.truncate(self._number, length)

    def shift(self, drop: int, *, keep: int = 0, rotate: bool = True, stream: Any = None) -> None:
        """Drop `drop` tokens behind the first `keep`; those behind them turn to their new places: PagedCache.shift of
        this sequence alone.
        """
        self._cache.shift([self], drop, keep=keep, rotate=rotate, stream=stream)

    def free(self) -> None:
        """Give all pages back. Any use after this raises SequenceFreed; freeing again does nothing."""
        self._cache.pool.free(self._number)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        refuse_copy(self, "its pages are counted; sequence.fork() gives a second one of the same tokens")

    def __repr__(self) -> str:
        return "<Sequence freed>" if self.is_freed else f"<Sequence of {len(self)} tokens in {len(self.pages)} pages>"
