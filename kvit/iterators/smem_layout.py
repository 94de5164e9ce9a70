"""The model of kernels/layout/smem_layout.cuh: where element (s, c) of a tile lies in shared memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kvit.errors import LayoutError
from kvit.iterators.swizzle import IDENTITY, Offsets, Swizzle
from kvit.iterators.whole import require_whole


@dataclass(frozen=True)
class SmemLayout:
    """An [s, c] tile cut into atoms of [s0, c0], atoms ordered along c first, swizzled inside each atom.

    All sizes and offsets are in elements. Raises LayoutError where the C++ layout would not compile: sizes that do not
    divide, or a swizzle that leaves its atom; and ShapeError for what is no whole number.
    """

    s: int
    c: int
    s0: int
    c0: int
    swizzle: Swizzle = IDENTITY

    def __post_init__(self) -> None:
        require_whole(self, "s", "c", "s0", "c0")
        if not isinstance(self.swizzle, Swizzle):
            raise TypeError(f"swizzle is a {type(self.swizzle).__name__}; give a Swizzle")
        if min(self.s, self.c, self.s0, self.c0) < 1:
            raise LayoutError(f"{self} has a size below 1")
        if self.s % self.s0 or self.c % self.c0:
            raise LayoutError(
                f"{self}: a tile of {self.s} x {self.c} is no whole number of atoms of {self.s0} x {self.c0}"
            )
        if self.s0 * self.c0 % self.swizzle.block:
            raise LayoutError(
                f"{self}: the swizzle permutes blocks of {self.swizzle.block} elements, and an atom of "
                f"{self.s0 * self.c0} is no whole number of them"
            )

    @property
    def size(self) -> int:
        """Elements of a tile: stage i begins at i * size."""
        return self.s * self.c

    def index(self, s: Offsets, c: Offsets, offset: int = 0) -> Offsets:
        """Offset of element (s, c), ints or arrays of them; `offset` is added as it is."""
        atom = s // self.s0 * (self.c // self.c0) + c // self.c0
        return self.swizzle(s % self.s0 * self.c0 + c % self.c0) + atom * (self.s0 * self.c0) + offset

    def keeps_runs(self, elements: int) -> bool:
        """Whether every run of `elements` channels that starts at a multiple of `elements` stays one aligned run."""
        return self.c0 % elements == 0 and self.swizzle.run % elements == 0

    def draw(self, bits: int, rows: int = 16) -> str:
        """The bank groups (16 bytes each, 0 to 7) of the first `rows` rows, one digit per 16-byte vector of elements of
        `bits` bits. A bar stands between atoms; a column of eight different digits is read without conflict."""
        vector = 128 // bits
        lines = [f"{self}, {bits}-bit elements: bank group of every 16-byte vector"]
        for s in range(min(rows, self.s)):
            c = np.arange(0, self.c, vector)
            groups = self.index(np.full_like(c, s), c) * bits // 128 % 8
            bars = ["|" if channel and channel % self.c0 == 0 else "" for channel in c]
            lines.append(f"  s {s:3}  " + " ".join(f"{bar}{group}" for bar, group in zip(bars, groups, strict=True)))
        if rows < self.s:
            lines.append(f"  ... {self.s - rows} more rows")
        return "\n".join(lines)

    def __str__(self) -> str:
        return f"SmemLayout<{self.s}, {self.c}, {self.s0}, {self.c0}, {self.swizzle}>"
