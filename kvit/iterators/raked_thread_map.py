"""The model of kernels/layout/raked_thread_map.cuh: which thread moves which part of a tile."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kvit.errors import LayoutError
from kvit.iterators.whole import require_whole

WARP = 32


class Coord(NamedTuple):
    """A place in a tile: token s, channel c."""

    s: int
    c: int


class Access(NamedTuple):
    """One access of a thread: the i-th along s, the j-th along c."""

    i: int
    j: int
    at: Coord


def low_bit(n: int) -> int:
    """Largest power of two that divides n: 192 -> 64."""
    return n & -n


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


@dataclass(frozen=True)
class RakedThreadMap:
    """Deals a [dim_s, dim_c] tile to `warp_count` warps, `access_c` channels per access: each warp owns a band of
    `footprint_s` tokens, and in it a lane's accesses are `delta_s` tokens apart.

    warp_thread_c  lanes along a row; as many as a power-of-two part of the row has accesses if absent
    warp_c         warps along a row

    Raises LayoutError where the C++ map would not compile, ShapeError for what is no whole number.
    """

    dim_c: int
    dim_s: int
    access_c: int
    warp_count: int
    warp_thread_c: int | None = None
    warp_c: int = 1

    def __post_init__(self) -> None:
        sizes = ["dim_c", "dim_s", "access_c", "warp_count", "warp_c"]
        require_whole(self, *sizes, *["warp_thread_c"] * (self.warp_thread_c is not None))
        if min(self.dim_c, self.dim_s, self.access_c, self.warp_count, self.warp_c) < 1:
            raise LayoutError(f"{self!r} has a size below 1")
        if self.dim_c % self.access_c:
            raise LayoutError(f"{self!r}: a row of {self.dim_c} is no whole number of accesses of {self.access_c}")
        if self.warp_thread_c is None:
            object.__setattr__(self, "warp_thread_c", low_bit(self.dim_c) // self.access_c)
        if self.warp_thread_c < 1 or WARP % self.warp_thread_c:
            raise LayoutError(f"{self!r}: {self.warp_thread_c} lanes along a row do not divide the {WARP} of a warp")
        if self.warp_count % self.warp_c:
            raise LayoutError(f"{self!r}: {self.warp_c} warps along a row do not divide {self.warp_count}")
        if self.partial_c and self.iter_c != 1:
            raise LayoutError(f"{self!r}: {self.iter_c} accesses along a row reach past its end; only one may")

    # Names and formulas of the C++ map, kIterS as iter_s and so on.
    @property
    def warp_thread_s(self) -> int:
        return WARP // self.warp_thread_c

    @property
    def delta_c(self) -> int:
        return self.warp_thread_c * self.access_c

    @property
    def delta_s(self) -> int:
        return self.warp_thread_s

    @property
    def warp_s(self) -> int:
        return self.warp_count // self.warp_c

    @property
    def iter_c(self) -> int:
        return _ceil_div(_ceil_div(self.dim_c, self.delta_c), self.warp_c)

    @property
    def iter_s(self) -> int:
        return _ceil_div(_ceil_div(self.dim_s, self.delta_s), self.warp_s)

    @property
    def footprint_c(self) -> int:
        return self.delta_c * self.iter_c

    @property
    def footprint_s(self) -> int:
        return self.delta_s * self.iter_s

    @property
    def partial_c(self) -> bool:
        """Some lanes would reach past the row."""
        return self.footprint_c * self.warp_c != self.dim_c

    @property
    def partial_s(self) -> bool:
        """Some bands would reach past the tile."""
        return self.footprint_s * self.warp_s != self.dim_s

    @property
    def threads(self) -> int:
        return self.warp_count * WARP

    def offset(self, warp: int, lane: int) -> Coord:
        """(s, c) of a lane's first access, whether the tile has it or not."""
        return Coord(
            self.footprint_s * (warp // self.warp_c) + lane // self.warp_thread_c,
            self.footprint_c * (warp % self.warp_c) + self.access_c * (lane % self.warp_thread_c),
        )

    def covers(self, at: Coord) -> bool:
        """Whether an access that starts here lies in the tile."""
        return at.s < self.dim_s and at.c < self.dim_c

    def accesses(self, warp: int, lane: int) -> Iterator[Access]:
        """The accesses of one thread that lie in the tile."""
        first = self.offset(warp, lane)
        for i in range(self.iter_s):
            for j in range(self.iter_c):
                at = Coord(first.s + i * self.delta_s, first.c + j * self.delta_c)
                if self.covers(at):
                    yield Access(i, j, at)

    def coordinates(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(s, c, covered), each [threads, iter_s, iter_c]: all accesses of all threads."""
        thread = np.arange(self.threads)[:, None, None]
        warp, lane = thread // WARP, thread % WARP
        i = np.arange(self.iter_s)[None, :, None]
        j = np.arange(self.iter_c)[None, None, :]
        s = self.footprint_s * (warp // self.warp_c) + lane // self.warp_thread_c + i * self.delta_s + 0 * j
        c = (
            self.footprint_c * (warp % self.warp_c)
            + self.access_c * (lane % self.warp_thread_c)
            + j * self.delta_c
            + 0 * i
        )
        return s, c, (s < self.dim_s) & (c < self.dim_c)

    def draw(self, rows: int = 16) -> str:
        """Who makes each access of the first `rows` rows: warp and lane, one entry per access along the row."""
        owner: dict[Coord, str] = {}
        for warp in range(self.warp_count):
            for lane in range(WARP):
                for access in self.accesses(warp, lane):
                    owner[access.at] = f"{warp}.{lane:02}"
        lines = [f"{self}: warp.lane of every access"]
        for s in range(min(rows, self.dim_s)):
            entries = (owner.get(Coord(s, c), " -- ") for c in range(0, self.dim_c, self.access_c))
            lines.append(f"  s {s:3}  " + " ".join(entries))
        if rows < self.dim_s:
            lines.append(f"  ... {self.dim_s - rows} more rows")
        return "\n".join(lines)

    def __str__(self) -> str:
        tail = "" if self.warp_c == 1 else f", {self.warp_c}"
        first = f"{self.dim_c}, {self.dim_s}, {self.access_c}, {self.warp_count}, {self.warp_thread_c}"
        return f"RakedThreadMap<{first}{tail}>"
