"""How many sequences own each page of a cache, what growing takes of them, and how pages move to the front."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

from kvit.errors import CacheFull


class PageOwners:
    """Counts the owners of every page. A page with none is free."""

    def __init__(self, num_pages: int):
        self._owners = [0] * num_pages
        # A stack: the lowest page of a fresh pool comes first, then the last one released.
        self._free = list(range(num_pages - 1, -1, -1))

    @classmethod
    def counted(cls, num_pages: int, sequences: Iterable[Iterable[int]]) -> PageOwners:
        """The owners of a pool's pages, from the pages that each sequence has."""
        owners = cls(num_pages)
        for page in chain.from_iterable(sequences):
            owners._owners[page] += 1
        owners._free = [page for page in range(num_pages - 1, -1, -1) if not owners._owners[page]]
        return owners

    @property
    def num_pages(self) -> int:
        return len(self._owners)

    @property
    def num_free(self) -> int:
        return len(self._free)

    def owners(self, page: int) -> int:
        """How many sequences own a page."""
        return self._owners[page]

    def next_free(self, count: int) -> list[int]:
        """The `count` pages that are to be taken next; they stay free. Raises CacheFull."""
        if count > len(self._free):
            raise CacheFull(
                f"the cache needs {count} more pages and has {len(self._free)} free of {len(self._owners)}; "
                "free or truncate sequences, or make a cache of more pages"
            )
        return self._free[: -count - 1 : -1]

    def take(self, pages: Sequence[int]) -> None:
        """Give free pages one owner each."""
        for page in pages:
            self._owners[page] = 1
        if self._free[: -len(pages) - 1 : -1] == pages:
            del self._free[len(self._free) - len(pages) :]
        else:  # pages were released after these were chosen
            self._free = [page for page in self._free if not self._owners[page]]

    def share(self, pages: Iterable[int]) -> None:
        """Add an owner to pages that have one already."""
        for page in pages:
            self._owners[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """Take an owner from each page; one that has none left is free again."""
        for page in pages:
            self._owners[page] -= 1
            if self._owners[page] == 0:
                self._free.append(page)

    def used(self) -> list[int]:
        """Pages that have an owner, in ascending order."""
        return [page for page, owners in enumerate(self._owners) if owners]

    def moves_to_front(self, sequences: Iterable[Iterable[int]] | None = None) -> dict[int, int]:
        """Where pages must move (old id -> new id) so that the used ones come first.

        sequences  pages of each sequence, to lie one after another in this order; absent: as few moves as possible
        """
        used = self.used()
        if sequences is None:
            holes = [page for page in range(len(used)) if not self._owners[page]]
            behind = used[len(used) - len(holes) :]
            return dict(zip(behind, holes, strict=True))
        first = dict.fromkeys(chain(chain.from_iterable(sequences), used))
        return {page: place for place, page in enumerate(first) if page != place}


def chains_of(moves: Mapping[int, int]) -> list[list[tuple[int, int]]]:
    """Moves (old id -> new id, each new one once) as pairs in chains: in a chain, a page is read before it is written.

    A chain begins with a target that no move reads, and goes on with the page that moves to where the last one was.
    What is left then are cycles: the last source is the first target.
    """
    into = {place: page for page, place in moves.items()}
    heads = [place for place in into if place not in moves]
    chains = []
    for place in chain(heads, list(into)):
        pairs = []
        while place in into:
            page = into.pop(place)
            pairs.append((page, place))
            place = page
        if pairs:
            chains.append(pairs)
    return chains


class Growth(NamedTuple):
    """How sequences grow by new tokens: what each has afterwards, and what must be copied first."""

    pages: list[tuple[int, ...]]  # of each sequence
    lengths: list[int]
    copies: list[tuple[int, int]]  # (a part full page that others have too, the private page that takes its place)
    taken: list[int]  # every page that is free until then


def grow(
    page_owners: PageOwners,
    pages: Sequence[Sequence[int]],
    lengths: Sequence[int],
    counts: Sequence[int],
    page_size: int,
) -> Growth:
    """The pages for `counts` new tokens of each sequence, which are still to be taken. Raises CacheFull.

    New tokens go into the last page of a sequence while it has room. If other sequences have that page too it is copied
    first, except by the last that does: of two forks that grow in the same call, one copies and the other keeps the
    original.

    Changes nothing: take `taken`, and release the pages that copies replace, once the copy is under way.
    """
    left = Counter[int]()  # how many sequences of this call have already left a page for a copy of it
    copied: list[int | None] = []
    needed = 0
    for before, length, count in zip(pages, lengths, counts, strict=True):
        last = before[-1] if count and length % page_size else None
        if last is not None and page_owners.owners(last) - left[last] > 1:
            left[last] += 1
            needed += 1
        else:
            last = None
        copied.append(last)
        needed += num_pages(length + count, page_size) - len(before)

    taken = page_owners.next_free(needed)
    unused = iter(taken)
    growth = Growth([], [length + count for length, count in zip(lengths, counts, strict=True)], [], taken)
    for before, length, last in zip(pages, growth.lengths, copied, strict=True):
        after = list(before)
        if last is not None:
            after[-1] = next(unused)
            growth.copies.append((last, after[-1]))
        after += [next(unused) for _ in range(num_pages(length, page_size) - len(after))]
        growth.pages.append(tuple(after))
    return growth


def num_pages(tokens: int, page_size: int) -> int:
    """Pages that hold `tokens` tokens."""
    return -(-tokens // page_size)
