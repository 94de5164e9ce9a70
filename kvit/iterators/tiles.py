"""The model of kernels/cache/: which bytes the tokens of a tile are, and what is wrong with a page table."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from kvit.errors import ShapeError


class FaultKind(IntEnum):
    """What a Fault says: enum KvitFaultKind of kernels/abi/params.h."""

    NONE = 0
    PAGE = 1  # value is no page; slot is its place in the sequence's row
    LENGTH = 2  # value is negative, or more than the table's pages hold
    INDPTR = 3  # value, entry `slot` of indptr, lies outside the table or below its predecessor


class Fault(NamedTuple):
    """The first thing that a kernel found wrong."""

    kind: FaultKind
    sequence: int
    slot: int
    value: int


NO_FAULT = Fault(FaultKind.NONE, 0, 0, 0)


@dataclass(frozen=True)
class Table:
    """Which pages hold which sequence: the arrays of a KvitPageTable.

    pages    int32, dense [sequences, slots], or ragged [entries] with indptr. A linear source has no page ids and takes
             from the shape alone how many tokens there are: dense [sequences, tokens], ragged [tokens].
    lengths  int32 [sequences], tokens
    indptr   int32 [sequences + 1], where each sequence begins in ragged pages

    Raises ShapeError for arrays that do not fit each other.
    """

    pages: np.ndarray
    lengths: np.ndarray
    indptr: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.indptr is None and (self.pages.ndim != 2 or len(self.pages) != len(self.lengths)):
            raise ShapeError(
                f"pages have shape {self.pages.shape} for {len(self.lengths)} lengths; a dense table is "
                "[sequences, slots], a ragged one comes with indptr"
            )
        if self.indptr is not None and (self.pages.ndim != 1 or len(self.indptr) != len(self.lengths) + 1):
            raise ShapeError(
                f"pages have shape {self.pages.shape}, indptr has {len(self.indptr)} entries for "
                f"{len(self.lengths)} lengths; a ragged table is [entries] with one more indptr than lengths"
            )

    @property
    def row_stride(self) -> int:
        """Entries from one sequence to the next in a dense table."""
        return self.pages.strides[0] // self.pages.itemsize if self.indptr is None else 0

    @property
    def max_pages(self) -> int:
        return self.pages.shape[-1]

    def view(self, sequence: int, page_size: int) -> tuple[int, int, int, Fault]:
        """(first entry counted from sequence * row_stride, slots, length, fault), as ViewSequence checks them."""
        begin, slots = 0, self.max_pages
        if self.indptr is not None:
            begin, end = (int(entry) for entry in self.indptr[sequence : sequence + 2])
            if not 0 <= begin <= self.max_pages:
                return 0, 0, 0, Fault(FaultKind.INDPTR, sequence, sequence, begin)
            if not begin <= end <= self.max_pages:
                return 0, 0, 0, Fault(FaultKind.INDPTR, sequence, sequence + 1, end)
            slots = end - begin
        length = int(self.lengths[sequence])
        clamped = min(max(length, 0), slots * page_size)
        fault = NO_FAULT if clamped == length else Fault(FaultKind.LENGTH, sequence, 0, length)
        return begin, slots, clamped, fault


def paged_rows(
    pool: np.ndarray, table: Table, sequence: int, head: int, tile: int, tokens: int, max_s: int | None = None
) -> tuple[np.ndarray, set[Fault]]:
    """The rows of one tile of a paged cache, and everything wrong that a kernel may report.

    pool    uint8 [pages, page_size, heads, row_bytes]
    tokens  of a tile
    max_s   rows from here on are zeros; all are wanted if absent

    Returns (uint8 [tokens, row_bytes], faults). Rows past the sequence or on a page that does not exist are zeros.
    """
    num_pages, page_size, _, row_bytes = pool.shape
    begin, _slots, length, fault = table.view(sequence, page_size)
    row = table.pages[begin:] if table.indptr is not None else table.pages[sequence]
    faults = {fault} - {NO_FAULT}
    rows = np.zeros((tokens, row_bytes), np.uint8)
    for s in range(tokens):
        token = tile * tokens + s
        if token >= length:
            break
        page = int(row[token // page_size])
        if not 0 <= page < num_pages:
            faults.add(Fault(FaultKind.PAGE, sequence, token // page_size, page))
        elif max_s is None or s < max_s:
            rows[s] = pool[page, token % page_size, head]
    return rows, faults


def boxed_rows(
    pool: np.ndarray, table: Table, sequence: int, head: int, tile: int, tokens: int, box_tokens: int
) -> tuple[np.ndarray, set[Fault]]:
    """The same as tensor copies bring it, in boxes of `box_tokens` that divide page and tile.

    A box comes whole if the sequence has its first token: behind the sequence's end stands what the page holds there.
    The other boxes, and those of a page that does not exist, are zeros.
    """
    num_pages, page_size, _, row_bytes = pool.shape
    begin, _slots, length, fault = table.view(sequence, page_size)
    row = table.pages[begin:] if table.indptr is not None else table.pages[sequence]
    faults = {fault} - {NO_FAULT}
    rows = np.zeros((tokens, row_bytes), np.uint8)
    for s in range(0, tokens, box_tokens):
        token = tile * tokens + s
        if token >= length:
            break
        page, first = int(row[token // page_size]), token % page_size
        if 0 <= page < num_pages:
            rows[s : s + box_tokens] = pool[page, first : first + box_tokens, head]
        else:
            faults.add(Fault(FaultKind.PAGE, sequence, token // page_size, page))
    return rows, faults


def linear_rows(
    pool: np.ndarray, table: Table, sequence: int, head: int, tile: int, tokens: int, max_s: int | None = None
) -> tuple[np.ndarray, set[Fault]]:
    """paged_rows for contiguous tokens.

    pool  uint8 [1, tokens of all sequences, heads, row_bytes]
    """
    begin, _slots, length, fault = table.view(sequence, 1)
    begin += sequence * table.row_stride
    rows = np.zeros((tokens, pool.shape[-1]), np.uint8)
    count = min(tokens if max_s is None else max(max_s, 0), tokens, length - tile * tokens)
    if count > 0:
        first = begin + tile * tokens
        rows[:count] = pool[0, first : first + count, head]
    return rows, {fault} - {NO_FAULT}
