"""The memory of one cell of the decode benchmark, and the proof that what is timed computes the right thing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from cells import Cell, Setting
from measure import RandomMemory
from numpy.typing import NDArray

import kvit
from kvit import dtypes, reference
from kvit._cli.compare import LSE_BOUND, attention_bound, expect_close

_SAMPLES = 3  # sequences of a cell that are compared with the reference


@dataclass
class Inputs:
    """Caches that calls rotate over, all with the same page table: pages of all sequences in random order."""

    cell: Cell
    setting: Setting
    stream: kvit.Stream
    pools: list[tuple[kvit.Buffer, kvit.Buffer]]  # K and V of each cache, uint8 [bytes]
    pages: NDArray[np.int32]  # [batch, slots]
    numbers: NDArray  # q on the host
    q: kvit.Buffer
    out: kvit.Buffer
    lse: kvit.Buffer
    table: kvit.PageTable

    @classmethod
    def make(
        cls,
        cell: Cell,
        setting: Setting,
        stream: kvit.Stream,
        memory: RandomMemory,
        rng: np.random.Generator,
        copies: int | None = None,
    ) -> Inputs:
        """Random caches and queries on the stream's device. `copies` caches; as many as the setting says if absent."""
        device = stream.device
        slots = setting.slots(cell)
        pages = rng.permutation(cell.batch * slots).astype(np.int32).reshape(cell.batch, slots)
        page = pool_shape(cell, setting)
        num_bytes = dtypes.dtype_of(setting.dtype).bytes_for(int(np.prod(page)))
        pools = [(memory.bytes(num_bytes), memory.bytes(num_bytes)) for _ in range(copies or setting.copies(cell))]
        dtype = dtypes.numpy_dtype(dtypes.dtype_of(setting.dtype))
        numbers = rng.standard_normal((cell.batch, cell.query_heads, setting.head_dim)).astype(dtype)
        lengths = np.full(cell.batch, cell.context, np.int32)
        return cls(
            cell,
            setting,
            stream,
            pools,
            pages,
            numbers,
            kvit.Buffer.from_numpy(numbers, device, stream),
            kvit.Buffer.empty(numbers.shape, setting.dtype, device, stream),
            kvit.Buffer.empty(numbers.shape[:2], "float32", device, stream),
            kvit.PageTable(
                kvit.Buffer.from_numpy(pages, device, stream), lengths=kvit.Buffer.from_numpy(lengths, device, stream)
            ),
        )

    def views(self) -> list[kvit.CacheView]:
        """Every cache as kvit reads it."""
        shape = pool_shape(self.cell, self.setting)
        return [
            kvit.CacheView(
                *(
                    kvit.Tensor.from_pointer(pool.pointer, shape, self.setting.dtype, pool.device, owner=pool)
                    for pool in pools
                ),
                layout=self.setting.layout,
            )
            for pools in self.pools
        ]

    def poison(self) -> None:
        """Fill the outputs with NaN."""
        self.out.fill_bytes(0xFF, self.stream)
        self.lse.fill_bytes(0xFF, self.stream)

    def check(self, copy: int, out: NDArray, lse: NDArray | None) -> None:
        """Compare a few sequences of a result over cache `copy` with the reference. Raises Mismatch."""
        sampled = sorted({0, self.cell.batch // 2, self.cell.batch - 1})[:_SAMPLES]
        for sequence in sampled:
            k, v = (self._tokens(pool, sequence) for pool in self.pools[copy])
            q = self.numbers[sequence : sequence + 1]
            state = reference.attention(q, k, v)
            bound = attention_bound(reference.attention(q, k, np.abs(v)).out, q.dtype)
            expect_close(f"{self.cell}, out of sequence {sequence}", out[sequence : sequence + 1], state.out, bound)
            if lse is not None:
                found = lse[sequence : sequence + 1]
                expect_close(f"{self.cell}, lse of sequence {sequence}", found, state.lse, LSE_BOUND)

    def _tokens(self, pool: kvit.Buffer, sequence: int) -> NDArray:
        """K or V [context, kv_heads, head_dim] of a sequence, page by page from the device."""
        shape = pool_shape(self.cell, self.setting)[1:]
        page_bytes = pool.nbytes // self.pages.size
        pages = [pool[page * page_bytes : (page + 1) * page_bytes].numpy() for page in map(int, self.pages[sequence])]
        rows = np.stack(pages).view(self.numbers.dtype).reshape(-1, *shape)
        if self.setting.layout == "HND":
            rows = rows.swapaxes(1, 2)
        return rows.reshape(-1, self.cell.kv_heads, self.setting.head_dim)[: self.cell.context]


def pool_shape(cell: Cell, setting: Setting) -> tuple[int, int, int, int]:
    """Of K or V of a cell, in the setting's layout."""
    inner = (setting.page_size, cell.kv_heads) if setting.layout == "NHD" else (cell.kv_heads, setting.page_size)
    return (cell.batch * setting.slots(cell), *inner, setting.head_dim)
