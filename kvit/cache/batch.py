"""The sequences of one call on a PagedCache: which they are, how many of its tokens each has, and their page table."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate, chain

from kvit import _checks
from kvit._native.stream import Stream
from kvit._native.tensor import Tensor
from kvit.cache.page_pool import PagePool, SequencePages
from kvit.cache.sequence import Sequence
from kvit.cache.storage import upload
from kvit.errors import ShapeError
from kvit.layouts.views import PageTable


def listed(seqs: Iterable[Sequence]) -> list[Sequence]:
    """The sequences of a call, whose order the caller's code may make up as it goes. Raises TypeError."""
    return _checks.listed("seqs", seqs, "a list of sequences from cache.sequence()")


def numbers_of(pool: PagePool, seqs: Iterable[Sequence], distinct: bool = False) -> list[int]:
    """The numbers of the sequences in the pool, after a check that they are live, of this pool, and different if they
    must be.

    Raises ShapeError, SequenceFreed.
    """
    numbers = []
    first: dict[int, int] = {}
    for i, seq in enumerate(seqs):
        if not isinstance(seq, Sequence):
            raise ShapeError(f"seqs[{i}] is a {type(seq).__name__}; give sequences from cache.sequence()")
        if seq.cache.pool is not pool:
            raise ShapeError(f"seqs[{i}] belongs to another cache; append, gather and attend each in its own")
        number = seq.number
        pool.pages_of(number)  # raises SequenceFreed
        if distinct and first.setdefault(number, i) != i:
            raise ShapeError(
                f"seqs[{i}] is seqs[{first[number]}] again; give each sequence once, with all its new tokens"
            )
        numbers.append(number)
    return numbers


def counts_of(name: str, tokens: int, num_sequences: int, new_tokens: Iterable[int] | None) -> list[int]:
    """How many of the tokens belong to each sequence. Raises ShapeError unless they add up."""
    if new_tokens is None:
        each, rest = divmod(tokens, max(1, num_sequences))
        if rest or (tokens and not num_sequences):
            raise ShapeError(
                f"{name} has {tokens} tokens for {num_sequences} sequences; give new_tokens, the number of tokens of "
                "each sequence, if they differ"
            )
        return [each] * num_sequences
    given = _checks.listed("new_tokens", new_tokens, "a number for each sequence")
    counts = [_checks.whole(f"new_tokens[{i}]", count) for i, count in enumerate(given)]
    if len(counts) != num_sequences or min(counts, default=0) < 0 or sum(counts) != tokens:
        raise ShapeError(
            f"new_tokens are {counts}; they must be one number of tokens for each of the {num_sequences} sequences, "
            f"and add up to the {tokens} tokens of {name}"
        )
    return counts


class SentTables:
    """Page tables of calls, sent to the device. Keeps the last one, which the next call may want again.

    Tables from here are for the cache's own calls alone: whoever gets one might write in it.
    """

    def __init__(self) -> None:
        self._last: tuple[tuple, tuple[PageTable, Tensor | None]] | None = None

    def send(self, of_each: list[SequencePages], counts: list[int], stream: Stream) -> tuple[PageTable, Tensor | None]:
        """What new_table says, or the last one where it would be the same."""
        # An attention call follows the append of the same tokens: the same table, unless something changed in between.
        key = (of_each, counts, stream.handle)
        if self._last is None or self._last[0] != key:
            self._last = key, new_table(of_each, counts, stream)
        return self._last[1]


def new_table(of_each: list[SequencePages], counts: list[int], stream: Stream) -> tuple[PageTable, Tensor | None]:
    """The page table, and where each sequence's rows begin if they have different numbers of them; in one copy.

    of_each  pages and tokens of each sequence
    counts   rows of each sequence
    """
    starts = [0, *accumulate(len(pages) for pages, _ in of_each)]
    rows = [0, *accumulate(counts)] if len(set(counts)) > 1 else []
    lengths = [length for _, length in of_each]
    packed = upload([*chain.from_iterable(pages for pages, _ in of_each), *starts, *lengths, *rows], stream)
    ends = list(accumulate(map(len, (starts, lengths, rows)), initial=starts[-1]))
    indptr, length, row = (packed[start:end] for start, end in zip(ends, ends[1:], strict=False))
    return PageTable(indptr=indptr, indices=packed[: starts[-1]], lengths=length), row if rows else None
