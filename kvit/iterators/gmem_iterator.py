"""The model of kernels/iterator/: which bytes of a tile each thread holds, and where it puts them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kvit.errors import LayoutError
from kvit.iterators.raked_thread_map import RakedThreadMap
from kvit.iterators.smem_layout import SmemLayout


@dataclass(frozen=True)
class GmemIterator:
    """Every thread of Sm70GmemIterator or Sm80GmemIterator at once, on bytes.

    thread_map  who moves what
    layout      where it goes
    bits        of an element

    Raises LayoutError where the C++ iterator would not compile: another tile in the map than in the layout, accesses
    that are no power of two of bytes up to 16, or that the layout splits or misaligns.
    """

    thread_map: RakedThreadMap
    layout: SmemLayout
    bits: int

    def __post_init__(self) -> None:
        if (self.thread_map.dim_s, self.thread_map.dim_c) != (self.layout.s, self.layout.c):
            raise LayoutError(f"{self.thread_map} and {self.layout} describe different tiles")
        if self.thread_map.access_c * self.bits % 8 or self.access_bytes not in (1, 2, 4, 8, 16):
            raise LayoutError(
                f"{self.thread_map}: {self.thread_map.access_c} elements of {self.bits} bits are no access; "
                "it must be 1, 2, 4, 8 or 16 bytes"
            )
        if not self.layout.keeps_runs(self.thread_map.access_c):
            raise LayoutError(
                f"{self.layout} splits or misaligns accesses of {self.thread_map.access_c} elements; c0 and 2^base "
                "of the swizzle must be multiples of it"
            )

    @property
    def access_bytes(self) -> int:
        return self.thread_map.access_c * self.bits // 8

    @property
    def row_bytes(self) -> int:
        return self.layout.c * self.bits // 8

    @property
    def tile_bytes(self) -> int:
        """Bytes of one stage."""
        return self.layout.size * self.bits // 8

    @property
    def fragment_bytes(self) -> int:
        """Of one thread."""
        return self.thread_map.iter_s * self.thread_map.iter_c * self.access_bytes

    def load(self, rows: np.ndarray) -> np.ndarray:
        """What the threads hold after Load.

        rows  [tokens, row_bytes] uint8, the tile, zeros where there is no row

        Returns uint8 [threads, iter_s, iter_c, access_bytes]; zeros where the map reaches past the tile.
        """
        s, c, covered = self.thread_map.coordinates()
        fragments = np.zeros((*s.shape, self.access_bytes), np.uint8)
        first = c[covered] * self.bits // 8
        fragments[covered] = rows[s[covered][:, None], first[:, None] + np.arange(self.access_bytes)]
        return fragments

    def save(
        self, fragments: np.ndarray, shared: np.ndarray, stage: int = 0, s_begin: int = 0, s_count: int | None = None
    ) -> None:
        """Write fragments (as load returns them) to ring slot `stage` of `shared` (uint8, all stages of this tile), as
        Save does, and Prefetch when it has landed. s_begin and s_count choose a slice of the accesses along s."""
        places, chosen = self._places(stage)
        chosen[:, :s_begin] = False
        if s_count is not None:
            chosen[:, s_begin + s_count :] = False
        shared[places[chosen]] = fragments[chosen]

    def read_back(self, shared: np.ndarray, stage: int = 0) -> np.ndarray:
        """What the threads find in ring slot `stage` at their own coordinates: the inverse of save."""
        places, covered = self._places(stage)
        fragments = np.zeros(places.shape, np.uint8)
        fragments[covered] = shared[places[covered]]
        return fragments

    def _places(self, stage: int) -> tuple[np.ndarray, np.ndarray]:
        # ([..., access_bytes] byte addresses, [...] covered) of all accesses.
        s, c, covered = self.thread_map.coordinates()
        first = self.layout.index(s, c, stage * self.layout.size) * self.bits // 8
        return first[..., None] + np.arange(self.access_bytes), covered

    def draw(self, rows: int = 16) -> str:
        """The thread map's drawing above the layout's."""
        return f"{self.thread_map.draw(rows)}\n{self.layout.draw(self.bits, rows)}"

    def __str__(self) -> str:
        return f"GmemIterator({self.bits} bits, {self.thread_map}, {self.layout})"
