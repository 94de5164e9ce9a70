"""The memory of a PagedCache: its pools as a CacheView, and small tables sent to the device."""

from __future__ import annotations

from typing import Any

from kvit import codecs
from kvit._checks import VECTOR_BYTES
from kvit._native.buffer import Buffer
from kvit._native.context import Device
from kvit._native.stream import Stream
from kvit._native.tensor import Tensor
from kvit.codecs import Codec
from kvit.dtypes import Dtype
from kvit.layouts.views import CacheView, Layout
from kvit.selection import registry


def new_pools(
    shape: tuple[int, int, int],
    dims: tuple[int, int],
    layout: Layout,
    compute: Dtype,
    sides: tuple[Codec, Codec],
    scales: tuple[Any, Any],
    device: Device,
    *,
    in_one: bool = False,
) -> CacheView:
    """Pools of (pages, page_size, kv_heads) rows of any content, with (of K, of V) channels.

    in_one  a row of V and, right behind it, one of K lie in one piece, as `whole_rows` reads them

    Raises KernelMissing before gigabytes are taken for what no kernel covers.
    """
    pages, page_size, kv_heads = shape
    registry.serves("append", max(dims), variant="simple", dtype=compute.short, kv=codecs.key_of(*sides))
    rows = (pages, page_size, kv_heads) if layout == "NHD" else (pages, kv_heads, page_size)
    if in_one:
        whole = _new_pool(rows, sum(dims), compute, device)
        return CacheView(channels_of(whole, dims[1], sum(dims)), channels_of(whole, 0, dims[1]), layout=layout)
    pools = [_new_pool(rows, dim, codec.dtype, device) for dim, codec in zip(dims, sides, strict=True)]
    params = [Buffer.empty((*rows, 2), compute, device) if codec.params == "pair" else None for codec in sides]
    return CacheView(
        *pools,
        layout=layout,
        kv=sides,
        k_params=params[0],
        v_params=params[1],
        k_scale=scales[0],
        v_scale=scales[1],
        dtype=compute,
    )


def channels_of(rows: Tensor, begin: int, end: int) -> Tensor:
    """Channels [begin, end) of rows of 16-bit numbers, in place; end may lie behind what a slice of rows has."""
    return Tensor.from_pointer(
        rows.pointer + begin * rows.dtype.bits // 8, (*rows.shape[:-1], end - begin), rows.dtype, rows.device,
        strides=rows.strides, readonly=rows.readonly, owner=rows,
    )  # fmt: skip


def whole_rows(parts: CacheView, v_dim: int) -> CacheView:
    """What attention reads of rows that K and V share: K is all of them, V the first v_dim channels.

    parts  what append writes: "K" is the last channels, "V" the others
    """
    first = parts.v
    return CacheView(
        channels_of(first, 0, parts.k_dim + parts.v_dim), channels_of(first, 0, v_dim), layout=parts.layout
    )


def _new_pool(rows: tuple[int, ...], head_dim: int, dtype: Dtype, device: Device) -> Buffer | Tensor:
    """Rows of so many channels, each at a multiple of the bytes that kernels move at a time."""
    row_bytes = dtype.bytes_for(head_dim)
    step = -(-row_bytes // VECTOR_BYTES) * VECTOR_BYTES
    if step == row_bytes:
        return Buffer.empty((*rows, head_dim), dtype, device)
    memory = Buffer.empty((*rows, step), "uint8", device)
    strides = (*memory.strides[:-1], dtype.bits // 8)
    return Tensor.from_pointer(memory.pointer, (*rows, head_dim), dtype, memory.device, strides=strides, owner=memory)


def upload(integers: list[int], stream: Stream) -> Buffer:
    """int32 in device memory. Returns when they are there."""
    import numpy

    return Buffer.from_numpy(numpy.array(integers, numpy.int32), stream.device, stream)
