# Page tables of a cache's calls on its device, of which calls send only what differs.
from collections.abc import Callable
from typing import Any

from kvit._native.growth import Growth
from kvit._native.page_lists import PageLists, PooledSequence
from kvit._native.stream import Stream
from kvit._native.tensor import Tensor

class SentTable:
    """A page table on a device, for sequences whose pages and lengths change from call to call."""

    table: Any
    all_rows: Tensor
    rows: Tensor | None
    num_sequences: int

class SentTables:
    """The page tables of a cache's calls, the last ones used."""

    kept: list[SentTable]
    def __init__(self, make_table: Callable[..., Any], most: int = 8) -> None: ...
    def take(
        self,
        pool: PageLists,
        sequences: tuple[PooledSequence, ...],
        growth: Growth | None,
        new_tokens: list[int] | int,
        stream: Stream,
        capacity: int = 0,
    ) -> SentTable: ...
    def refill(
        self,
        table: SentTable,
        pool: PageLists,
        sequences: tuple[PooledSequence, ...],
        growth: Growth | None,
        new_tokens: list[int] | int,
    ) -> bool: ...
    def give(self, table: SentTable) -> None: ...
