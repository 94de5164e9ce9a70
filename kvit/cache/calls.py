"""The sequences of one call on a PagedCache: which they are, how many of its tokens each has, and a table of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate, chain
from typing import Any

from kvit import _checks
from kvit._native.stream import Stream
from kvit.cache.storage import upload
from kvit.errors import ShapeError
from kvit.layouts.views import PageTable


def members(seqs: Iterable[Any]) -> tuple[Any, ...]:
    """The sequences of a call, whose order the caller's code may make up as it goes. Raises TypeError."""
    if type(seqs) is list or type(seqs) is tuple:
        return tuple(seqs)
    return tuple(_checks.listed("seqs", seqs, "a list of sequences from cache.sequence()"))


def counts_of(name: str, tokens: int, num_sequences: int, new_tokens: Iterable[int] | None) -> list[int] | int:
    """How many of the tokens belong to each sequence, or to every one. Raises ShapeError unless they add up."""
    if new_tokens is None:
        each, rest = divmod(tokens, max(1, num_sequences))
        if rest or (tokens and not num_sequences):
            raise ShapeError(
                f"{name} has {tokens} tokens for {num_sequences} sequences; give new_tokens, the number of tokens of "
                "each sequence, if they differ"
            )
        return each
    given = _checks.listed("new_tokens", new_tokens, "a number for each sequence")
    counts = [_checks.whole(f"new_tokens[{i}]", count) for i, count in enumerate(given)]
    if len(counts) != num_sequences or min(counts, default=0) < 0 or sum(counts) != tokens:
        raise ShapeError(
            f"new_tokens are {counts}; they must be one number of tokens for each of the {num_sequences} sequences, "
            f"and add up to the {tokens} tokens of {name}"
        )
    return counts


def new_tokens_of(given: Iterable[int] | int, num_sequences: int) -> list[int] | int:
    """New tokens of each sequence, or one number for all of them. Raises ShapeError."""
    if not hasattr(given, "__iter__") or getattr(given, "ndim", 1) == 0:
        each = _checks.whole("new_tokens", given)
        if not 0 <= each <= _checks.MOST:
            raise ShapeError(f"new_tokens is {each}; give 0 or more, and no more than kernels can count")
        return each
    counts = [_checks.whole(f"new_tokens[{i}]", count) for i, count in enumerate(given)]
    if len(counts) != num_sequences or not 0 <= min(counts, default=0) <= max(counts, default=0) <= _checks.MOST:
        raise ShapeError(
            f"new_tokens are {counts}; they must be one number of tokens for each of the {num_sequences} sequences"
        )
    return counts


def total_of(counts: list[int] | int, num_sequences: int) -> int:
    """Tokens of all sequences."""
    return counts * num_sequences if isinstance(counts, int) else sum(counts)


def table_of(of_each: Iterable[tuple[Sequence[int], int]], layers: int, stream: Stream) -> PageTable:
    """The page table of sequences, in memory of its own.

    of_each  pages of each, in all layers, layer after layer; and its tokens
    layers   every sequence is in the table once for each, with its pages there: first all of the first layer
    """
    of_each = list(of_each)
    rows = [
        pages[layer * len(pages) // layers : (layer + 1) * len(pages) // layers]
        for layer in range(layers)
        for pages, _ in of_each
    ]
    starts = [0, *accumulate(map(len, rows))]
    lengths = [length for _, length in of_each] * layers
    packed = upload([*chain.from_iterable(rows), *starts, *lengths], stream)
    first = starts[-1]
    return PageTable(
        indices=packed[:first],
        indptr=packed[first : first + len(starts)],
        lengths=packed[first + len(starts) : first + len(starts) + len(lengths)],
    )
