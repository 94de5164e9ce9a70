"""The model of kernels/layout/swizzle.cuh: permutations of element offsets that spread rows over the banks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from kvit.errors import LayoutError
from kvit.iterators.whole import require_whole

Offsets = TypeVar("Offsets", int, np.ndarray)


@dataclass(frozen=True)
class Swizzle:
    """XORs `bits` bits of an element offset into the `bits` bits that lie `shift` lower; the `base` lowest bits stay.

    Raises LayoutError for numbers that do not make a permutation of 31-bit offsets, ShapeError for what is no number.
    """

    bits: int
    base: int
    shift: int

    def __post_init__(self) -> None:
        require_whole(self, "bits", "base", "shift")
        if min(self.bits, self.base) < 0 or self.bits + self.base + self.shift >= 31:
            raise LayoutError(f"{self} does not fit; bits, base and shift must be at least 0 and together less than 31")
        if self.bits > 0 and self.shift < 1:
            raise LayoutError(
                f"{self} is no permutation; shift must be at least 1, so that it reads bits it does not change"
            )

    @property
    def mask(self) -> int:
        """The bits that are read."""
        return ((1 << self.bits) - 1) << (self.base + self.shift)

    @property
    def run(self) -> int:
        """Elements that stay together, in order; 2^30 where nothing moves."""
        return 1 << self.base if self.bits else 1 << 30

    @property
    def block(self) -> int:
        """Offsets are permuted within blocks of this many elements."""
        return 1 << (self.base + self.bits) if self.bits else 1

    def __call__(self, offset: Offsets) -> Offsets:
        """Where the element at `offset` goes: an int, or an array of them."""
        return offset ^ ((offset & self.mask) >> self.shift)

    def __str__(self) -> str:
        return f"Swizzle<{self.bits}, {self.base}, {self.shift}>" if self.bits else "Identity"


IDENTITY = Swizzle(0, 0, 0)
"""Leaves every offset as it is."""
