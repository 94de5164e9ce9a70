"""The pages of a cache and the sequences in them: plain bookkeeping on the host, no device memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from kvit.cache.page_owners import PageOwners, grow, num_pages
from kvit.errors import SequenceFreed, ShapeError

SequencePages: TypeAlias = tuple[tuple[int, ...], int]
"""The pages of a sequence, in the order of its tokens, and how many tokens are in them."""


class PoolGrowth(NamedTuple):
    """New tokens of sequences, whose pages are taken: PagePool.keep makes it so, PagePool.undo gives them back."""

    sequences: list[int]
    after: list[SequencePages]  # what each sequence has then
    copies: list[tuple[int, int]]  # (a part full page that others have too, the private page that takes its place)
    taken: list[int]  # every page that was free before


class PagePool:
    """Which sequence has which pages, each known by its number. Several may have the same page.

    num_pages  in the pool
    page_size  tokens of a page
    """

    def __init__(self, num_pages: int, page_size: int):
        self.num_pages = num_pages
        self.page_size = page_size
        self._owners = PageOwners(num_pages)
        self._sequences: dict[int, SequencePages] = {}  # in the order in which they were made
        self._num_made = 0

    @property
    def num_free(self) -> int:
        """Pages that no sequence has."""
        return self._owners.num_free

    def owners(self, page: int) -> int:
        """How many sequences have a page."""
        return self._owners.owners(page)

    def used(self) -> list[int]:
        """Pages that a sequence has, in ascending order."""
        return self._owners.used()

    def new_sequence(self) -> int:
        """The number of a new sequence without tokens."""
        return self._add(((), 0))

    def fork(self, sequence: int) -> int:
        """The number of a new sequence of the same tokens in the same pages. Raises SequenceFreed."""
        same = self.pages_of(sequence)
        self._owners.share(same[0])
        return self._add(same)

    def is_freed(self, sequence: int) -> bool:
        """Whether the sequence is no longer in the pool."""
        return sequence not in self._sequences

    def pages_of(self, sequence: int) -> SequencePages:
        """What a sequence has. Raises SequenceFreed."""
        found = self._sequences.get(sequence)
        if found is None:
            raise SequenceFreed("this sequence was freed; take a new one from cache.sequence()")
        return found

    def pages_of_all(self, sequences: Sequence[int]) -> list[SequencePages]:
        """What each of several sequences has. Raises SequenceFreed."""
        return [self.pages_of(sequence) for sequence in sequences]

    def truncate(self, sequence: int, length: int) -> None:
        """Keep the first `length` tokens, and the pages that hold them. Raises ShapeError, SequenceFreed."""
        pages, tokens = self.pages_of(sequence)
        if not 0 <= length <= tokens:
            raise ShapeError(f"cannot truncate a sequence of {tokens} tokens to {length}; give 0 to {tokens}")
        kept = num_pages(length, self.page_size)
        self._sequences[sequence] = pages[:kept], length
        self._owners.release(pages[kept:])

    def free(self, sequence: int) -> None:
        """Give all pages of a sequence back; one that was freed before has none."""
        pages, _ = self._sequences.pop(sequence, ((), 0))
        self._owners.release(pages)

    def grow(self, sequences: Sequence[int], counts: Sequence[int]) -> PoolGrowth:
        """Take the pages for `counts` new tokens of each sequence, all different, or raise and change nothing.

        Sequences stay as they are until `keep`. Raises CacheFull, SequenceFreed.
        """
        before = self.pages_of_all(sequences)
        grown = grow(self._owners, [pages for pages, _ in before], [n for _, n in before], counts, self.page_size)
        after = list(zip(grown.pages, grown.lengths, strict=True))
        return PoolGrowth(list(sequences), after, grown.copies, grown.taken)

    def keep(self, growth: PoolGrowth) -> None:
        """Let the sequences have their new tokens. The copies are under way: the pages that they replace may go."""
        self._sequences.update(zip(growth.sequences, growth.after, strict=True))
        self._owners.release(source for source, _ in growth.copies)

    def undo(self, growth: PoolGrowth) -> None:
        """Give back the pages that were taken for new tokens."""
        self._owners.release(growth.taken)

    def moves_to_front(self, by_sequence: bool) -> dict[int, int]:
        """Where pages must move (old id -> new id) so that the used ones come first.

        by_sequence  the pages of each sequence one after another, sequences in the order in which they were made; else
                     as few moves as possible
        """
        return self._owners.moves_to_front((pages for pages, _ in self._sequences.values()) if by_sequence else None)

    def rename(self, moves: dict[int, int]) -> None:
        """Give pages the ids that they have moved to (old id -> new id), in every sequence that has them."""
        self._owners.move(moves)
        for sequence, (pages, length) in self._sequences.items():
            self._sequences[sequence] = tuple(moves.get(page, page) for page in pages), length

    def _add(self, pages: SequencePages) -> int:
        self._num_made += 1
        self._sequences[self._num_made] = pages
        return self._num_made
