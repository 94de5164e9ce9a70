"""The arguments of one cell of the decode benchmark, and the proof that what is timed computes the right thing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from arena import Arena, Part, Pools, plan
from cells import Cell
from numpy.typing import NDArray

import kvit
from kvit import dtypes, reference
from kvit._cli.compare import CODED_SCORE_BOUND, LSE_BOUND, attention_bound, expect, expect_close
from kvit.codecs import Codec

_CHECKED_SCORES = 1 << 15  # (token, query head) pairs of a sequence that the reference looks at; at least one KV head's
_UNUSED_SLOT = 0x7F7F7F7F
FLOAT8_SCALES = (0.5, 1.0)
"""Of K and V. Not 1 for K, so that a scale that is forgotten is noticed; 1 for V, which costs some peers a kernel."""


@dataclass
class Inputs:
    """Caches that calls rotate over, all with the same page table, as the layers of a model have it."""

    cell: Cell
    arena: Arena
    stream: kvit.Stream
    pools: list[Pools]
    pages: list[NDArray[np.int32]]  # of each sequence, in random order
    numbers: NDArray  # q on the host
    q: kvit.Buffer
    out: kvit.Buffer
    lse: kvit.Buffer
    table: kvit.PageTable
    scales: tuple[kvit.Buffer, kvit.Buffer]

    @classmethod
    def make(cls, cell: Cell, arena: Arena, stream: kvit.Stream, rng: np.random.Generator) -> Inputs:
        """Random pages and queries on the stream's device; the arena was made for the cell, too."""
        device, slots = stream.device, cell.slots()
        pages = np.split(rng.permutation(int(slots.sum())).astype(np.int32), np.cumsum(slots)[:-1])
        numbers = rng.standard_normal((cell.batch, cell.query_heads, cell.head_dim), np.float32)
        numbers = numbers.astype(dtypes.numpy_dtype(cell.dtype))
        scales = tuple(kvit.Buffer.from_numpy(np.array(x, np.float32), device, stream) for x in FLOAT8_SCALES)
        return cls(
            cell,
            arena,
            stream,
            plan(cell),
            pages,
            numbers,
            kvit.Buffer.from_numpy(numbers, device, stream),
            kvit.Buffer.empty(numbers.shape, cell.dtype, device, stream),
            kvit.Buffer.empty(numbers.shape[:2], "float32", device, stream),
            kvit.PageTable(
                kvit.Buffer.from_numpy(dense(pages, _UNUSED_SLOT), device, stream),
                lengths=kvit.Buffer.from_numpy(cell.tokens(), device, stream),
            ),
            scales,
        )

    def views(self) -> list[kvit.CacheView]:
        """Every cache as kvit reads it."""
        return [self._view(pools) for pools in self.pools]

    def shape(self, elements: int) -> tuple[int, int, int, int]:
        """Of a pool with rows of so many elements, in the cell's layout."""
        cell = self.cell
        inner = (cell.page_size, cell.kv_heads) if cell.layout == "NHD" else (cell.kv_heads, cell.page_size)
        return (sum(map(len, self.pages)), *inner, elements)

    def poison(self) -> None:
        """Fill the outputs with NaN."""
        self.out.fill_bytes(0xFF, self.stream)
        self.lse.fill_bytes(0xFF, self.stream)

    def check(self, copy: int, out: NDArray, lse: NDArray | None) -> None:
        """Compare a few sequences of a result over cache `copy` with the reference. Raises Mismatch.

        Of long sequences a few heads; other copies look at other heads. The rest must at least be numbers.
        """
        cell, group = self.cell, self.cell.group
        expect(bool(np.isfinite(out.astype(np.float32)).all()), f"{cell}: not all of the output is finite numbers")
        lengths = cell.tokens()
        is_coded = any(codec.bits < 16 for codec in self._stores)
        sampled = {0, cell.batch // 2, cell.batch - 1, int(lengths.argmax()), int(lengths.argmin())}
        for i, sequence in enumerate(sorted(sampled)):
            scores = group * max(1, int(lengths[sequence]))  # of a KV head
            count = max(1, min(cell.kv_heads, _CHECKED_SCORES // scores))
            first = (3 * i + 5 * copy) % (cell.kv_heads - count + 1)
            k, _ = self._rows(0, copy, sequence, slice(first, first + count))
            v, parts = self._rows(1, copy, sequence, slice(first, first + count))
            heads = slice(first * group, (first + count) * group)
            q, rows = self.numbers[sequence : sequence + 1, heads], (slice(sequence, sequence + 1), heads)
            state = reference.attention(q, k, v)
            magnitude = reference.attention(q, k, parts).out
            bound = attention_bound(magnitude, q.dtype) + is_coded * CODED_SCORE_BOUND * 2 * magnitude
            where = f"of sequence {sequence}, KV heads {first} to {first + count - 1}"
            expect_close(f"{cell}, out {where}", out[rows], state.out, bound)
            if lse is not None:
                lse_bound = CODED_SCORE_BOUND if is_coded else LSE_BOUND
                expect_close(f"{cell}, lse {where}", lse[rows], state.lse, lse_bound)

    @cached_property
    def _stores(self) -> tuple[reference.Codec, reference.Codec]:
        """Codecs of K and V, as the reference defines them."""
        k, v = (reference.codec_of(codec.name) for codec in self.cell.codecs)
        return k, v

    def _view(self, pools: Pools) -> kvit.CacheView:
        cell = self.cell
        extras = {}
        for side, codec, params, scale in zip("kv", cell.codecs, pools[2:], self.scales, strict=True):
            if params is not None:
                extras[f"{side}_params"] = self._tensor(params, self.shape(2), cell.dtype)
            elif codec.params == "scale":
                extras[f"{side}_scale"] = scale
        data = (
            self._tensor(part, self.shape(_elements(codec, cell)), _memory_dtype(codec))
            for part, codec in zip(pools[:2], cell.codecs, strict=True)
        )
        names = tuple(codec.name for codec in cell.codecs)
        return kvit.CacheView(*data, layout=cell.layout, kv=names, dtype=cell.dtype, **extras)

    def _tensor(self, part: Part, shape: tuple[int, ...], dtype: dtypes.Dtype | str) -> kvit.Tensor:
        buffer = self.arena.buffer(part)
        return kvit.Tensor.from_pointer(buffer.pointer, shape, dtype, buffer.device, owner=buffer)

    def _rows(self, side: int, copy: int, sequence: int, heads: slice) -> tuple[NDArray, NDArray]:
        """K (side 0) or V (1) of some heads of a sequence, [tokens, heads, head_dim], and |what it is the sum of|.

        The second bounds rounding: an integer codec adds scale * code and zero, each of which may be the larger.
        """
        cell, store = self.cell, self._stores[side]
        codec, params_part = cell.codecs[side], self.pools[copy][2 + side]
        elements = _elements(codec, cell)
        dtype = dtypes.numpy_dtype(dtypes.dtype_of(_memory_dtype(codec)))
        data = self._tokens(self.pools[copy][side], dtype, elements, sequence, heads)
        if params_part is None:
            scale = FLOAT8_SCALES[side] if codec.params == "scale" else None
            rows = store.decode(data, None if scale is None else np.full(data.shape[:-1], scale, np.float32))
            return rows, np.abs(rows)
        params = self._tokens(params_part, self.numbers.dtype, 2, sequence, heads)
        rows, zero = store.decode(data, params), params[..., 1:].astype(np.float64)
        return rows, np.abs(rows - zero) + np.abs(zero)

    def _tokens(self, part: Part, dtype: np.dtype, elements: int, sequence: int, heads: slice) -> NDArray:
        """Rows of a sequence in one pool, page by page, [tokens, heads, elements]."""
        num_pages, *inner, _ = self.shape(elements)
        page_bytes = part.num_bytes // num_pages
        pages = []
        for page in map(int, self.pages[sequence]):
            rows = self.arena.read(part, page * page_bytes, page_bytes).view(dtype).reshape(*inner, elements)
            pages.append(rows[:, heads] if self.cell.layout == "NHD" else rows[heads].swapaxes(0, 1))
        count = int(self.cell.tokens()[sequence])
        return np.concatenate(pages)[:count] if pages else np.empty((0, heads.stop - heads.start, elements), dtype)


def dense(pages: list[NDArray[np.int32]], unused: int) -> NDArray[np.int32]:
    """Pages of each sequence as rows of a table [sequences, slots]; `unused` in slots past a sequence's last."""
    table = np.full((len(pages), max(map(len, pages))), unused, np.int32)
    for row, ids in zip(table, pages, strict=True):
        row[: len(ids)] = ids
    return table


def _memory_dtype(codec: Codec) -> dtypes.Dtype | str:
    """Of a pool's elements in memory: int4 is kept as bytes."""
    return "uint8" if codec.name == "int4" else codec.dtype


def _elements(codec: Codec, cell: Cell) -> int:
    """Of a row in memory."""
    return cell.row_bytes(codec) * 8 // dtypes.dtype_of(_memory_dtype(codec)).bits
