"""Page tables and offsets with wrong numbers in them, and what each row of a call may come out as."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kvit import reference

LARGEST, SMALLEST = 2**31 - 1, -(2**31)
GARBAGE = (LARGEST, SMALLEST, LARGEST - 1, -1, -2, 1 << 16, 1 << 30, -(1 << 30))


@dataclass
class Numbers:
    """What a call is told of its sequences, right or wrong."""

    pages: np.ndarray  # dense [sequences, slots], or ragged [entries]
    indptr: np.ndarray | None  # of ragged pages
    lengths: np.ndarray
    offsets: np.ndarray | None  # of the rows; absent: `each` of every sequence
    total: int  # rows of the call

    @property
    def num_sequences(self) -> int:
        return len(self.lengths)

    def pages_of(self, sequence: int) -> np.ndarray | None:
        """Its part of the table; None where indptr is wrong."""
        if self.indptr is None:
            return self.pages[sequence]
        begin, end = map(int, self.indptr[sequence : sequence + 2])
        return self.pages[begin:end] if 0 <= begin <= end <= len(self.pages) else None

    def rows_of(self, sequence: int) -> tuple[int, int, bool]:
        """(first row, end, whether the offsets are right): of wrong ones, those rows that exist."""
        if self.offsets is None:
            each = self.total // max(1, self.num_sequences)
            return sequence * each, (sequence + 1) * each, True
        begin, end = map(int, self.offsets[sequence : sequence + 2])
        if not 0 <= begin <= self.total:
            return 0, 0, False
        if end < begin:
            return begin, begin, False
        return begin, min(end, self.total), end <= self.total

    def is_right(self, cache: reference.Cache, sequence: int) -> bool:
        """Whether all that is told of a sequence is right. Slots behind its last token do not count."""
        pages = self.pages_of(sequence)
        if pages is None or not self.rows_of(sequence)[2]:
            return False
        table = reference.Table([pages], [int(self.lengths[sequence])])
        return table.fault(cache, 0) is None

    def names(self, sequence: int, slot: int, value: int) -> bool:
        """Whether `value` is told of a sequence: as a page of its slot, its length, or an entry of an offset."""
        pages = self.pages_of(sequence)
        told = {int(self.lengths[sequence])}
        if pages is not None and 0 <= slot < len(pages):
            told.add(int(pages[slot]))
        for offsets in (self.indptr, self.offsets):
            if offsets is not None and 0 <= slot < len(offsets):
                told.add(int(offsets[slot]))
        return value in told


def right_numbers(rng: np.random.Generator, num_pages: int, page_size: int, is_ragged: bool, has_offsets: bool,
                  distinct: bool) -> Numbers:  # fmt: skip
    """A table of up to five sequences in which everything is right.

    distinct  no page belongs to two sequences: for operations that write pages
    """
    sequences = int(rng.integers(1, 6))
    order = rng.permutation(num_pages)
    cuts = np.sort(rng.integers(0, num_pages + 1, sequences - 1))
    lists = [part.astype(np.int32) for part in np.split(order, cuts)]
    if not distinct and rng.integers(4) == 0:
        lists[-1] = lists[0]
    lengths = np.array([rng.integers(0, len(pages) * page_size + 1) for pages in lists], np.int32)
    if rng.integers(3) == 0:  # full to the last slot
        lengths = np.array([len(pages) * page_size for pages in lists], np.int32)
    if is_ragged:
        pages, indptr = np.concatenate(lists), np.cumsum([0, *map(len, lists)]).astype(np.int32)
    else:
        slots = max(map(len, lists)) + int(rng.integers(0, 3))
        pages, indptr = np.full((sequences, max(1, slots)), rng.choice(GARBAGE), np.int32), None
        for row, own in zip(pages, lists, strict=True):
            row[: len(own)] = own
    if has_offsets:
        counts = rng.integers(0, 4, sequences)
        first = int(rng.integers(0, 3)) if rng.integers(3) == 0 else 0
        offsets = (first + np.cumsum([0, *counts])).astype(np.int32)
        total = int(offsets[-1]) + (int(rng.integers(0, 3)) if rng.integers(3) == 0 else 0)
    else:
        offsets, total = None, sequences * int(rng.integers(0, 4))
    return Numbers(pages, indptr, lengths, offsets, total)


def spoil(rng: np.random.Generator, numbers: Numbers, num_pages: int) -> None:
    """Put wrong numbers in up to four places, some of them only just wrong."""
    for _ in range(int(rng.integers(0, 5))):
        parts = [x for x in (numbers.pages, numbers.indptr, numbers.lengths, numbers.offsets) if x is not None]
        part: Any = parts[int(rng.integers(len(parts)))].reshape(-1)
        if not len(part):
            continue
        at = int(rng.integers(len(part)))
        near = int(np.clip(int(part[at]) + int(rng.integers(-3, 4)), SMALLEST, LARGEST))
        part[at] = rng.choice([near, near, num_pages, rng.choice(GARBAGE), rng.integers(SMALLEST, LARGEST)])
