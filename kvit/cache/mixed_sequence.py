"""One sequence's tokens in a MixedCache: the first and the newest ones in 16 bits, those between in codes."""

from __future__ import annotations

from typing import Any, NamedTuple, NoReturn

from kvit import _checks
from kvit.cache.sequence import Sequence
from kvit.errors import ShapeError, refuse_copy


class Ageing(NamedTuple):
    """Tokens on their way from 16 bits to codes: how many, and how many there were in each before."""

    count: int
    exact: int
    coded: int


class Cut(NamedTuple):
    """How many tokens a truncation leaves in 16 bits, and in codes."""

    exact: int
    coded: int


class MixedSequence(_checks.Made):
    """A growing list of tokens of one MixedCache. Made by MixedCache.sequence() and by fork().

        token    0 ..          sinks ..           len(coded) + sinks ..
                 exact         coded              exact
                 16 bits       codes              16 bits, the newest

    len(sequence) is its number of tokens. Its pages go back by free(), or when nothing refers to it any more.
    """

    def __init__(self, cache: Any, exact: Sequence, coded: Sequence):
        self._cache = cache  # a MixedCache, which stands above this module
        self._exact, self._coded = exact, coded
        self._change: Ageing | Cut | None = None  # that both are to have, and one may have already

    @property
    def cache(self) -> Any:
        """The MixedCache that holds the tokens."""
        return self._cache

    @property
    def exact(self) -> Sequence:
        """Its tokens in 16 bits, the first ones and the newest ones: a sequence of cache.exact, for reading."""
        self.settle()
        return self._exact

    @property
    def coded(self) -> Sequence:
        """Its tokens in codes: a sequence of cache.coded, for reading."""
        self.settle()
        return self._coded

    def __len__(self) -> int:
        self.settle()
        return len(self._exact) + len(self._coded)

    def append(self, k: Any, v: Any, *, stream: Any = None) -> None:
        """Add the tokens k, v [tokens, kv_heads, head_dim]: MixedCache.append of this sequence alone."""
        self._cache.append([self], k, v, stream=stream)

    def fork(self) -> MixedSequence:
        """A second sequence of the same tokens in the same pages, as Sequence.fork. Raises SequenceFreed."""
        self.settle()
        return MixedSequence(self._cache, self._exact.fork(), self._coded.fork())

    def truncate(self, length: int) -> None:
        """Keep the first `length` tokens; what stays in codes stays so. Raises ShapeError, SequenceFreed."""
        total = len(self)
        length = _checks.whole("length", length)
        if not 0 <= length <= total:
            raise ShapeError(f"cannot truncate a sequence of {total} tokens to {length}; give 0 to {total}")
        first = min(self._cache.sinks, len(self._exact))
        newest = max(0, length - first - len(self._coded))  # that stay, of those behind the codes
        self._change = Cut(min(length, first) + newest, max(0, min(length - first, len(self._coded))))
        self.settle()

    def free(self) -> None:
        """Give all pages back. Any use after this raises SequenceFreed; freeing again does nothing."""
        self._exact.free()
        self._coded.free()

    @property
    def is_freed(self) -> bool:
        """Whether its pages went back."""
        return self._exact.is_freed

    def begin_ageing(self, count: int) -> None:
        """Say that so many tokens behind the sinks are about to be in codes, and then in 16 bits no more."""
        self._change = Ageing(count, len(self._exact), len(self._coded))

    def settle(self, stream: Any = None) -> None:
        """Let both kinds have a change that one of them has: an exception may have interrupted it in between.

        Tokens that are codes already leave those in 16 bits; a truncation that has begun is ended.
        """
        change = self._change
        if isinstance(change, Cut):
            self._exact.truncate(change.exact)
            self._coded.truncate(change.coded)
        elif change is not None and len(self._coded) > change.coded and len(self._exact) == change.exact:
            self._exact.shift(change.count, keep=self._cache.sinks, rotate=False, stream=stream)
        self._change = None

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        refuse_copy(self, "its pages are counted; sequence.fork() makes another of the same tokens")

    @_checks.words_of_made
    def __repr__(self) -> str:
        return f"MixedSequence({len(self._exact)} tokens in 16 bits, {len(self._coded)} in codes)"
