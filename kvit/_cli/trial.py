"""Random inputs for `kvit selfcheck`: the choices of one trial, and a cache with NaN wherever nothing may be read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import kvit
from kvit import dtypes, reference

_NO_PAGE = 0x7F7F7F7F  # in slots of a table that nothing may read


@dataclass(frozen=True)
class Shape:
    """What kind of cache a check is about."""

    dtype: str
    head_dim: int
    page_size: int
    layout: Literal["NHD", "HND"]

    def __str__(self) -> str:
        return f"{self.dtype}, head_dim {self.head_dim}, pages of {self.page_size}, {self.layout}"


@dataclass
class Trial:
    """One check under way: its device and random numbers, and what it chose, for the report of a failure."""

    device: str
    shape: Shape
    rng: np.random.Generator
    chosen: dict[str, Any] = field(default_factory=dict)

    @property
    def dtype(self) -> np.dtype:
        """Of the cache, as numpy has it."""
        return dtypes.numpy_dtype(dtypes.dtype_of(self.shape.dtype))

    def choose(self, name: str, values: Any) -> Any:
        """One of the values, noted under `name`."""
        self.chosen[name] = values[int(self.rng.integers(len(values)))]
        return self.chosen[name]

    def choose_lengths(self, count: int) -> list[int]:
        """Ragged lengths: none, one token, and around the end of a page are more likely than chance would have them."""
        page = self.shape.page_size
        usual = [0, 1, page - 1, page, page + 1, 3 * page]
        lengths = [
            int(self.rng.integers(1, 300) if self.rng.integers(2) else self.rng.choice(usual)) for _ in range(count)
        ]
        self.chosen["lengths"] = lengths
        return lengths

    def random(self, *shape: int) -> NDArray:
        """Normally distributed numbers of the cache's dtype."""
        return self.rng.standard_normal(shape).astype(self.dtype)

    def upload(self, array: NDArray) -> kvit.Buffer:
        """A copy on the device."""
        return kvit.Buffer.from_numpy(np.ascontiguousarray(array), self.device)

    def poisoned(self, shape: tuple[int, ...], dtype: Any) -> kvit.Buffer:
        """Memory full of 0xFF, NaN in every float type."""
        buffer = kvit.Buffer.empty(shape, dtype, self.device)
        buffer.fill_bytes(0xFF)
        return buffer


@dataclass
class RawCache:
    """Sequences of random tokens in pages without order, on the device and for the reference; all else is NaN."""

    plain: reference.Cache
    pages: list[NDArray]
    lengths: list[int]
    view: kvit.CacheView

    @property
    def table(self) -> reference.Table:
        """The table as the reference has it."""
        return reference.Table(self.pages, self.lengths)

    def page_table(self, trial: Trial) -> kvit.PageTable:
        """The table on the device, dense or ragged."""
        lengths = trial.upload(np.array(self.lengths, np.int32))
        if trial.choose("table", ("dense", "ragged")) == "ragged":
            indptr = np.cumsum([0, *map(len, self.pages)]).astype(np.int32)
            indices = np.concatenate([np.zeros(0, np.int32), *self.pages]).astype(np.int32)
            return kvit.PageTable(indptr=trial.upload(indptr), indices=trial.upload(indices), lengths=lengths)
        dense = np.full((len(self.pages), max(map(len, self.pages)) + 1), _NO_PAGE, np.int32)
        for row, pages in zip(dense, self.pages, strict=True):
            row[: len(pages)] = pages
        return kvit.PageTable(trial.upload(dense), lengths=lengths)


def pool_shape(shape: Shape, pages: int, kv_heads: int) -> tuple[int, ...]:
    """Of K or V of a cache, in its layout."""
    inner = (shape.page_size, kv_heads) if shape.layout == "NHD" else (kv_heads, shape.page_size)
    return (pages, *inner, shape.head_dim)


def raw_cache(trial: Trial, lengths: list[int], kv_heads: int) -> RawCache:
    """Sequences of these lengths, in a cache with two pages that are nobody's."""
    slots = [-(-length // trial.shape.page_size) for length in lengths]
    order = trial.rng.permutation(sum(slots) + 2).astype(np.int32)
    k, v = (np.empty(pool_shape(trial.shape, len(order), kv_heads), trial.dtype) for _ in range(2))
    for pool in (k, v):
        pool.view(np.uint8)[...] = 0xFF
    pages = np.split(order[: sum(slots)], np.cumsum(slots)[:-1])
    plain = reference.Cache(k, v, trial.shape.layout)
    new = trial.random(2, sum(lengths), kv_heads, trial.shape.head_dim)
    reference.append(plain, reference.Table(pages, lengths), *new, lengths)
    view = kvit.CacheView(trial.upload(k), trial.upload(v), layout=trial.shape.layout)
    return RawCache(plain, pages, lengths, view)
