"""Draws results under the ceiling of the card: rate of reading against bytes read. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cells import Ceiling, Result


def plot(path: Path, results: Sequence[Result], ceiling: Ceiling, title: str) -> None:
    """Write the picture, in the format that the file's suffix names."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    ordered = sorted(results, key=lambda result: result.kv_bytes)
    sizes = [result.kv_bytes / 1e6 for result in ordered]
    axes.axhline(ceiling.gbps, color="black", linestyle="--", label=f"ceiling: {ceiling.gbps:.0f} GB/s")
    axes.plot(sizes, [result.gbps for result in ordered], marker="o", label="kvit")
    for name in dict.fromkeys(name for result in ordered for name in result.peers):
        times = [(result.kv_bytes, result.peers.get(name)) for result in ordered]
        points = [(size / 1e6, size / us / 1e3) for size, us in times if isinstance(us, float)]
        if points:
            axes.plot(*zip(*points, strict=True), marker=".", linewidth=1, label=name)
    for size in dict.fromkeys(sizes):  # cells of the same size share a label
        rows = [result for result, other in zip(ordered, sizes, strict=True) if other == size]
        label = "\n".join(f"{row.cell.batch} x {row.cell.context}" for row in rows)
        place = (size, min(row.gbps for row in rows))
        axes.annotate(label, place, xytext=(0, -8), textcoords="offset points", ha="center", va="top", fontsize=8)
    axes.set(xscale="log", ylim=(0, 1.1 * ceiling.gbps), xlabel="K and V read, MB", ylabel="GB/s", title=title)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=150)
