"""The pages of a cache and the sequences in them: plain bookkeeping on the host, no device memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kvit._native.growth import Growth, pages_needed
from kvit._native.page_changes import PageChange
from kvit._native.page_lists import PageLists, PooledSequence
from kvit.cache import calls
from kvit.cache.page_moves import moves_to_front
from kvit.cache.page_shift import SequencePages, move_to_front
from kvit.errors import CacheFull, ShapeError


class PagePool(PageLists):
    """Which sequence has which pages, for memory that somebody else owns. Several may have the same page.

        pool = kvit.PagePool(num_pages=4096, page_size=16)
        first = pool.sequence()
        second = first.fork()                     # the same tokens in the same pages
        growth = pool.grow([first, second], 1)    # room for a new token of each
        growth.copies                             # [(source, target)]: pages to copy before they are written
        growth.keep()                             # the sequences have the new tokens; growth.close() drops them
        first.pages, len(first)                   # what a page table says

    num_pages  in the pool
    page_size  tokens of a page

    A sequence gives its pages back by free(), or when nothing refers to it any more. Every change is one step that
    cannot fail half-way: an exception at any point, a signal's or MemoryError, finds the pool before the change or
    after it. Not safe to use from several threads.

    Raises ShapeError (a number that is none, or below 1).
    """

    def sequence(self) -> PooledSequence:
        """A new sequence without tokens. It has fork(), truncate(length), free(), pages, is_freed and len()."""
        found = PooledSequence()
        self.enter(found)
        return found

    def grow(self, seqs: Iterable[PooledSequence], new_tokens: Iterable[int] | int) -> Growth:
        """Take room for `new_tokens` more tokens of each sequence, which grow when it is kept: growth.keep().

        seqs        sequences of this pool, each at most once
        new_tokens  of each, or one number for all

        A last page that is part full and that others have too is left for a copy: growth.copies names the pages, which
        the owner of the memory copies before it writes. A growth that is closed, or that nothing refers to any more,
        gives its pages back. Until it has ended, its sequences are in no other growth.
        Raises CacheFull, SequenceFreed, ShapeError, KvitError (a sequence is in a growth already).
        """
        seqs = calls.members(seqs)
        return Growth(self, seqs, calls.new_tokens_of(new_tokens, len(seqs)))

    def pages_needed(self, seqs: Iterable[PooledSequence], new_tokens: Iterable[int] | int) -> int:
        """How many free pages `grow` would take, copies included; it fits if there are no fewer than num_free.

        Raises SequenceFreed, ShapeError.
        """
        seqs = calls.members(seqs)
        return pages_needed(self, seqs, calls.new_tokens_of(new_tokens, len(seqs)))

    def shifted(
        self, seqs: tuple[PooledSequence, ...], keeps: Sequence[int], drops: Sequence[int], turns: bool
    ) -> list[SequencePages]:
        """What sequences, all different, have without the `drop` tokens behind the first `keep` of each.

        turns  whether keys turn to their new places

        Changes nothing. Raises CacheFull, ShapeError (more tokens than there are).
        """
        for seq, keep, drop in zip(seqs, keeps, drops, strict=True):
            if min(keep, drop) < 0 or keep + drop > len(seq):
                raise ShapeError(
                    f"cannot keep {keep} and drop {drop} tokens of a sequence of {len(seq)}; give numbers from 0 on, "
                    "and no more together"
                )
        before = [(seq.pages, len(seq)) for seq in seqs]
        return move_to_front(self, before, keeps, drops, self.page_size, turns)

    def becoming(
        self, seqs: tuple[PooledSequence, ...], after: Sequence[SequencePages]
    ) -> tuple[PageChange, str, bool]:
        """How sequences get what they have afterwards, in pages that they have or that are free.

        Returns what setattr takes, as renaming does.
        """
        return PageChange(self, sequences=seqs, after=after), "is_made", True

    def moves_to_front(self, by_sequence: bool) -> dict[int, int]:
        """Where pages must move (old id -> new id) so that the used ones come first.

        by_sequence  the pages of each sequence one after another, sequences in the order in which they were made; else
                     as few moves as possible
        """
        return moves_to_front(self.used(), self.all_pages() if by_sequence else None)

    def renaming(self, moves: dict[int, int]) -> tuple[PageChange, str, bool]:
        """How pages get the ids that they move to (old id -> new id), in every sequence that has them.

        Returns what setattr takes: whoever moves the pages sets it right after, with no Python code between.
        """
        return PageChange(self, moves=moves), "is_made", True

    def take_free(self, count: int) -> list[int]:
        """The `count` pages that are taken next; they stay free. Raises CacheFull."""
        if count > self.num_free:
            raise CacheFull(
                f"the cache needs {count} more pages and has {self.num_free} free of {self.num_pages}; "
                "free or truncate sequences, or make a cache of more pages"
            )
        return self.next_free(count)
