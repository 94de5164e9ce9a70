"""How commands show things: tables, sizes, and how far a long job is."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

Step = Callable[[float, str], None]
"""Tells a bar that the job is at a fraction of its way, and what it does now."""


def table(header: Sequence[str], rows: Sequence[Sequence[object]], indent: str = "") -> str:
    """Text in columns, two blanks between them; a column of numbers lines up on the right."""
    cells = [list(map(str, header)), *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    is_number = [all(isinstance(cell, (int, float)) for cell in column) for column in zip(*rows, strict=True)]
    is_number = is_number or [False] * len(widths)
    lines = (
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, is_number, strict=True)
        )
        for line in cells
    )
    return "\n".join((indent + line).rstrip() for line in lines)


def size(num_bytes: int) -> str:
    """Bytes in the largest unit that leaves at least one of it: 1536 is "1.5 KiB"."""
    value, units = float(num_bytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        del units[0]
    return f"{num_bytes} B" if units[0] == "B" else f"{value:.1f} {units[0]}"


@contextmanager
def progress(title: str) -> Iterator[Step]:
    """A bar on stderr: rich's where it is installed, a plain one elsewhere, none where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield lambda fraction, label: None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
    except ImportError:
        yield from _plain_bar(title)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[label]}"), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=1.0, label="")
        yield lambda fraction, label: bar.update(task, completed=fraction, label=label)


def _plain_bar(title: str) -> Iterator[Step]:
    length = 30

    def show(fraction: float, label: str) -> None:
        filled = min(length, int(fraction * length))
        line = f"{title} [{'#' * filled}{'.' * (length - filled)}] {min(1.0, fraction):4.0%} {label}"
        width = shutil.get_terminal_size().columns - 1
        print(f"\r{line[:width]:<{width}}", end="", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        print(f"\r{' ' * (shutil.get_terminal_size().columns - 1)}\r", end="", file=sys.stderr, flush=True)
