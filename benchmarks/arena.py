"""Random memory that all cells of a run share: made once, as large as the largest cell needs, read by each in turn."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from cells import Cell, param_bytes
from measure import RandomMemory
from numpy.typing import NDArray

import kvit
from kvit import dtypes
from kvit.codecs import Codec

_ALIGNMENT = 256
_PAIRS = (1 << 21) + 514  # (scale, zero) pairs of a block
_RANGE = 2.0  # from the least to the greatest number that the codes of a row can stand for, on average


class Part(NamedTuple):
    """A run of bytes in the memory of one kind."""

    kind: str
    start: int
    num_bytes: int


class Pools(NamedTuple):
    """Where one cache lies."""

    k: Part
    v: Part
    k_params: Part | None
    v_params: Part | None


def plan(cell: Cell) -> list[Pools]:
    """Where the caches lie that a cell rotates over: end to end, so that no two share a byte."""
    ends: dict[str, int] = {}

    def take(kind: str, num_bytes: int) -> Part | None:
        start = ends.get(kind, 0)
        ends[kind] = -(-(start + num_bytes) // _ALIGNMENT) * _ALIGNMENT
        return Part(kind, start, num_bytes) if num_bytes else None

    rows = int(cell.slots().sum()) * cell.page_size * cell.kv_heads
    found = []
    for _ in range(cell.copies):
        data = [take(codec.name, rows * cell.row_bytes(codec)) for codec in cell.codecs]
        params = [take(_params_kind(codec, cell), rows * param_bytes(codec)) for codec in cell.codecs]
        found.append(Pools(*data, *params))
    return found


class Arena:
    """The memory of every kind that some cell needs."""

    def __init__(self, cells: Iterable[Cell], stream: kvit.Stream, seed: int):
        """Random memory on the stream's device, enough for each of the cells by itself."""
        needs: dict[str, int] = {}
        for cell in cells:
            for part in (part for pools in plan(cell) for part in pools if part is not None):
                needs[part.kind] = max(needs.get(part.kind, 0), part.start + part.num_bytes)
        self._memory = {kind: _memory(kind, stream, seed + i) for i, kind in enumerate(needs)}
        self._buffers = {kind: self._memory[kind].bytes(num_bytes) for kind, num_bytes in needs.items()}

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return sum(buffer.nbytes for buffer in self._buffers.values())

    def buffer(self, part: Part) -> kvit.Buffer:
        """The part on the device, uint8 [num_bytes]."""
        return self._buffers[part.kind][part.start : part.start + part.num_bytes]

    def read(self, part: Part, start: int, num_bytes: int) -> NDArray[np.uint8]:
        """What stands in the part from byte `start` on, without asking the device."""
        return self._memory[part.kind].read(part.start + start, num_bytes)


def _params_kind(codec: Codec, cell: Cell) -> str:
    return f"{codec.name} of {cell.dtype}"


def _memory(kind: str, stream: kvit.Stream, seed: int) -> RandomMemory:
    """Normal numbers for floats, any codes for integers, and parameters that put what codes stand for around zero."""
    codec, _, dtype = kind.partition(" of ")
    if not dtype:
        return RandomMemory("uint8" if codec.startswith("int") else codec, stream, seed)
    top = 2 ** int(codec.removeprefix("int")) - 1
    width = _RANGE * np.random.default_rng(seed).uniform(0.5, 1.5, _PAIRS).astype(np.float32)
    pairs = np.stack([width / top, -width / 2], axis=-1)
    return RandomMemory.of(pairs.astype(dtypes.numpy_dtype(dtypes.dtype_of(dtype))), stream)
