"""Paged caches for tests: the same bytes in numpy and on a device, poisoned all around."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

import kvit
from kvit import reference
from support import tolerances

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOAT16 = np.dtype(np.float16)
NO_PAGE = 0x7F7F7F7F  # stands in slots that must not be read


def poisoned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array of 0xFF bytes: NaN in every float type."""
    array = np.empty(shape, dtype)
    array.view(np.uint8)[...] = 0xFF
    return array


def parameters_of(names, pools):
    """Arguments of a CacheView: parameters of codecs by these names, (scale, zero) or float8's scales, out of `pools`
    with the entries k_params and v_params where there are any."""
    return {
        f"{side}_{'scale' if name.startswith('float8') else 'params'}": pools[f"{side}_params"]
        for side, name in zip("kv", names, strict=True)
        if f"{side}_params" in pools
    }


def to_device(array: np.ndarray, device: str) -> kvit.Buffer:
    """A copy of the array on the device."""
    return kvit.Buffer.from_numpy(np.ascontiguousarray(array), device)


def view_like(buffer: kvit.Buffer, base: np.ndarray, part: np.ndarray) -> kvit.Tensor:
    """The part of `buffer`, a copy of `base`, that `part` is of `base`: any strides, on any device."""
    offset = part.__array_interface__["data"][0] - base.__array_interface__["data"][0]
    return kvit.Tensor.from_pointer(
        buffer.pointer + offset, part.shape, buffer.dtype, buffer.device, strides=part.strides, owner=buffer
    )


@dataclass
class Case:
    """One cache, its table, and both in the reference's words."""

    cache: reference.Cache
    table: reference.Table
    view: kvit.CacheView
    page_table: kvit.PageTable
    buffers: tuple[kvit.Buffer, ...]
    device: str

    def queries(self, rng: np.random.Generator, tokens: int, query_heads: int) -> np.ndarray:
        """Random queries that fit the cache."""
        return rng.standard_normal((tokens, query_heads, self.view.head_dim)).astype(self.cache.k.dtype)

    def pools_on_device(self) -> list[np.ndarray]:
        """All bytes of the device's pools."""
        return [buffer.numpy().view(np.uint8) for buffer in self.buffers]

    def expect(self, q: np.ndarray, counts: Any = None, **options: Any) -> tuple[reference.State, np.ndarray]:
        """What attention gives, and how far from it each output may be."""
        state = reference.paged_attention(q, self.cache, self.table, counts, **options)
        positive = reference.Cache(self.cache.k, np.abs(self.cache.v), self.cache.layout)
        magnitude = reference.paged_attention(q, positive, self.table, counts, **options).out
        return state, tolerances.attention_bound(magnitude, q.dtype)


def make_case(
    rng: np.random.Generator,
    lengths: list[int],
    *,
    page_size: int = 16,
    kv_heads: int = 2,
    head_dim: int = 64,
    v_dim: int | None = None,
    dtype: np.dtype = BFLOAT16,
    layout: str = "HND",
    storage: str = "pools",
    table: str = "dense",
    device: str = "host",
    spare_pages: int = 2,
) -> Case:
    """Sequences of random tokens, in pages drawn without order; every byte and table slot beside them is poison.

    storage  "pools": K and V apart; "halves": K and V of a page side by side in one tensor; "padded": rows further
             apart
    table    "dense" or "ragged"
    v_dim    channels of rows of V; head_dim if absent
    """
    slots = [-(-length // page_size) for length in lengths]
    order = rng.permutation(sum(slots) + spare_pages).astype(np.int32)
    pages = np.split(order[: sum(slots)], np.cumsum(slots)[:-1]) if lengths else []
    dims = (head_dim, v_dim or head_dim)
    rows = (page_size, kv_heads) if layout == "NHD" else (kv_heads, page_size)
    if storage == "halves":
        bases = (poisoned((len(order), 2, *rows, head_dim), dtype),)
        k, v = bases[0][:, 0], bases[0][:, 1]
    else:
        padding = 8 if storage == "padded" else 0
        bases = tuple(poisoned((len(order), *rows, dim + padding), dtype) for dim in dims)
        k, v = (base[..., :dim] for base, dim in zip(bases, dims, strict=True))
    cache, plain = reference.Cache(k, v, layout), reference.Table(pages, lengths)
    new = [rng.standard_normal((sum(lengths), kv_heads, dim)).astype(dtype) for dim in dims]
    reference.append(cache, plain, *new, lengths)

    buffers = tuple(to_device(base, device) for base in bases)
    view = kvit.CacheView(
        view_like(buffers[0], bases[0], k), view_like(buffers[-1], bases[-1], v), layout=layout, page_size=page_size
    )
    return Case(cache, plain, view, make_table(pages, lengths, table, device), buffers, device)


def make_table(pages: list[Any], lengths: list[int], form: str, device: str) -> kvit.PageTable:
    """A PageTable on the device; slots that belong to no sequence name no page."""
    held = to_device(np.array(lengths, np.int32), device)
    if form == "ragged":
        indices = np.concatenate([np.empty(0, np.int32), *pages]).astype(np.int32)
        indptr = np.cumsum([0, *map(len, pages)]).astype(np.int32)
        return kvit.PageTable(indptr=to_device(indptr, device), indices=to_device(indices, device), lengths=held)
    dense = np.full((len(pages), max(map(len, pages), default=0) + 1), NO_PAGE, np.int32)
    for row, sequence_pages in zip(dense, pages, strict=True):
        row[: len(sequence_pages)] = sequence_pages
    return kvit.PageTable(to_device(dense, device), lengths=held)


def on_gpu(shape: tuple[int, ...], dtype: str = "bfloat16", device: str = "cuda:0") -> kvit.Tensor:
    """A tensor that says it is on a GPU. Nobody may touch its bytes: there are none."""
    return kvit.Tensor.from_pointer(1 << 20, shape, dtype, device)


def new_cache(device="host", pages=12, page_size=16, kv_heads=2, head_dim=64, **options):
    return kvit.PagedCache(pages, page_size, kv_heads, head_dim, device=device, **options)


def new_tokens(rng, count, kv_heads=2, head_dim=64, dtype=BFLOAT16):
    """k and v of `count` tokens."""
    return rng.standard_normal((2, count, kv_heads, head_dim)).astype(dtype)


def held(cache, seqs):
    """k and v of the sequences, end to end, through gather."""
    k, v, _ = cache.gather(seqs)
    cache.check()
    return k.numpy(), v.numpy()


def assert_cache_attention(cache, seqs, contents, q, counts, **options):
    """kvit.attention on the cache is reference.attention on what each sequence was given."""
    out, lse = kvit.attention(to_device(q, cache.device), cache, seqs, new_tokens=counts, return_lse=True, **options)
    getattr(cache, "cache", cache).check()  # of a layer
    for tokens, (k, v) in zip(reference.token_ranges(counts), contents, strict=True):
        state = reference.attention(q[tokens], k, v, **options)
        magnitude = reference.attention(q[tokens], k, np.abs(v), **options).out
        tolerances.assert_within(out.numpy()[tokens], state.out, tolerances.attention_bound(magnitude, q.dtype))
        tolerances.assert_within(lse.numpy()[tokens], state.lse, tolerances.LSE)
