"""How pages of a pool move: to the front, and in an order in which none is lost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain


def moves_to_front(used: Sequence[int], sequences: Iterable[Iterable[int]] | None = None) -> dict[int, int]:
    """Where pages must move (old id -> new id) so that the used ones, which are in ascending order, come first.

    sequences  pages of each sequence, to lie one after another in this order; absent: as few moves as possible
    """
    if sequences is None:
        holes = sorted(set(range(len(used))) - set(used))
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


def num_pages(tokens: int, page_size: int) -> int:
    """Pages that hold `tokens` tokens."""
    return -(-tokens // page_size)
