"""What the decode benchmark measures: cells, how many bytes each reads, and how results are printed. Needs no GPU."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kvit import dtypes
from kvit._cli import display

ROTATED_BYTES = 220_000_000
"""Inputs of a cell rotate over at least so much memory, so that no L2 cache holds what is read again."""

_MOST_COPIES = 16


@dataclass(frozen=True)
class Cell:
    """A batch of sequences of the same length, each with one new token."""

    batch: int
    context: int  # tokens of a sequence
    query_heads: int = 32
    kv_heads: int = 8

    def __str__(self) -> str:
        return f"{self.batch}x{self.context}:{self.query_heads}/{self.kv_heads}"

    @classmethod
    def parse(cls, text: str) -> Cell:
        """The cell that BATCHxCONTEXT[:QUERY_HEADS/KV_HEADS] names. Raises ValueError."""
        match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)(?::([1-9]\d*)/([1-9]\d*))?", text)
        if match is None:
            raise ValueError(f"{text!r} is no cell; cells look like 64x8192 or 16x4096:32/32")
        cell = cls(*(int(number) for number in match.groups() if number is not None))
        if cell.query_heads % cell.kv_heads:
            raise ValueError(f"{text!r}: query heads must be a multiple of KV heads")
        return cell


GRID = tuple(map(Cell.parse, ("1x4096", "1x32768", "8x4096", "16x8192", "64x8192", "256x2048", "16x4096:32/32")))


@dataclass(frozen=True)
class Setting:
    """What all cells of a run have in common."""

    head_dim: int = 128
    page_size: int = 64
    layout: str = "NHD"
    dtype: str = "bfloat16"

    def kv_bytes(self, cell: Cell) -> int:
        """Bytes of K and V that the cell has to read."""
        return 2 * cell.batch * cell.context * cell.kv_heads * dtypes.dtype_of(self.dtype).bytes_for(self.head_dim)

    def slots(self, cell: Cell) -> int:
        """Pages of a sequence."""
        return -(-cell.context // self.page_size)

    def copies(self, cell: Cell) -> int:
        """How many caches the cell's calls rotate over."""
        return min(_MOST_COPIES, max(1, math.ceil(ROTATED_BYTES / self.kv_bytes(cell))))


@dataclass(frozen=True)
class Ceiling:
    """The fastest that anything read memory in this run."""

    gbps: float  # 10**9 bytes per second
    num_bytes: int
    kernel: str
    grid: int


@dataclass(frozen=True)
class Result:
    """One cell, measured."""

    cell: Cell
    kv_bytes: int
    us: float
    kernel: str
    copies: int
    peers: dict[str, float | str]  # name -> microseconds, or why there are none

    @property
    def gbps(self) -> float:
        """10**9 bytes of K and V per second."""
        return self.kv_bytes / self.us / 1e3

    def as_json(self, ceiling: Ceiling) -> dict[str, Any]:
        """The cell, its bytes and times, as --json writes them."""
        return {
            **asdict(self.cell),
            "kv_bytes": self.kv_bytes,
            "us": round(self.us, 3),
            "gbps": round(self.gbps, 1),
            "of_ceiling": round(self.gbps / ceiling.gbps, 4),
            "kernel": self.kernel,
            "copies": self.copies,
            "peers": self.peers,
        }


def table(results: Sequence[Result], ceiling: Ceiling) -> str:
    """The results as text; a peer that has no time for any cell is left out."""
    peers = [name for name in _peer_names(results) if any(isinstance(result.peers[name], float) for result in results)]
    header = ("batch x context", "heads", "KV MB", "us", "GB/s", "of ceiling", *(f"{name} us" for name in peers))
    rows = [
        (
            f"{result.cell.batch} x {result.cell.context}",
            f"{result.cell.query_heads}/{result.cell.kv_heads}",
            f"{result.kv_bytes / 1e6:.0f}",
            f"{result.us:.1f}",
            f"{result.gbps:.0f}",
            f"{result.gbps / ceiling.gbps:.1%}",
            *(_time(result.peers[name]) for name in peers),
        )
        for result in results
    ]
    return display.table(header, rows)


def complaints(results: Sequence[Result]) -> list[str]:
    """Why peers have no time, each reason once."""
    reasons = {}
    for result in results:
        for name, found in result.peers.items():
            if isinstance(found, str):
                reasons.setdefault(f"{name}: {found}", []).append(str(result.cell))
    return [
        reason if len(cells) == len(results) else f"{reason} ({', '.join(cells)})" for reason, cells in reasons.items()
    ]


def _peer_names(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(name for result in results for name in result.peers))


def _time(found: float | str) -> str:
    return f"{found:.1f}" if isinstance(found, float) else "-"
