"""What the decode benchmark says in the end: the table, the cliffs, how many cells are where they should be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from anchors import Anchor
from cells import Ceiling, Cell

from kvit._cli import display


@dataclass(frozen=True)
class Result:
    """One cell, measured."""

    cell: Cell
    us: float
    ahead_us: float  # of calls that read ahead
    kernel: str
    peers: dict[str, float | str]  # name -> microseconds in this run, or why there are none
    anchor: Anchor | None = None  # what is known of the cell on such a card

    @property
    def gbps(self) -> float:
        """10**9 bytes of K, V and parameters per second."""
        return self.cell.kv_bytes / self.us / 1e3

    def as_json(self, ceiling: Ceiling) -> dict[str, Any]:
        """The cell, its bytes and times, as --json writes them."""
        anchor = self.anchor
        return {
            "name": str(self.cell),
            **asdict(self.cell),
            "kv_bytes": self.cell.kv_bytes,
            "us": round(self.us, 3),
            "ahead_us": round(self.ahead_us, 3),
            "gbps": round(self.gbps, 1),
            "of_ceiling": round(self.gbps / ceiling.gbps, 4),
            "reach_us": anchor.reach if anchor else None,
            "known_peers": anchor.peers if anchor else {},
            "kernel": self.kernel,
            "copies": self.cell.copies,
            "peers": self.peers,
        }


def table(results: Sequence[Result], ceiling: Ceiling) -> str:
    """The results as text; a peer that has no time for any cell is left out."""
    peers = [name for name in _peer_names(results) if any(isinstance(result.peers[name], float) for result in results)]
    names = ("cell", "MB", "us", "ahead", "GB/s", "of ceiling", "reach", "best known")
    header = (*names, *(f"{name} us" for name in peers))
    rows = [
        (
            str(result.cell),
            f"{result.cell.kv_bytes / 1e6:.4g}",
            f"{result.us:.1f}",
            f"{result.ahead_us:.1f}",
            f"{result.gbps:.0f}",
            f"{result.gbps / ceiling.gbps:.1%}",
            _reach(result),
            _best_known(result.anchor),
            *(_time(result.peers[name]) for name in peers),
        )
        for result in results
    ]
    return display.table(header, rows)


class Cliff(NamedTuple):
    """How long a cell takes beside another that reads the same bytes."""

    cell: Cell
    beside: Cell
    ratio: float
    limit: float  # what the ratio should not exceed

    @property
    def is_over(self) -> bool:
        """Whether it does, as printed."""
        return round(self.ratio, 3) > self.limit


def cliffs(results: Sequence[Result]) -> list[Cliff]:
    """Page sizes beside 64, groups beside the fastest of 1 to 8, ragged batches beside uniform ones: what was measured.

    Limits: page 1 within 25 % of page 64 and others within 10 %; groups up to 8 within 5 % of each other, larger ones
    within 10 %; ragged batches within 10 %.
    """
    times = {result.cell: result.us for result in results}
    groups = {_shape(cell): [] for cell in times}
    for cell in times:
        groups[_shape(cell)].append(cell)
    found = []
    for cell in times:
        near = [other for other in groups[_shape(cell)] if other.group <= 8]
        besides = [
            (replace(cell, page_size=64), 1.25 if cell.page_size == 1 else 1.1),
            (replace(cell, lengths="uniform"), 1.1),
            (min(near, key=times.__getitem__, default=cell), 1.05 if cell.group <= 8 else 1.1),
        ]
        found += [
            Cliff(cell, other, times[cell] / times[other], limit)
            for other, limit in besides
            if other != cell and other in times
        ]
    return found


def summary(results: Sequence[Result]) -> Iterator[str]:
    """Lines on what the issue of speed asks: cells at their number, cells behind a peer, cliffs with their limits."""
    known = [(result, result.anchor) for result in results if result.anchor]
    if known:
        yield f"at or under what kvit must reach: {_at_most((result, anchor.reach) for result, anchor in known)}"
        rivals = [(result, anchor.best[1]) for result, anchor in known if anchor.best]
        yield f"no slower than the best known peer: {_at_most(rivals)}"
    beside = [(result, min(times)) for result in results if (times := _times(result))]
    if beside:
        yield f"no slower than the best peer of this run: {_at_most(beside)}"
    found = cliffs(results)
    if found:
        yield f"\ntime beside a cell of the same bytes: {sum(cliff.is_over for cliff in found)} of {len(found)} over"
        header = ("cell", "beside", "ratio", "limit", "")
        rows = [
            (str(cliff.cell), _difference(cliff), f"{cliff.ratio:.3f}", f"{cliff.limit:.2f}", "over" * cliff.is_over)
            for cliff in found
        ]
        yield display.table(header, rows)
    if beside:
        behind = [f"{result.cell} ({us:.1f} us)" for result, us in beside if min(result.us, result.ahead_us) > us]
        yield f"\na peer of this run was faster on: {', '.join(behind) or 'no cell'}"


def complaints(results: Sequence[Result]) -> list[str]:
    """Why peers have no time, each reason once."""
    reasons: dict[str, list[str]] = {}
    for result in results:
        for name, found in result.peers.items():
            if isinstance(found, str):
                reasons.setdefault(f"{name}: {found}", []).append(str(result.cell))
    return [reason if len(cells) == len(results) else f"{reason} ({_some(cells)})" for reason, cells in reasons.items()]


def _peer_names(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(name for result in results for name in result.peers))


def _at_most(limits: Iterable[tuple[Result, float]]) -> str:
    """How many results are no slower than what stands beside them."""
    limits = list(limits)
    there = sum(result.us <= limit for result, limit in limits)
    ahead = sum(result.ahead_us <= limit for result, limit in limits)
    return f"{there} of {len(limits)}, {ahead} reading ahead"


def _times(result: Result) -> list[float]:
    return [us for us in result.peers.values() if isinstance(us, float)]


def _time(found: float | str) -> str:
    return f"{found:.1f}" if isinstance(found, float) else "-"


def _reach(result: Result) -> str:
    """What must be reached, with a mark where even a call that reads ahead does not."""
    anchor = result.anchor
    return "" if anchor is None else f"{anchor.reach:g}" + " !" * (result.ahead_us > anchor.reach)


def _best_known(anchor: Anchor | None) -> str:
    best = anchor and anchor.best
    return f"{best[1]:.1f} {best[0]}" if best else ""


def _shape(cell: Cell) -> Cell:
    """The same for cells that differ in nothing but their group."""
    return replace(cell, query_heads=cell.kv_heads)


_WORDS: dict[str, Callable[[Cell], str]] = {
    "page_size": lambda cell: f"pages of {cell.page_size}",
    "lengths": lambda cell: f"{cell.lengths} lengths",
    "query_heads": lambda cell: f"group {cell.group}",
}


def _difference(cliff: Cliff) -> str:
    """The one thing in which the other cell differs."""
    one, other = asdict(cliff.cell), asdict(cliff.beside)
    return next(words(cliff.beside) for name, words in _WORDS.items() if one[name] != other[name])


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
