"""Caches of any codecs and layout, full of rows, in the reference's words and on a device: for operations on pages."""

from __future__ import annotations

from typing import Any

import numpy as np

import kvit
from kvit import reference
from support.caches import to_device, view_like

_POOLS = ("k", "v", "k_params", "v_params")


class Stored:
    """One cache twice: `cache` in numpy, `view` of a copy on the device."""

    def __init__(
        self, cache: reference.Cache, dtype: np.dtype, device: str, bases: dict[str, np.ndarray] | None = None
    ):
        """`bases`: of pools that are parts of larger arrays, those arrays."""
        self.cache, self.dtype, self.device = cache, dtype, device
        self.names = cache.k_codec.name, cache.v_codec.name
        self.host = {name: array for name in _POOLS if (array := getattr(cache, name)) is not None}
        bases = bases or {}
        copies = {id(base): to_device(base, device) for base in bases.values()}
        self.bases = {name: bases.get(name, array) for name, array in self.host.items()}
        self.buffers = {
            name: copies[id(base)] if name in bases else to_device(base, device) for name, base in self.bases.items()
        }
        parts = {
            name: view_like(self.buffers[name], self.bases[name], array) if name in bases else self.buffers[name]
            for name, array in self.host.items()
        }
        extras = {}
        for side, codec in (("k", cache.k_codec), ("v", cache.v_codec)):
            if f"{side}_params" in parts:
                extras[f"{side}_{'scale' if codec.is_scaled else 'params'}"] = parts[f"{side}_params"]
        self.view = kvit.CacheView(
            parts["k"], parts["v"], layout=cache.layout, kv=self.names, dtype=dtype.name, **extras
        )

    def assert_same(self) -> None:
        """Every byte on the device is the reference's."""
        for name, base in self.bases.items():
            got = self.buffers[name].numpy()
            np.testing.assert_array_equal(got.view(np.uint8), base.view(np.uint8), err_msg=name)


def new_stored(
    pair: tuple[str, str], dtype: np.dtype, device: str, *, pages: int = 5, page_size: int = 3, kv_heads: int = 2,
    head_dim: int = 64, layout: str = "NHD", scales: tuple[Any, Any] | None = None,
) -> Stored:  # fmt: skip
    """A poisoned cache. float8 has a scale for each head, unless `scales` says otherwise."""
    if scales is None:
        each = np.array([0.02, 0.03, 0.05, 0.07][:kv_heads], np.float32)
        scales = tuple(each if name.startswith("float8") else None for name in pair)
    cache = reference.Cache.poisoned(
        pages, page_size, kv_heads, head_dim, dtype=dtype, k=pair[0], v=pair[1], layout=layout,
        k_scale=scales[0], v_scale=scales[1],
    )  # fmt: skip
    return Stored(cache, dtype, device)


def full_stored(rng: np.random.Generator, pair: tuple[str, str], dtype: np.dtype, device: str, **shape: Any) -> Stored:
    """The same with random rows everywhere, outliers and constant rows among them."""
    empty = new_stored(pair, dtype, device, **shape)
    fill(rng, empty.cache, dtype)
    return Stored(empty.cache, dtype, device)


def fill(rng: np.random.Generator, cache: reference.Cache, dtype: np.dtype) -> None:
    """Random rows for all places of a cache."""
    pool = cache.stores()[0]
    tokens = cache.num_pages * cache.page_size
    rows = rng.standard_normal((2, tokens, pool.data.shape[2], pool.head_dim))
    rows[:, 1::7] *= 30
    rows[:, 2::11] = rows[:, 2::11, :, :1]
    table = reference.Table([np.arange(cache.num_pages)], [tokens])
    reference.append(cache, table, *rows.astype(dtype), [tokens])
