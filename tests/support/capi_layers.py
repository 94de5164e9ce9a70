"""A kvit_cache of several layers through the table of C, beside the kvit.PagedCache of which it must have the bits."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from ctypes import POINTER, byref, c_int64, c_void_p, pointer
from typing import Any

import numpy as np
import pytest

import kvit
from support import capi
from support.caches import BFLOAT16, to_device

PAGES, PAGE_SIZE, KV_HEADS, HEAD_DIM, QUERY_HEADS = 12, 4, 2, 64, 8


def given(array: Any) -> Any:
    """The address of the kvit_tensor of an array, or NULL."""
    return None if array is None else pointer(capi.tensor(array))


def handles(sequences: list[c_void_p]) -> Any:
    return (c_void_p * len(sequences))(*[sequence.value for sequence in sequences])


def numbers(counts: list[int] | None) -> Any:
    return None if counts is None else (c_int64 * len(counts))(*counts)


def specs(*fields: dict[str, Any]) -> dict[str, Any]:
    """Fields of kvit_cache_options for layers that differ."""
    array = (capi.LayerSpec * len(fields))(
        *[capi.LayerSpec(**({"size": ctypes.sizeof(capi.LayerSpec)} | each)) for each in fields]
    )
    return {"specs": array, "num_specs": len(fields)}


class LayeredCache:
    """The two caches, and calls that both get.

    fields  of kvit_cache_options, besides the shape
    words   arguments of kvit.PagedCache that mean the same
    """

    def __init__(self, api: capi.Api, fields: dict[str, Any], words: dict[str, Any], device: str = "host"):
        device_type, device_id = (1, 0) if device == "host" else (2, int(device[5:]))
        shape = {"pages": PAGES, "page_size": PAGE_SIZE, "kv_heads": KV_HEADS, "head_dim": HEAD_DIM}
        self.api, self.device = api, device
        self.handle = api.make(
            "cache_create",
            capi.options(capi.CacheOptions, device_type=device_type, device_id=device_id, **(shape | fields)),
        )
        self.python = kvit.PagedCache(**(shape | words), device=device)
        self.mine: list[c_void_p] = []
        self.theirs: list[Any] = []
        self.steps: list[c_void_p] = []

    def sequence(self) -> int:
        """A new sequence in both caches: its index."""
        self.mine.append(self.api.make("sequence_create", self.handle))
        self.theirs.append(self.python.sequence())
        return len(self.mine) - 1

    def fork(self, index: int) -> int:
        self.mine.append(self.api.make("sequence_fork", self.mine[index]))
        self.theirs.append(self.theirs[index].fork())
        return len(self.mine) - 1

    def rows(self, rng: np.random.Generator, layer: int, count: int) -> list[Any]:
        """K and V of so many tokens of a layer, on the device."""
        of = self.python.layer(layer)
        dims = [of.head_dim] if of.shares_kv else [of.head_dim, of.v_dim]
        made = [rng.standard_normal((count, of.kv_heads, dim)).astype(BFLOAT16) for dim in dims]
        return [*(to_device(x, self.device) for x in made), *([None] if of.shares_kv else [])]

    def queries(self, rng: np.random.Generator, layer: int, count: int, heads: int = QUERY_HEADS) -> Any:
        shape = (count, heads, self.python.layer(layer).head_dim)
        return to_device(rng.standard_normal(shape).astype(BFLOAT16), self.device)

    def outputs(self, layer: int, count: int, heads: int = QUERY_HEADS) -> tuple[Any, Any]:
        """out and lse, of NaN."""
        of = self.python.layer(layer)
        out = to_device(np.full((count, heads, of.v_dim), np.nan, BFLOAT16), self.device)
        return out, to_device(np.full((count, heads), np.nan, np.float32), self.device)

    def chosen(self, indices: list[int]) -> tuple[Any, Any, int]:
        return self.handle, handles([self.mine[i] for i in indices]), len(indices)

    def step(self, indices: list[int], new_tokens: list[int] | None = None) -> tuple[c_void_p, Any]:
        """A step of both."""
        handle = c_void_p()
        self.api.step_create(*self.chosen(indices), numbers(new_tokens), None, byref(handle))
        self.steps.append(handle)
        return handle, self.python.step([self.theirs[i] for i in indices], new_tokens or 1)

    def append_all(self, rng: np.random.Generator, indices: list[int], counts: list[int]) -> None:
        """New tokens in all layers of both, of the same rows."""
        rows = [self.rows(rng, layer, sum(counts)) for layer in range(self.python.num_layers)]
        k, v = zip(*rows, strict=True)
        tensors = [(POINTER(capi.Tensor) * len(side))(*map(given, side)) for side in (k, v)]
        self.api.cache_append_layers(*self.chosen(indices), *tensors, len(rows), numbers(counts), None)
        seqs = [self.theirs[i] for i in indices]
        both = (k, v) if len(rows) > 1 else (k[0], v[0])
        self.python.append(seqs, *both, new_tokens=counts)

    def attend(
        self, rng: np.random.Generator, layer: int, indices: list[int], options: Any = None, **words: Any
    ) -> np.ndarray:
        """Attention of a token of each sequence to a layer: of both, compared bit for bit."""
        q = self.queries(rng, layer, len(indices))
        out, lse = self.outputs(layer, len(indices))
        self.api.layer_attention(
            self.handle, layer, *self.chosen(indices)[1:], given(q), given(out), given(lse), None, options, None
        )
        self.api.cache_check(self.handle, None, None)
        seqs = [self.theirs[i] for i in indices]
        wanted = kvit.attention(q, self.python.layer(layer), seqs, return_lse=True, **words)
        for mine, theirs in zip((out, lse), wanted, strict=True):
            same(mine.numpy(), theirs.numpy())
        return out.numpy()

    def held(self, layer: int, index: int) -> list[np.ndarray]:
        """K and V of a sequence in a layer, through layer_gather; compared with those of Python."""
        of = self.python.layer(layer)
        count = self.length(index)
        out = [to_device(np.full((count, of.kv_heads, dim), np.nan, BFLOAT16), self.device)
               for dim in (of.head_dim, of.v_dim)]  # fmt: skip
        if of.shares_kv:
            out[1] = None
        self.api.layer_gather(self.handle, layer, *self.chosen([index])[1:], given(out[0]), given(out[1]), 0, None)
        wanted = of.gather([self.theirs[index]])[:2]
        found = [x.numpy() for x in out if x is not None]
        for mine, theirs in zip(found, wanted, strict=False):
            same(mine, theirs.numpy())
        return found

    def length(self, index: int) -> int:
        return self.api.ask("sequence_query", self.mine[index], capi.SequenceInfo).length

    def check(self) -> None:
        """Both caches have the same tokens in the same pages, and as many are free."""
        assert [self.length(i) for i in range(len(self.mine))] == [len(seq) for seq in self.theirs]
        assert self.info().num_free_pages == self.python.num_free_pages
        for layer in range(self.python.num_layers):
            for index in range(len(self.mine)):
                self.held(layer, index)

    def info(self) -> capi.CacheInfo:
        return self.api.ask("cache_query", self.handle, capi.CacheInfo)

    def layer_info(self, layer: int) -> capi.LayerInfo:
        info = capi.LayerInfo(ctypes.sizeof(capi.LayerInfo))
        self.api.layer_query(self.handle, layer, byref(info))
        return info

    def close(self) -> None:
        for name, made in (("step_destroy", self.steps), ("sequence_destroy", self.mine)):
            for handle in made:
                getattr(self.api.table, name)(handle)  # some are gone already
        assert self.info().num_free_pages == PAGES
        self.api.cache_destroy(self.handle)


def same(mine: np.ndarray, theirs: np.ndarray) -> None:
    """Bit for bit."""
    assert mine.shape == theirs.shape
    np.testing.assert_array_equal(mine.view(np.uint8), theirs.view(np.uint8))


@contextlib.contextmanager
def refused(status: str, words: str) -> Iterator[None]:
    """A block whose call is refused with this status, in these words."""
    with pytest.raises(capi.Refused, match=words) as error:
        yield
    assert error.value.status == status
