"""Moves tokens into pages, out of pages, and whole pages within a cache: views and tables in, one launch each."""

from __future__ import annotations

from typing import Any

from . import _checks, registry
from ._faults import FaultRecord
from ._native import ops
from ._native.buffer import Buffer
from ._native.context import Device
from ._native.stream import Stream
from ._native.tensor import Tensor
from .views import CacheView, PageTable


def new_rows(name: str, source: Any, view: CacheView, queue: Stream) -> Tensor:
    """`source` as rows [tokens, kv_heads, head_dim] that kernels can copy to or from the pages of `view`."""
    found = _checks.tensor(name, source, view.dtype, queue)
    _checks.require_shape(name, found, tokens=None, kv_heads=view.kv_heads, head_dim=view.head_dim)
    _checks.require_rows(name, found)
    _checks.require_device(view.device, **{name: found})
    return found


def append(
    view: CacheView,
    table: PageTable,
    k: Tensor,
    v: Tensor,
    indptr: Tensor | None,
    each: int,
    faults: FaultRecord,
    queue: Stream,
) -> None:
    """Write the rows of k and v as the last tokens of their sequences: split by `indptr`, or `each` to every one."""
    entry = registry.find("append", dtype=view.dtype.short, head_dim=view.head_dim)
    ops.append(entry, Device.of(view.device), view._packed, table._packed, k, v, indptr, each, faults.buffer, queue)
    faults.last_queue = queue


def gather(
    view: CacheView, table: PageTable, k: Tensor, v: Tensor, indptr: Tensor, faults: FaultRecord, queue: Stream
) -> None:
    """Copy token t of sequence s to row indptr[s] + t of k and v."""
    entry = registry.find("gather", dtype=view.dtype.short, head_dim=view.head_dim)
    ops.gather(entry, Device.of(view.device), view._packed, table._packed, k, v, indptr, faults.buffer, queue)
    faults.last_queue = queue


def copy_pages(view: CacheView, source: Tensor, target: Tensor, faults: FaultRecord, queue: Stream) -> None:
    """Copy pages source[i] to target[i], both int32 [count]."""
    row_bytes = view.dtype.bytes_for(view.head_dim)
    access = _checks.VECTOR_BYTES if row_bytes % _checks.VECTOR_BYTES == 0 else 4
    entry = registry.find("copy_pages", access=access)
    ops.copy_pages(entry, Device.of(view.device), view._packed, source, target, row_bytes, faults.buffer, queue)
    faults.last_queue = queue


def upload(integers: list[int], queue: Stream) -> Buffer:
    """int32 in device memory. Returns when they are there."""
    import numpy

    return Buffer.from_numpy(numpy.array(integers, numpy.int32), queue.device, queue)
