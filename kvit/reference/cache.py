"""The paged cache and its tables: how rows are stored, and which row of which page holds a token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from .codec import Codec
from .codecs import UNCODED, codec_of
from .float4 import Float4, NvFp4

Layout = Literal["NHD", "HND"]


class Fault(NamedTuple):
    """What is wrong with a page table: the first such thing of each sequence."""

    kind: Literal["page", "length"]
    sequence: int
    slot: int  # place in the sequence's list of pages; 0 for a length
    value: int  # the page id or the length


@dataclass(frozen=True)
class Pool:
    """K or V of every page: what is stored, and how."""

    data: NDArray  # [page, token, head, element] in the codec's data_dtype
    codec: Codec = UNCODED
    params: NDArray | None = None  # Encoded.params of all rows: [page, token, head, 2]; float8: [page, token, head]
    scale: NDArray | None = None  # nvfp4's, [page, token, head]; 1 if absent

    @property
    def head_dim(self) -> int:
        return self.codec.channels(self.data.shape[3])

    def read(self, page: NDArray[np.intp], row: NDArray[np.intp], dtype: DTypeLike | None = None) -> NDArray:
        """Rows [places, head, channel], decoded to `dtype`; if absent, their own where uncoded, and else float64."""
        data = self.data[page, row]
        if dtype is None:
            dtype = data.dtype if self.codec.keeps_values else np.float64
        params = None if self.params is None else self.params[page, row]
        if isinstance(self.codec, NvFp4):
            return self.codec.decode(data, params, dtype, self._scale(page, row))
        return self.codec.decode(data, params, dtype)

    def write(self, page: NDArray[np.intp], row: NDArray[np.intp], x: NDArray) -> None:
        """Encode rows x [places, head, channel] into their places; by the scales that lie there, if it is scaled."""
        scale = self.params[page, row] if self.codec.is_scaled and self.params is not None else self._scale(page, row)
        self.data[page, row], params = self.codec.encode(x, scale)
        if self.params is not None and not self.codec.is_scaled:
            self.params[page, row] = params

    def _scale(self, page: NDArray[np.intp], row: NDArray[np.intp]) -> NDArray | None:
        return None if self.scale is None else self.scale[page, row]


@dataclass(frozen=True)
class Cache:
    """Pages of K and V, each stored by its own codec.

    k, v                NHD: [pages, page_size, kv_heads, elements];  HND: [pages, kv_heads, page_size, elements]; any
                        strides; elements is head_dim, of codecs in 4 bits head_dim / 2
    k_codec, v_codec    how rows are stored; as they are if absent
    k_params, v_params  of int8 and int4: like k or v, with the pair (scale, zero) in T in place of the elements.
                        Of float8: the scales in float32: one, [kv_heads], or like k or v without the elements; 1 if
                        absent. Of nvfp4 and mxfp4: like k or v, with the scales of the blocks in place of the elements
    k_scale, v_scale    of nvfp4: float32, one or [kv_heads]; 1 if absent
    """

    k: NDArray
    v: NDArray
    layout: Layout = "NHD"
    k_codec: Codec = UNCODED
    v_codec: Codec = UNCODED
    k_params: NDArray | None = None
    v_params: NDArray | None = None
    k_scale: NDArray | None = None
    v_scale: NDArray | None = None

    @classmethod
    def poisoned(
        cls,
        pages: int,
        page_size: int,
        kv_heads: int,
        head_dim: int,
        *,
        dtype: DTypeLike,
        k: str | Codec = UNCODED,
        v: str | Codec = UNCODED,
        layout: Layout = "NHD",
        k_scale: ArrayLike | None = None,
        v_scale: ArrayLike | None = None,
    ) -> Cache:
        """A cache without tokens: every byte of it is 0xff, NaN in every float type.

        dtype             T
        k_scale, v_scale  of float8 and nvfp4
        """
        rows = (pages, page_size, kv_heads) if layout == "NHD" else (pages, kv_heads, page_size)
        codecs = [codec_of(name) for name in (k, v)]
        data = [_poison((*rows, codec.row_elements(head_dim)), codec.data_dtype(dtype)) for codec in codecs]
        scales = [None if scale is None else np.asarray(scale, np.float32) for scale in (k_scale, v_scale)]
        params = [
            scale if codec.is_scaled else _poisoned_params(codec, rows, head_dim, dtype)
            for codec, scale in zip(codecs, scales, strict=True)
        ]
        whole = [scale if isinstance(codec, NvFp4) else None for codec, scale in zip(codecs, scales, strict=True)]
        return cls(*data, layout, *codecs, *params, *whole)

    def pools(self) -> tuple[NDArray, NDArray]:
        """The data of K and V as [page, token, head, element] views."""
        return self._tokens_first(self.k), self._tokens_first(self.v)

    def stores(self) -> tuple[Pool, Pool]:
        """K and V with their codecs and parameters, views of this cache."""
        k, v = self.pools()
        k_params, v_params = self._params(k, self.k_params), self._params(v, self.v_params)
        k_scale, v_scale = self._params(k, self.k_scale), self._params(v, self.v_scale)
        return Pool(k, self.k_codec, k_params, k_scale), Pool(v, self.v_codec, v_params, v_scale)

    @property
    def num_pages(self) -> int:
        return self.k.shape[0]

    @property
    def page_size(self) -> int:
        return self.pools()[0].shape[1]

    def _tokens_first(self, x: NDArray) -> NDArray:
        return x if self.layout == "NHD" else x.swapaxes(1, 2)

    def _params(self, data: NDArray, params: NDArray | None) -> NDArray | None:
        if params is None:
            return None
        # One scale, or one per head, is the same for all pages and tokens: a view with strides of zero.
        return self._tokens_first(params) if params.ndim > 1 else np.broadcast_to(params, data.shape[:3])


@dataclass(frozen=True)
class Table:
    """Which pages hold which sequence. Tokens fill the pages in order; slots past the last token are not looked at."""

    pages: Sequence[ArrayLike]  # [sequence][slot] page id; rows may differ in length, or be a dense array
    lengths: Sequence[int]  # [sequence] tokens, those that a call adds or asks about included

    @classmethod
    def from_indptr(cls, indptr: ArrayLike, indices: ArrayLike, lengths: Sequence[int]) -> Table:
        """The ragged form: the pages of sequence s are indices[indptr[s]:indptr[s + 1]]."""
        return cls(np.split(np.asarray(indices), np.asarray(indptr)[1:-1]), lengths)

    def has_room(self, cache: Cache, sequence: int) -> bool:
        """Whether the length is one that the sequence's pages can hold."""
        return 0 <= self.lengths[sequence] <= len(self.pages[sequence]) * cache.page_size

    def fault(self, cache: Cache, sequence: int) -> Fault | None:
        """The first thing wrong with a sequence, or None."""
        if not self.has_room(cache, sequence):
            return Fault("length", sequence, 0, int(self.lengths[sequence]))
        pages = np.asarray(self.pages[sequence])[: -(-self.lengths[sequence] // cache.page_size)]
        wrong = np.flatnonzero((pages < 0) | (pages >= cache.num_pages))
        return Fault("page", sequence, int(wrong[0]), int(pages[wrong[0]])) if len(wrong) else None

    def places(self, cache: Cache, sequence: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """(page, row in the page) of every token of a sequence, in order.

        Token t is row t % page_size of page t // page_size. The page is -1 for a token without a place: the table names
        none that exists.
        """
        slot, row = np.divmod(np.arange(max(0, self.lengths[sequence])), cache.page_size)
        if not self.has_room(cache, sequence):
            return np.full_like(slot, -1), row
        page = np.asarray(self.pages[sequence], np.intp)[slot]
        return np.where(page < cache.num_pages, np.maximum(page, -1), -1), row

    def read(self, cache: Cache, sequence: int, dtype: DTypeLike | None = None) -> tuple[NDArray, NDArray]:
        """k and v [length, kv_heads, head_dim] of a sequence, as Pool.read; NaN for tokens that have no place."""
        page, row = self.places(cache, sequence)
        found = page >= 0
        stored = [pool.read(page[found], row[found], dtype) for pool in cache.stores()]
        k, v = (np.full((len(page), *rows.shape[1:]), np.nan, rows.dtype) for rows in stored)
        k[found], v[found] = stored
        return k, v


def _poisoned_params(codec: Codec, rows: tuple[int, ...], head_dim: int, dtype: DTypeLike) -> NDArray | None:
    if isinstance(codec, Float4):
        return _poison((*rows, codec.param_bytes(head_dim)), codec.scale_dtype)
    return _poison((*rows, 2), dtype) if codec.param_bytes(head_dim) else None


def _poison(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray:
    array = np.empty(shape, dtype)
    array.view(np.uint8)[...] = 0xFF
    return array
