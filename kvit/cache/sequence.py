"""One sequence's tokens in a PagedCache: which pages hold them, and how many they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._pages import num_pages
from .errors import SequenceFreed, ShapeError

if TYPE_CHECKING:
    from .cache import PagedCache


class Sequence:
    """A growing list of tokens in the pages of one cache. Made by PagedCache.sequence() and by fork().

    Its pages go back to the cache by free(), or when nothing refers to it any more. len(sequence) is its number of
    tokens.
    """

    __slots__ = ("__weakref__", "_cache", "_length", "_pages")

    _cache: PagedCache
    _pages: tuple[int, ...] | None  # None once freed
    _length: int

    def __init__(self, cache: PagedCache, pages: tuple[int, ...] = (), length: int = 0):
        self._cache, self._pages, self._length = cache, pages, length
        cache._know(self)

    @property
    def cache(self) -> PagedCache:
        """The cache that holds the tokens."""
        return self._cache

    @property
    def pages(self) -> tuple[int, ...]:
        """Ids of the pages that hold the tokens, in order. Raises SequenceFreed."""
        if self._pages is None:
            raise SequenceFreed("this sequence was freed; take a new one from cache.sequence()")
        return self._pages

    @property
    def is_freed(self) -> bool:
        """Whether its pages went back to the cache."""
        return self._pages is None

    def __len__(self) -> int:
        return self._length

    def append(self, k: Any, v: Any, *, stream: Any = None) -> None:
        """Add the tokens k, v [tokens, kv_heads, head_dim]: PagedCache.append of this sequence alone."""
        self._cache.append([self], k, v, stream=stream)

    def fork(self) -> Sequence:
        """A second sequence of the same tokens that holds the same pages: nothing is copied, and no page taken, until
        one grows.

        Then a last page that is only part full is copied for the one that grows first (copy-on-write). Raises
        SequenceFreed.
        """
        pages = self.pages
        self._cache._pool.share(pages)
        return Sequence(self._cache, pages, self._length)

    def truncate(self, length: int) -> None:
        """Keep the first `length` tokens and give back the pages that hold none of them.

        Raises ShapeError (length negative, or more than there are), SequenceFreed.
        """
        pages = self.pages
        if not 0 <= length <= self._length:
            raise ShapeError(
                f"cannot truncate a sequence of {self._length} tokens to {length}; give 0 to {self._length}"
            )
        kept = num_pages(length, self._cache.page_size)
        self._pages, self._length = pages[:kept], length
        self._cache._pool.release(pages[kept:])

    def free(self) -> None:
        """Give all pages back. Any use after this raises SequenceFreed; freeing again does nothing."""
        pages, self._pages, self._length = self._pages, None, 0
        if pages:
            self._cache._pool.release(pages)

    def __del__(self) -> None:
        self.free()

    def __repr__(self) -> str:
        return (
            "<Sequence freed>" if self.is_freed else f"<Sequence of {self._length} tokens in {len(self.pages)} pages>"
        )
