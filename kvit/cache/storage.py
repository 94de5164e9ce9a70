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
    shape: tuple[int, int, int, int],
    layout: Layout,
    compute: Dtype,
    sides: tuple[Codec, Codec],
    scales: tuple[Any, Any],
    device: Device,
) -> CacheView:
    """Pools of (pages, page_size, kv_heads, head_dim), of any content.

    Raises KernelMissing before gigabytes are taken for what no kernel covers.
    """
    pages, page_size, kv_heads, head_dim = shape
    registry.serves("append", head_dim, variant="simple", dtype=compute.short, kv=codecs.key_of(*sides))
    rows = (pages, page_size, kv_heads) if layout == "NHD" else (pages, kv_heads, page_size)
    pools = [_new_pool(rows, head_dim, codec.dtype, device) for codec in sides]
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
