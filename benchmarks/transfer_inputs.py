"""The memory of one cell of the transfer benchmark, and the proof that what is timed moves the right bits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from measure import RandomMemory
from numpy.typing import NDArray

import kvit
from kvit import codecs, dtypes, reference
from kvit._cli.compare import expect_same

ROTATED_BYTES = 220_000_000
"""Calls rotate over at least so much memory, so that no L2 cache holds what is moved again."""

_MOST_COPIES = 64
_OLD_TOKENS = 37  # in each sequence before the call: new ones begin inside a page


@dataclass(frozen=True)
class Setting:
    """What all cells of a run have in common."""

    kv_heads: int = 8
    query_heads: int = 32
    head_dim: int = 128
    page_size: int = 64
    dtype: str = "bfloat16"


@dataclass(frozen=True)
class Cell:
    """New tokens of a batch, and how the cache stores them."""

    sequences: int
    tokens: int  # new ones of each sequence
    stored: tuple[str, str]  # of K and V: names of codecs
    layout: str

    @property
    def total(self) -> int:
        """New tokens of all sequences."""
        return self.sequences * self.tokens

    def kv_bytes(self, setting: Setting) -> int:
        """Bytes of the rows in 16 bits, and of what the cache holds of them: one is read and the other written."""
        rows = self.total * setting.kv_heads
        plain = 2 * dtypes.dtype_of(setting.dtype).bytes_for(setting.head_dim)
        sides = [codecs.codec_of(name) for name in self.stored]
        return rows * (plain + codecs.pair_bytes(*sides, setting.head_dim))

    def query_bytes(self, setting: Setting) -> int:
        """Bytes of the queries, read and written."""
        row = dtypes.dtype_of(setting.dtype).bytes_for(setting.head_dim)
        return 2 * self.total * setting.query_heads * row


class Inputs:
    """Caches full of poison, packed rows of queries, keys and values, and memory for what is gathered."""

    def __init__(
        self,
        cell: Cell,
        setting: Setting,
        stream: kvit.Stream,
        memory: RandomMemory,
        rng: np.random.Generator,
        copies: int | None = None,
    ):
        self.cell, self.setting, self.stream = cell, setting, stream
        length = _OLD_TOKENS + cell.tokens
        slots = -(-length // setting.page_size)
        self.pages = rng.permutation(cell.sequences * slots).astype(np.int32).reshape(cell.sequences, slots)
        self.lengths = [length] * cell.sequences
        self.copies = copies or min(_MOST_COPIES, math.ceil(ROTATED_BYTES / cell.kv_bytes(setting)))
        heads = setting.query_heads + 2 * setting.kv_heads
        self._shape = (cell.total, heads, setting.head_dim)
        row_bytes = dtypes.dtype_of(setting.dtype).bytes_for(setting.head_dim)
        self._packed = [memory.bytes(cell.total * heads * row_bytes) for _ in range(self.copies)]
        rows = (cell.total, setting.kv_heads, setting.head_dim)
        self.gathered = [
            kvit.Buffer.empty((2, *rows), setting.dtype, stream.device, stream) for _ in range(self.copies)
        ]
        self.q_out = kvit.Buffer.empty(
            (cell.total, setting.query_heads, setting.head_dim), setting.dtype, stream.device, stream
        )
        self._pools = [self._make_pools(len(self.pages.reshape(-1))) for _ in range(self.copies)]
        self.views = [self._view(pools) for pools in self._pools]
        starts = np.arange(0, cell.total + 1, cell.tokens)
        self.query_indptr = self._integers(starts)
        self.table = kvit.PageTable(self._integers(self.pages), lengths=self._integers(self.lengths))

    def packed(self, copy: int) -> tuple[kvit.Tensor, kvit.Tensor, kvit.Tensor]:
        """q, k and v of a copy: slices of one tensor [tokens, heads, head_dim]."""
        base, dtype = self._packed[copy], dtypes.dtype_of(self.setting.dtype)
        head = dtype.bytes_for(self.setting.head_dim)
        strides = (self._shape[1] * head, head, dtype.bits // 8)
        found = []
        first = 0
        for heads in (self.setting.query_heads, self.setting.kv_heads, self.setting.kv_heads):
            shape = (self.cell.total, heads, self.setting.head_dim)
            pointer = base.pointer + first * head
            found.append(kvit.Tensor.from_pointer(pointer, shape, dtype, base.device, strides=strides, owner=base))
            first += heads
        return tuple(found)

    def outputs(self, copy: int) -> tuple[kvit.Tensor, kvit.Tensor]:
        """Where the gathered k and v of a copy go."""
        return self.gathered[copy][0], self.gathered[copy][1]

    def poison(self, copy: int) -> None:
        """Fill a copy's cache, and what is gathered, with NaN."""
        for buffer in (*self._pools[copy], self.gathered[copy], self.q_out):
            if buffer is not None:
                buffer.fill_bytes(0xFF, self.stream)

    def check_appended(self, copy: int, rope: kvit.Rope | None, q_out: kvit.Buffer | None) -> None:
        """Compare what an append of the copy's rows left with the reference, sequence by sequence. Raises Mismatch."""
        pools = [None if buffer is None else buffer.numpy() for buffer in self._pools[copy]]
        rotation = None if rope is None else reference.Rotation(rope.steps, rope.interleaved, rope.attention_factor)
        for sequence, (q, k, v) in self._samples(copy):
            wanted, pages = self._reference(sequence)
            table = reference.Table([np.arange(len(pages))], [self.lengths[sequence]])
            reference.append(wanted, table, k, v, [len(k)], rotation=rotation)
            for name, found in zip(("k", "v", "k_params", "v_params"), pools, strict=True):
                if found is not None:
                    where = f"{name} of sequence {sequence}, {self.cell}"
                    expect_same(where, found[pages], getattr(wanted, name))
            if q_out is not None:
                assert rotation is not None
                turned = reference.rotate(q, reference.token_positions(table, [len(q)]), rotation)
                rows = self._rows_of(sequence)
                expect_same(f"q_out of sequence {sequence}, {self.cell}", q_out.numpy()[rows], turned)

    def check_gathered(self, copy: int) -> None:
        """Compare what a gather found with what the reference decodes of the copy's rows. Raises Mismatch."""
        gathered = self.gathered[copy].numpy()
        for sequence, (_, k, v) in self._samples(copy):
            for side, (name, rows) in enumerate(zip(self.cell.stored, (k, v), strict=True)):
                codec = reference.codec_of(name)
                wanted = codec.decode(*codec.encode(rows), rows.dtype)
                where = f"{'kv'[side]} gathered of sequence {sequence}, {self.cell}"
                expect_same(where, gathered[side, self._rows_of(sequence)], wanted)

    def _samples(self, copy: int) -> Iterator[tuple[int, list[NDArray]]]:
        """The first and the last sequence, with their rows q, k, v on the host."""
        row_bytes = self._packed[copy].nbytes // self.cell.total
        dtype = dtypes.numpy_dtype(dtypes.dtype_of(self.setting.dtype))
        splits = [self.setting.query_heads, self.setting.query_heads + self.setting.kv_heads]
        for sequence in sorted({0, self.cell.sequences - 1}):
            rows = self._rows_of(sequence)
            packed = self._packed[copy][rows.start * row_bytes : rows.stop * row_bytes].numpy()
            yield sequence, np.split(packed.view(dtype).reshape(-1, *self._shape[1:]), splits, axis=1)

    def _rows_of(self, sequence: int) -> slice:
        return slice(sequence * self.cell.tokens, (sequence + 1) * self.cell.tokens)

    def _reference(self, sequence: int) -> tuple[reference.Cache, NDArray[np.int32]]:
        """A poisoned cache of a sequence's pages alone, and which these are."""
        pages, setting = self.pages[sequence], self.setting
        dtype = dtypes.numpy_dtype(dtypes.dtype_of(setting.dtype))
        cache = reference.Cache.poisoned(
            len(pages), setting.page_size, setting.kv_heads, setting.head_dim,
            dtype=dtype, k=self.cell.stored[0], v=self.cell.stored[1], layout=self.cell.layout,
        )  # fmt: skip
        return cache, pages

    def _make_pools(self, pages: int) -> list[kvit.Buffer | None]:
        """K, V and their parameters, those where the codec has any of its own."""
        setting, device = self.setting, self.stream.device
        inner = (setting.page_size, setting.kv_heads) if self.cell.layout == "NHD" else (
            setting.kv_heads, setting.page_size)  # fmt: skip
        sides = [codecs.codec_of(name) for name in self.cell.stored]
        data = []
        for side in sides:
            packs = side.dtype.bits < 8  # two to a byte, as the reference holds them
            row = side.dtype.bytes_for(setting.head_dim) if packs else setting.head_dim
            dtype = "uint8" if packs else side.dtype
            data.append(kvit.Buffer.empty((pages, *inner, row), dtype, device, self.stream))
        params = [
            kvit.Buffer.empty((pages, *inner, 2), setting.dtype, device, self.stream) if side.params == "pair" else None
            for side in sides
        ]
        return [*data, *params]

    def _view(self, pools: list[kvit.Buffer | None]) -> kvit.CacheView:
        k, v, k_params, v_params = pools
        return kvit.CacheView(
            k, v, layout=self.cell.layout, kv=self.cell.stored, k_params=k_params, v_params=v_params,
            dtype=self.setting.dtype,
        )  # fmt: skip

    def _integers(self, numbers: object) -> kvit.Buffer:
        return kvit.Buffer.from_numpy(np.asarray(numbers, np.int32), self.stream.device, self.stream)


Call = Callable[[int], None]
"""One call of what is timed, over the memory of one copy."""
