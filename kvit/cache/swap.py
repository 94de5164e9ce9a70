"""Sequences of a PagedCache in host memory: their bytes as they are stored, out of all layers and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from kvit._native.buffer import Buffer
from kvit._native.context import Device
from kvit._native.growth import Growth, check_all
from kvit._native.stream import Stream
from kvit.cache.layer_group import LayerGroup, Part
from kvit.cache.storage import new_pools, upload
from kvit.codecs import Codec
from kvit.errors import DtypeError, ShapeError, refuse_copy
from kvit.layouts.views import CacheView
from kvit.ops.convert import ConvertPages

STAGING_BYTES = 32 << 20
"""Device memory, beside the pool, through which pages pass."""


@dataclass(frozen=True, eq=False)
class SwappedSequence:
    """The tokens of a sequence in host memory, as their cache stored them. Made by PagedCache.swap_out.

    length  tokens
    pages   that they fill in each layer
    pieces  K, V and their parameters of each group of layers, host Buffers [pages of all layers, ...]
    kinds   (layers, page_size, kv_heads, head_dim, layout, storage) and codecs of each group
    """

    length: int
    pages: int
    pieces: list[list[list[Buffer]]]
    kinds: list[tuple[Any, ...]]

    def __len__(self) -> int:
        return self.length

    @property
    def nbytes(self) -> int:
        """Bytes of host memory."""
        return sum(pool.nbytes for group in self.pieces for piece in group for pool in piece)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        refuse_copy(self, "it may be large; cache.swap_in makes as many sequences of it as are wanted")

    def __repr__(self) -> str:
        return f"<SwappedSequence of {self.length} tokens, {self.nbytes} bytes>"


def swapped_out(cache: Any, seq: Any, stream: Stream) -> SwappedSequence:
    """The bytes of a sequence's pages, in host memory when this returns."""
    check_all(cache.pool, (seq,))
    pages, length = list(seq.pages), len(seq)
    found = []
    for group in cache.groups:
        pieces = []
        for ids in _in_pieces(group.bytes, pages):
            staging = _pools_like(group.bytes.view, len(ids))
            listed = upload(ids, stream)
            ConvertPages(group.bytes.view, staging, faults=group.faults)(
                group.bytes.view, staging, source_pages=listed, stream=stream
            )
            pieces.append([_on_host(pool, stream) for pool in _pools_of(staging)])
        found.append(pieces)
    return SwappedSequence(length, len(pages), found, [_kind_of(group) for group in cache.groups])


def swapped_in(cache: Any, swapped: SwappedSequence, stream: Stream) -> Any:
    """A new sequence of the same bytes. Raises CacheFull, ShapeError, DtypeError; nothing has changed then."""
    for i, (group, kind) in enumerate(zip(cache.groups, swapped.kinds, strict=False)):
        if _kind_of(group)[-1] != kind[-1]:
            raise DtypeError(
                f"the sequence was stored as {_words(kind[-1])} and the cache holds {_words(_kind_of(group)[-1])} in "
                f"group {i} of its layers; swap it in before a requantise, or append its tokens anew"
            )
    kinds = [_kind_of(group) for group in cache.groups]
    if kinds != swapped.kinds:
        theirs, ours = ([kind[:-1] for kind in each] for each in (swapped.kinds, kinds))
        raise ShapeError(
            f"the sequence was stored in layers of {theirs} (layers, page_size, kv_heads, head_dim, layout, storage) "
            f"and the cache has {ours}; swap it into a cache of the same layers"
        )
    seq = cache.sequence()
    with Growth(cache.pool, (seq,), swapped.length) as growth:
        [pages] = growth.pages
        for group, pieces in zip(cache.groups, swapped.pieces, strict=True):
            for ids, piece in zip(_in_pieces(group.bytes, pages), pieces, strict=True):
                staging = _pools_like(group.bytes.view, len(ids))
                for pool, rows in zip(_pools_of(staging), piece, strict=True):
                    pool.copy_from(rows, stream)
                listed = upload(ids, stream)
                ConvertPages(staging, group.bytes.view, faults=group.faults)(
                    staging, group.bytes.view, target_pages=listed, stream=stream
                )
        growth.keep()
    return seq


def _in_pieces(part: Part, pages: Iterable[int]) -> Iterator[list[int]]:
    """Lists of pages that pass through the staging memory together."""
    ids, view = part.ids(pages), part.view
    each = max(1, STAGING_BYTES // max(1, view.nbytes // view.num_pages))
    return (ids[i : i + each] for i in range(0, len(ids), each))


def _pools_like(view: CacheView, pages: int) -> CacheView:
    scales = tuple(
        params if codec.params == "scale" and not is_unit else None
        for params, codec, is_unit in zip((view.k_params, view.v_params), view.codecs, view.has_unit_scale, strict=True)
    )
    shape, dims = (pages, view.page_size, view.kv_heads), (view.k_dim, view.v_dim)
    return new_pools(shape, dims, view.layout, view.dtype, view.codecs, (scales[0], scales[1]), Device.of(view.device))


def _pools_of(view: CacheView) -> list[Any]:
    """K, V and the parameters of rows."""
    params = zip((view.k_params, view.v_params), view.codecs, strict=True)
    return [view.k, view.v, *(pool for pool, codec in params if codec.params == "pair")]


def _on_host(pool: Buffer, stream: Stream) -> Buffer:
    if stream.device == "host":
        return pool  # the staging memory itself
    host = Buffer.empty(pool.shape, pool.dtype, "host")
    host.copy_from(pool, stream)
    return host


def _kind_of(group: LayerGroup) -> tuple[Any, ...]:
    view = group.views[0]
    dims = f"{view.dims} of shared rows" if group.kind.shares_kv else view.dims
    return group.count, view.page_size, view.kv_heads, dims, view.layout, group.storage, view.codecs


def _words(sides: tuple[Codec, Codec]) -> str:
    return " and ".join(map(str, sides))
