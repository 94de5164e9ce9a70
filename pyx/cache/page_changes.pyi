# Pages that sequences get all at once, once their rows are on the way there.
from collections.abc import Sequence

from kvit._native.page_lists import PageLists, PooledSequence

class PageChange:
    """Other pages of sequences. `change.is_made = True` makes it, which cannot fail and is done once."""

    is_made: bool
    def __init__(
        self,
        pool: PageLists,
        *,
        sequences: tuple[PooledSequence, ...] | None = None,
        after: Sequence[tuple[Sequence[int], int]] | None = None,
        moves: dict[int, int] | None = None,
    ) -> None: ...
