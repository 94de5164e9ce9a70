"""The model of kernels/iterator/sm90.cuh: where the boxes of a tile land, and what a warp loads of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kvit.errors import LayoutError, ShapeError
from kvit.iterators.raked_thread_map import WARP
from kvit.iterators.tensor_layout import TensorLayout

LEAST_BOX = 8
MOST_BOX = 64
"""Tokens of a box: a power of two between these, that divides the page size."""


def box_sizes(page_size: int, tile: int) -> list[int]:
    """Tokens that a box of pages of `page_size` may have in tiles of `tile`, smallest first; empty where no box can."""
    sizes = [LEAST_BOX << i for i in range((MOST_BOX // LEAST_BOX).bit_length())]
    return [size for size in sizes if page_size % size == 0 and tile % size == 0]


@dataclass(frozen=True)
class BoxIterator:
    """A warp with its Sm90GmemIterator, on bytes.

    layout  where the rows of a tile go
    """

    layout: TensorLayout

    @property
    def row_bytes(self) -> int:
        return self.layout.row_bytes

    @property
    def tile_bytes(self) -> int:
        """Bytes of one stage."""
        return self.layout.size

    @property
    def fragment_bytes(self) -> int:
        """Of one lane: its part of the matrix loads of a tile."""
        return self.tile_bytes // WARP

    def prefetch(self, box: np.ndarray, shared: np.ndarray, s: int, stage: int = 0) -> None:
        """Write a box, uint8 [tokens, row_bytes], to the rows from token s on of ring slot `stage` of `shared` (uint8,
        all stages of this tile), as Prefetch does when its copies have landed. Raises ShapeError: it reaches past the
        tile."""
        if not 0 <= s <= self.layout.tokens - len(box):
            raise ShapeError(f"a box of {len(box)} tokens from token {s} on; the tile has {self.layout.tokens}")
        shared[self._places(s, s + len(box), stage)] = box

    def clear(self, shared: np.ndarray, s: int, stage: int = 0) -> None:
        """Zero the rows of ring slot `stage` from token s on, as Clear does."""
        shared[self._places(max(s, 0), self.layout.tokens, stage)] = 0

    def rows(self, shared: np.ndarray, stage: int = 0) -> np.ndarray:
        """The tile in ring slot `stage`, uint8 [tokens, row_bytes]: the inverse of prefetch."""
        return shared[self._places(0, self.layout.tokens, stage)]

    def load_matrices(self, shared: np.ndarray, stage: int = 0, *, transposed: bool = False) -> np.ndarray:
        """What the lanes get from ring slot `stage` by decode's matrix loads, of 16 tokens and 32 bytes of their rows.

        transposed  as V is loaded: a word is 16 bits of each of two tokens. Else as K is: 32 bits of one token

        Returns uint8 [lane, tokens / 16, row_bytes / 32, word, byte of it]. Raises LayoutError: tokens are no multiple
        of 16. Defined by ldmatrix, PTX ISA.
        """
        if self.layout.tokens % 16:
            raise LayoutError(f"{self.layout}: a matrix load reads 16 tokens; tokens must be a multiple of them")
        lane, step, load, word, byte = np.ogrid[:WARP, : self.layout.tokens // 16, : self.row_bytes // 32, :4, :4]
        if transposed:  # word: matrices of tokens 0..7 with vector 0, vector 1, then tokens 8..15
            s = word // 2 * 8 + lane % 4 * 2 + byte // 2
            at = word % 2 * 16 + lane // 4 * 2 + byte % 2
        else:  # word: matrices of vector 0 with tokens 0..7, 8..15, then vector 1
            s = word % 2 * 8 + lane // 4
            at = word // 2 * 16 + lane % 4 * 4 + byte
        return self.rows(shared, stage)[step * 16 + s, load * 32 + at]

    def _places(self, begin: int, end: int, stage: int) -> np.ndarray:
        # [end - begin, row_bytes] byte addresses.
        s, byte = np.ogrid[begin:end, : self.row_bytes]
        return stage * self.tile_bytes + self.layout.offset(s, byte)

    def draw(self, box_tokens: int = LEAST_BOX, rows: int = 16) -> str:
        """Which lane asks for which box, and the bytes of the tile that each of its copies fills, one a chunk; below it
        the layout's drawing."""
        lines = [f"{self}, boxes of {box_tokens} tokens: lane, tokens, bytes of each chunk"]
        for s in range(0, self.layout.tokens, box_tokens):
            first = [chunk * self.layout.chunk_bytes + s * self.layout.span for chunk in range(self.layout.chunks)]
            filled = "  ".join(f"{begin}..{begin + box_tokens * self.layout.span - 1}" for begin in first)
            lines.append(f"  lane {s % WARP:2}  s {s:3}..{s + box_tokens - 1:<3}  {filled}")
        return "\n".join([*lines, self.layout.draw(rows)])

    def __str__(self) -> str:
        return f"BoxIterator({self.layout})"
