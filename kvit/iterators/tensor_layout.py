"""The model of kernels/layout/tensor_layout.cuh: where the tensor copy engine leaves the bytes of a tile."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kvit.errors import LayoutError
from kvit.iterators.swizzle import Offsets
from kvit.iterators.whole import require_whole

VECTOR = 16
"""Bytes that stay together."""

_LINE = 128


@dataclass(frozen=True)
class TensorLayout:
    """A tile as boxes of a tensor map leave it: rows cut into chunks of up to 128 bytes, a chunk's rows one below the
    other, the 16-byte vectors of a row swizzled by the number of their 128-byte line.

    row_bytes  of a token's channels, one head
    tokens     of the tile
    is_packed  the map's rows are lines of 128 bytes, with several tokens where a token has fewer

    All sizes and offsets are in bytes. Raises LayoutError where the C++ layout would not compile: rows that no swizzle
    of the hardware serves, tiles that break its pattern off.
    """

    row_bytes: int
    tokens: int
    is_packed: bool = False

    def __post_init__(self) -> None:
        require_whole(self, "row_bytes", "tokens")
        if self.row_bytes not in (32, 64) and (self.row_bytes < 1 or self.row_bytes % _LINE):
            raise LayoutError(
                f"{self}: rows of {self.row_bytes} bytes; a row must be 32 or 64 bytes, or whole lines of {_LINE}"
            )
        period = 8 * self.line_tokens
        if self.tokens < 1 or self.tokens % period:
            raise LayoutError(
                f"{self}: {self.tokens} tokens; the pattern repeats after {period}, and tiles must be multiples of it"
            )

    # Names and formulas of the C++ layout, kSpan as span and so on.
    @property
    def span(self) -> int:
        """Of a row, in one chunk: what a line of a box holds, and the number in the swizzle's name (SWIZZLE_128B)."""
        return min(_LINE, self.row_bytes)

    @property
    def line_tokens(self) -> int:
        """Of a row of the map."""
        return _LINE // self.span if self.is_packed else 1

    @property
    def chunks(self) -> int:
        return self.row_bytes // self.span

    @property
    def chunk_bytes(self) -> int:
        return self.tokens * self.span

    @property
    def size(self) -> int:
        """Bytes of a tile: stage i begins at i * size."""
        return self.tokens * self.row_bytes

    @property
    def alignment(self) -> int:
        """Of a tile in shared memory: the hardware swizzles addresses."""
        return 8 * self.span * self.line_tokens

    def offset(self, s: Offsets, byte: Offsets) -> Offsets:
        """Where byte `byte` of the row of token s lies, ints or arrays of them."""
        dense = s * self.span + byte % self.span
        swizzle = s * self.span // _LINE % (self.span * self.line_tokens // VECTOR) * VECTOR
        return byte // self.span * self.chunk_bytes + (dense ^ swizzle)

    def draw(self, rows: int = 16) -> str:
        """The bank groups (16 bytes each, 0 to 7) of the first `rows` rows, one digit per 16-byte vector. A bar stands
        between chunks; a column of eight different digits is read without conflict."""
        lines = [f"{self}: bank group of every {VECTOR}-byte vector"]
        byte = np.arange(0, self.row_bytes, VECTOR)
        for s in range(min(rows, self.tokens)):
            groups = self.offset(np.full_like(byte, s), byte) // VECTOR % 8
            bars = ["|" if at and at % self.span == 0 else "" for at in byte]
            lines.append(f"  s {s:3}  " + " ".join(f"{bar}{group}" for bar, group in zip(bars, groups, strict=True)))
        if rows < self.tokens:
            lines.append(f"  ... {self.tokens - rows} more rows")
        return "\n".join(lines)

    def __str__(self) -> str:
        return f"TensorLayout<{self.row_bytes} bytes, {self.tokens}{', packed' * self.is_packed}>"
