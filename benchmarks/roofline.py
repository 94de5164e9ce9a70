"""Draws results above their floor: the time of a call against the bytes that it has to read. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cells import Ceiling
from report import Result


def plot(path: Path, results: Sequence[Result], ceiling: Ceiling, peak_gbps: float | None, title: str) -> None:
    """Write the picture, in the format that the file's suffix names: one mark a cell, one colour a codec.

    Circles are cells of which something is known on such a card, crosses the others; small dots are peers of the same
    run, or of the day when the card was measured.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.add_subplot()
    sizes = [result.cell.kv_bytes / 1e6 for result in results]
    ends = [min(sizes) / 1.5, max(sizes) * 1.5]
    for name, gbps, style in (("ceiling of this run", ceiling.gbps, "--"), ("peak of the card", peak_gbps, ":")):
        if gbps:
            floor = [size * 1e3 / gbps for size in ends]
            axes.plot(ends, floor, color="black", linestyle=style, linewidth=1, label=f"{name}: {gbps:.0f} GB/s")
    for number, kv in enumerate(dict.fromkeys(result.cell.kv for result in results)):
        colour = f"C{number}"
        mine = [result for result in results if result.cell.kv == kv]
        for marker, found in (("o", [r for r in mine if r.anchor]), ("x", [r for r in mine if not r.anchor])):
            if found:
                points = [(result.cell.kv_bytes / 1e6, result.us) for result in found]
                label = kv if marker == "o" or found == mine else None
                axes.scatter(*zip(*points, strict=True), marker=marker, s=30, color=colour, alpha=0.8, label=label)
        times = [(result.cell.kv_bytes / 1e6, us) for result in mine for us in _peers(result)]
        if times:
            axes.scatter(*zip(*times, strict=True), marker=".", s=12, color=colour, alpha=0.4, label=f"{kv}, peers")
    axes.set(xscale="log", yscale="log", xlabel="K, V and parameters read, MB", ylabel="us", title=title)
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="upper left")
    figure.savefig(path, dpi=150)


def _peers(result: Result) -> list[float]:
    """Times of this run; where there are none, those known."""
    here = [us for us in result.peers.values() if isinstance(us, float)]
    return here or list(result.anchor.peers.values() if result.anchor else ())
