"""What a thread map and a layout cost: turns of shared memory, sectors of global memory, and what is not aligned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from kvit.errors import LayoutError, ShapeError
from kvit.iterators.banks import BANK_BYTES, BANKS, bank_conflicts
from kvit.iterators.raked_thread_map import WARP

SECTOR = 32
"""Bytes that global memory gives at least."""


class ThreadMap(Protocol):
    """Which thread moves which part of a tile: RakedThreadMap, or a map of your own."""

    @property
    def access_c(self) -> int:
        """Channels that a thread moves at once."""

    def coordinates(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(s, c, covered), each [threads, ...]: token and first channel of every access, and whether it is made."""


class Layout(Protocol):
    """Where element (s, c) of a tile lies in shared memory: SmemLayout, or a layout of your own."""

    def index(self, s: np.ndarray, c: np.ndarray) -> np.ndarray:
        """Offsets of elements, in elements."""


@dataclass(frozen=True)
class Report:
    """Of all accesses with which the threads of a CTA copy one tile from global to shared memory.

    accesses        of warps
    access_bytes    of a lane
    turns           of shared memory that they take, and
    least_turns     that as many bytes would take without conflicts
    worst_turns     of one access, beside the least that its lanes would take: 1 is free of conflicts
    broken_runs     accesses of lanes whose channels do not lie one after the other in shared memory
    misaligned      accesses of lanes, shared or global, whose first byte is no multiple of access_bytes: the hardware
                    refuses them
    sectors         of 32 bytes that global memory gives
    used            share of the bytes of these sectors that are wanted, 0 to 1
    """

    accesses: int
    access_bytes: int
    turns: int
    least_turns: int
    worst_turns: float
    broken_runs: int
    misaligned: int
    sectors: int
    used: float

    @property
    def is_legal(self) -> bool:
        """Whether a GPU takes every access as it is."""
        return self.broken_runs == 0 and self.misaligned == 0

    def __str__(self) -> str:
        lines = [
            f"{self.accesses} accesses of warps, {self.access_bytes} bytes a lane",
            f"shared memory   {self.turns} turns, {self.least_turns} without conflicts; the worst access takes "
            f"{self.worst_turns:g} times its least",
            f"global memory   {self.sectors} sectors of {SECTOR} bytes, {self.used:.0%} of them wanted",
        ]
        if self.broken_runs:
            lines.append(f"broken          {self.broken_runs} accesses of lanes that the layout tears apart")
        if self.misaligned:
            lines.append(f"misaligned      {self.misaligned} accesses of lanes, which the hardware refuses")
        return "\n".join(lines)


def report(
    layout: Layout | Callable[[np.ndarray, np.ndarray], np.ndarray],
    thread_map: ThreadMap,
    bits: int,
    *,
    row_stride: int | None = None,
    base: int = 0,
) -> Report:
    """What it costs to copy one tile with `thread_map` into `layout`.

    layout      where elements lie in shared memory: SmemLayout, an object with such an `index`, or a function
                (s, c) -> offsets in elements, of int arrays
    thread_map  who moves what: RakedThreadMap, or an object with `access_c` and `coordinates()`
    bits        of an element: 4, 8, 16 or 32
    row_stride  bytes from one token's row to the next in global memory; dense rows of the tile if absent
    base        address of the tile's first byte in global memory: what counts is its place within sectors

    Raises ShapeError (bits, or an access that no instruction makes), LayoutError (offsets below 0).
    """
    if bits not in (4, 8, 16, 32):
        raise ShapeError(f"bits is {bits!r}; elements have 4, 8, 16 or 32")
    access_bytes, rest = divmod(int(thread_map.access_c) * bits, 8)
    if rest or access_bytes not in (1, 2, 4, 8, 16):
        raise ShapeError(
            f"an access of {thread_map.access_c} channels of {bits} bits has {access_bytes + rest / 8:g} bytes; a lane "
            "moves 1, 2, 4, 8 or 16 at once"
        )
    index: Any = layout if callable(layout) else layout.index
    s, c, covered = (np.asarray(x).reshape(len(x), -1) for x in thread_map.coordinates())
    if row_stride is None:
        row_stride = int(np.max(c[covered], initial=0) + thread_map.access_c) * bits // 8
    offsets = np.asarray(index(s, c))
    if np.min(offsets[covered], initial=0) < 0:
        raise LayoutError(f"the layout puts an element at {offsets[covered].min()}; offsets begin at 0")
    steps = np.arange(thread_map.access_c)
    runs = np.asarray(index(s[..., None] + 0 * steps, c[..., None] + steps))
    broken = (runs != offsets[..., None] + steps).any(axis=-1) & covered
    shared, places = offsets * bits // 8, base + s * row_stride + c * bits // 8
    misaligned = ((shared % access_bytes != 0) | (places % access_bytes != 0)) & covered
    accesses, turns, least, worst, sectors, wanted = 0, 0, 0, 1.0, 0, 0
    for first in range(0, len(s), WARP):
        for i in range(s.shape[1]):
            lanes = np.flatnonzero(covered[first : first + WARP, i]) + first
            if not len(lanes):
                continue
            aligned = shared[lanes, i] // access_bytes * access_bytes
            # Served in parts, 128 bytes at a time: an access of 16 bytes by eight lanes.
            size = max(1, BANKS * BANK_BYTES // max(access_bytes, BANK_BYTES))
            parts = [bank_conflicts(aligned[at : at + size], access_bytes) for at in range(0, len(lanes), size)]
            touched = np.unique((places[lanes, i][:, None] + np.arange(access_bytes)) // SECTOR)
            accesses, turns, least = accesses + 1, turns + sum(parts), least + len(parts)
            worst = max(worst, sum(parts) / len(parts))
            sectors, wanted = sectors + len(touched), wanted + len(lanes) * access_bytes
    return Report(
        accesses=accesses,
        access_bytes=access_bytes,
        turns=turns,
        least_turns=least,
        worst_turns=worst,
        broken_runs=int(broken.sum()),
        misaligned=int(misaligned.sum()),
        sectors=sectors,
        used=wanted / (sectors * SECTOR) if sectors else 1.0,
    )
