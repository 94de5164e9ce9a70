"""Which pages sequences have when tokens behind their first ones go, and those behind them move to the front."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Protocol, TypeAlias

from kvit.cache.page_moves import num_pages

SequencePages: TypeAlias = tuple[tuple[int, ...], int]
"""The pages of a sequence, in the order of its tokens, and how many tokens are in them."""


class PageOwners(Protocol):
    """What is asked of a PagePool."""

    def owners(self, page: int) -> int:
        """How many sequences have a page."""

    def take_free(self, count: int) -> list[int]:
        """The pages that are taken next; they stay free. Raises CacheFull."""


def move_to_front(
    page_owners: PageOwners,
    sequences: Sequence[SequencePages],
    keeps: Sequence[int],
    drops: Sequence[int],
    page_size: int,
    turns: bool = True,
) -> list[SequencePages]:
    """What each sequence has when the `drop` tokens behind its first `keep` are gone. Raises CacheFull.

    turns  whether keys turn to their new places

    A page whose tokens move by whole pages stays, and its rows stay where they are, if no other sequence has it, or if
    no key turns: then nothing in it is written. So does the page with the last token that is kept, if all behind it in
    that page go. All other pages from there on are written anew, into pages that held nothing but dropped tokens, or
    else into free ones: nobody reads what is written.

        page_size 4, keep 4     a b c d | e f g h | i j k l | m n
        drop 8                  a b c d | m n            the last page stays what it is
        drop 5                  a b c d | j k l m | n    in the second page, and in a free one
    """
    after: list[list[int | None]] = []
    spare: list[int] = []
    for (pages, length), keep, drop in zip(sequences, keeps, drops, strict=True):
        left, whole = num_pages(length - drop, page_size), drop // page_size
        found: list[int | None] = list(pages[:left])
        if 0 < drop < length - keep:
            kept = num_pages(keep, page_size)  # pages
            is_left = keep + drop >= kept * page_size  # by all others of the last of them: rows may come in behind
            for slot in range(keep // page_size, left):
                if slot < kept and is_left and page_owners.owners(pages[slot]) == 1:
                    continue
                stays = drop % page_size == 0 and (not turns or page_owners.owners(pages[slot + whole]) == 1)
                found[slot] = pages[slot + whole] if stays else None
            dropped = pages[kept : (keep + drop) // page_size]
            spare += [page for page in dropped if page_owners.owners(page) == 1]
        after.append(found)
    missing = sum(page is None for page in chain.from_iterable(after))
    unused = iter([*spare, *page_owners.take_free(max(0, missing - len(spare)))])
    return [
        (tuple(next(unused) if page is None else page for page in found), length - drop)
        for found, (_, length), drop in zip(after, sequences, drops, strict=True)
    ]
