"""The pages of a cache and the sequences in them: plain bookkeeping on the host, no device memory."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

from kvit import _checks
from kvit.cache.page_owners import PageOwners, grow, num_pages
from kvit.cache.page_shift import SequencePages, move_to_front
from kvit.errors import KvitError, SequenceFreed, ShapeError, refuse_copy


class PoolGrowth(NamedTuple):
    """New tokens of sequences, not there yet: PagePool.keep makes it so. Dropped, it leaves nothing."""

    sequences: list[int]
    before: list[SequencePages]
    after: list[SequencePages]
    copies: list[tuple[int, int]]  # (a part full page that others have too, the private page that takes its place)
    taken: list[int]  # every page that is free until then


class _Handle(weakref.ref):
    """A weak reference to who uses a sequence, which knows the sequence's number when its user has gone."""

    __slots__ = ("number",)
    number: int


class PagePool:
    """Which sequence has which pages, each known by its number. Several may have the same page.

    num_pages  in the pool
    page_size  tokens of a page

    The sequences are the truth, and every change is one step of theirs that cannot fail half-way: an exception at any
    point, a signal's or MemoryError, finds the pool before the change or after it. How many have each page, and which
    pages are free, follows from the sequences. It is forgotten while a change is under way, and counted anew where a
    change did not come to its end. A MemoryError is raised before a change, and not after it.
    """

    def __init__(self, num_pages: int, page_size: int):
        self.num_pages = num_pages
        self.page_size = page_size
        self._sequences: dict[int, SequencePages] = {}  # in the order in which they were made
        self._owners: PageOwners | None = None
        self._num_made = 0
        self._handles: dict[int, _Handle] = {}
        # Users that have gone. A deque's append runs no Python code, so no exception can come between.
        self._gone: deque[_Handle] = deque()

    @property
    def num_free(self) -> int:
        """Pages that no sequence has."""
        return self._counted().num_free

    def owners(self, page: int) -> int:
        """How many sequences have a page."""
        return self._counted().owners(page)

    def used(self) -> list[int]:
        """Pages that a sequence has, in ascending order."""
        return self._counted().used()

    def new_number(self, user: Any = None) -> int:
        """A number for a sequence that is not in the pool yet.

        user  whose sequence it will be: it is freed when nothing refers to its user any more
        """
        self._num_made += 1
        number = self._num_made
        if user is not None:
            handle = _Handle(user, self._gone.append)
            handle.number = number
            self._handles[number] = handle
        return number

    def add(self, number: int) -> None:
        """Put a sequence without tokens into the pool."""
        self._sequences[number] = ((), 0)

    def fork(self, sequence: int, number: int) -> None:
        """Put a sequence into the pool that has the same tokens in the same pages as another. Raises SequenceFreed."""
        same = self.pages_of(sequence)
        owners, self._owners = self._counted(), None
        self._sequences[number] = same
        try:
            owners.share(same[0])
            self._owners = owners
        except MemoryError:
            pass  # the change is made, and nobody is told that it is not: they are counted anew

    def is_freed(self, sequence: int) -> bool:
        """Whether the sequence is not in the pool, or no longer."""
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
        length = _checks.whole("length", length)
        pages, tokens = self.pages_of(sequence)
        if not 0 <= length <= tokens:
            raise ShapeError(f"cannot truncate a sequence of {tokens} tokens to {length}; give 0 to {tokens}")
        kept = num_pages(length, self.page_size)
        owners, self._owners = self._counted(), None
        self._sequences[sequence] = pages[:kept], length
        try:
            owners.release(pages[kept:])
            self._owners = owners
        except MemoryError:
            pass

    def free(self, sequence: int) -> None:
        """Give all pages of a sequence back; one that was freed before has none."""
        owners, self._owners = self._owners, None
        pages, _ = self._sequences.pop(sequence, ((), 0))
        self._handles.pop(sequence, None)
        if owners is None:
            return
        try:
            owners.release(pages)
            self._owners = owners
        except MemoryError:
            pass

    def grow(self, sequences: Sequence[int], counts: Sequence[int]) -> PoolGrowth:
        """What `counts` new tokens of each sequence, all different, would take. Changes nothing.

        Raises CacheFull, SequenceFreed.
        """
        owners = self._counted()
        before = self.pages_of_all(sequences)
        grown = grow(owners, [pages for pages, _ in before], [n for _, n in before], counts, self.page_size)
        after = list(zip(grown.pages, grown.lengths, strict=True))
        return PoolGrowth(list(sequences), before, after, grown.copies, grown.taken)

    def keep(self, growth: PoolGrowth) -> None:
        """Let the sequences have their new tokens. The copies are under way: the pages that they replace may go.

        Raises KvitError if the sequences or the pages are no longer as `grow` found them.
        """
        owners = self._counted()
        same = [self._sequences.get(sequence) for sequence in growth.sequences] == growth.before
        if not same or any(owners.owners(page) for page in growth.taken):
            raise KvitError("the cache was changed while it appended; let one call end before the next begins")
        after = dict(zip(growth.sequences, growth.after, strict=True))
        self._owners = None
        self._sequences.update(after)
        try:
            owners.take(growth.taken)
            owners.release(source for source, _ in growth.copies)
            self._owners = owners
        except MemoryError:
            pass

    def shifted(self, sequences: Sequence[int], keeps: Sequence[int], drops: Sequence[int]) -> list[SequencePages]:
        """What sequences, all different, have without the `drop` tokens behind the first `keep` of each.

        Changes nothing. Raises CacheFull, SequenceFreed, ShapeError (more tokens than there are).
        """
        before = self.pages_of_all(sequences)
        for (_, length), keep, drop in zip(before, keeps, drops, strict=True):
            if min(keep, drop) < 0 or keep + drop > length:
                raise ShapeError(
                    f"cannot keep {keep} and drop {drop} tokens of a sequence of {length}; give numbers from 0 on, and "
                    "no more together"
                )
        return move_to_front(self._counted(), before, keeps, drops, self.page_size)

    def becoming(
        self, sequences: Sequence[int], after: Sequence[SequencePages]
    ) -> tuple[PagePool, str, dict[int, SequencePages]]:
        """How sequences get what they have afterwards, in pages that they have or that are free.

        Returns what setattr takes, as renaming does.
        """
        changed = {**self._sequences, **dict(zip(sequences, after, strict=True))}
        self._owners = None
        return self, "_sequences", changed

    def moves_to_front(self, by_sequence: bool) -> dict[int, int]:
        """Where pages must move (old id -> new id) so that the used ones come first.

        by_sequence  the pages of each sequence one after another, sequences in the order in which they were made; else
                     as few moves as possible
        """
        return self._counted().moves_to_front((pages for pages, _ in self._sequences.values()) if by_sequence else None)

    def renaming(self, moves: dict[int, int]) -> tuple[PagePool, str, dict[int, SequencePages]]:
        """How pages get the ids that they move to (old id -> new id), in every sequence that has them.

        Returns what setattr takes: whoever moves the pages sets it right after, with no Python code between.
        """
        renamed = {
            sequence: (tuple(moves.get(page, page) for page in pages), length)
            for sequence, (pages, length) in self._sequences.items()
        }
        self._owners = None
        return self, "_sequences", renamed

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        refuse_copy(self, "it counts who has each page of one cache")

    def _counted(self) -> PageOwners:
        """How many sequences have each page, those left out whose users have gone."""
        while self._gone:
            self.free(self._gone[0].number)
            self._gone.popleft()
        if self._owners is None:
            self._owners = PageOwners.counted(self.num_pages, (pages for pages, _ in self._sequences.values()))
        return self._owners
