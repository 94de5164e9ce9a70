"""Caches of support.appends in PyTorch's tensors: the same bytes, for kvit.torch and the reference side by side."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import kvit.torch
from kvit import reference
from support.appends import Setup
from support.caches import NO_PAGE, parameters_of

ONE_NEW = [37, 3, 1, 20]  # lengths of sequences that each have a new token


def to_torch(array: np.ndarray, device: str = "host") -> torch.Tensor:
    """A copy of the array on the device; ml_dtypes' types become PyTorch's."""
    place = "cpu" if device == "host" else device
    array = np.ascontiguousarray(array)
    if array.dtype.name in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
        raw = torch.from_numpy(array.view(f"u{array.itemsize}").copy())
        return raw.to(place).view(getattr(torch, array.dtype.name))
    return torch.from_numpy(array.copy()).to(place)


def to_numpy(tensor: torch.Tensor, dtype: Any) -> np.ndarray:
    """Its bytes as numpy's or ml_dtypes' elements."""
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy().view(dtype)


class TorchCase(Setup):
    """A cache twice: in the reference's words, full of poison, and `tensors` of the same bytes in PyTorch."""

    def __init__(self, rng: np.random.Generator, pair: Any = (None, None), **shape: Any):
        super().__init__(rng, pair, **shape)
        self.pools = {name: to_torch(array, self.device) for name, array in self.host.items()}
        names = tuple(codec.name for codec in self.view.codecs)
        words = parameters_of(names, self.pools)
        self.tensors = kvit.torch.CacheTensors(
            self.pools["k"], self.pools["v"], layout=self.cache.layout, kv=names, **words
        )
        slots = np.full((len(self.table.lengths), 4), NO_PAGE, np.int32)
        for row, pages in zip(slots, self.table.pages, strict=True):
            row[: len(pages)] = pages
        lengths = np.array(self.table.lengths, np.int32)
        self.dense = kvit.torch.TableTensors(self.put(slots), self.put(lengths))
        self.ragged = kvit.torch.TableTensors(
            self.put(np.concatenate(self.table.pages).astype(np.int32)),
            self.put(lengths),
            self.put(np.cumsum([0, *map(len, self.table.pages)]).astype(np.int32)),
        )

    def put(self, array: np.ndarray) -> torch.Tensor:
        """A copy in PyTorch."""
        return to_torch(array, self.device)

    def indptr(self, counts: Any) -> torch.Tensor:
        """Where each sequence's rows begin."""
        return self.put(np.cumsum([0, *counts]).astype(np.int32))

    def fill(self) -> None:
        """Random rows for all tokens of all sequences, in both caches: by the reference alone."""
        k, v = self.rows(self.table.lengths)
        reference.append(self.cache, self.table, k, v, self.table.lengths)
        for name, pool in self.pools.items():
            pool.copy_(self.put(self.host[name]))

    def assert_pools_are_the_references(self) -> None:
        """Every byte."""
        for name, pool in self.pools.items():
            want = self.host[name]
            np.testing.assert_array_equal(to_numpy(pool, np.uint8).ravel(), want.view(np.uint8).ravel(), err_msg=name)
