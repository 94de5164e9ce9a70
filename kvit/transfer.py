"""Rows of K and V into pages and out of them, and pages to pages: the operations on raw buffers."""

from __future__ import annotations

from typing import Any

from . import _checks, codecs, registry
from ._faults import FaultRecord
from ._native import ops
from ._native.context import Device
from ._native.stream import Stream
from ._native.tensor import Tensor
from ._operation import Operation, split_tokens
from .views import CacheView, PageTable


class _Transfer(Operation):
    """What moves rows one way or the other: a kernel of `_family`, chosen once."""

    _family: str

    def __init__(self, view: CacheView, *, _faults: FaultRecord | None = None):
        super().__init__(view, _faults)
        key = {"dtype": view.dtype.short, "kv": codecs.key_of(*view.codecs), "head_dim": view.head_dim}
        self.entry = registry.find(self._family, **key)


class Append(_Transfer):
    """Writes new K and V into their pages, for one shape of cache. A call is one launch.

    view  CacheView of the caches to come: their dtype, KV heads and head_dim count, not their memory

    Raises KernelMissing (nothing built covers the shape), NoGpuError. Defined by kvit.reference.append.
    """

    _family = "append"

    def __call__(
        self, k: Any, v: Any, view: CacheView, table: PageTable, *, tokens: Any = None, stream: Any = None
    ) -> None:
        """Write the rows of k and v as the last tokens of their sequences. Returns before the work is done.

        k, v    [tokens, kv_heads, head_dim], sequence after sequence, in the view's dtype; any strides, dense channels
        view    CacheView of the operation's shape; its pages are written
        table   PageTable whose lengths include the new tokens: token j of n goes to position length - n + j
        tokens  int32 [sequences + 1] on the device: where each sequence's rows begin; absent: all have as many
        stream  Stream, int handle, or an object with __cuda_stream__; the device's default stream if absent

        A token that the table gives no place is not written, and check() says why.
        Raises ShapeError, DtypeError, DeviceError, LayoutError; nothing is launched then.
        """
        queue = Stream.wrap(stream, self.device)
        self._check_view(view)
        _checks.require_writable("view.k", view.k)
        _checks.require_writable("view.v", view.v)
        for name, params in (("view.k_params", view.k_params), ("view.v_params", view.v_params)):
            if params is not None and params.dtype is view.dtype:  # the scales of float8 are only read
                _checks.require_writable(name, params)
        k, v = rows_like_each_other(k, v, view, queue)
        each, indptr = split_tokens("k", k, table.num_sequences, tokens, queue)
        _checks.require_device(self.device, view=view.k, table=table.lengths, k=k, v=v, tokens=indptr)
        home = Device.of(self.device)
        ops.append(self.entry, home, view._packed, table._packed, k, v, indptr, each, self._faults.buffer, queue)
        self._faults.last_queue = queue


class Gather(_Transfer):
    """Copies tokens out of their pages into contiguous memory, for one shape of cache. A call is one launch.

    view  CacheView of the caches to come: their dtype, KV heads and head_dim count, not their memory

    Raises KernelMissing (nothing built covers the shape), NoGpuError. Defined by kvit.reference.gather.
    """

    _family = "gather"

    def __call__(
        self, view: CacheView, table: PageTable, k: Any, v: Any, *, tokens: Any = None, stream: Any = None
    ) -> None:
        """Fill the rows of k and v with the last tokens of the sequences. Returns before the work is done.

        k, v    [tokens, kv_heads, head_dim], sequence after sequence, in the view's dtype; written
        table   PageTable: token j of a sequence's n rows comes from position length - n + j
        tokens  int32 [sequences + 1] on the device: where each sequence's rows begin; absent: all have as many
        stream  Stream, int handle, or an object with __cuda_stream__; the device's default stream if absent

        A token that the table gives no place comes out as NaN, and check() says why.
        Raises ShapeError, DtypeError, DeviceError, LayoutError; nothing is launched then.
        """
        queue = Stream.wrap(stream, self.device)
        self._check_view(view)
        k, v = rows_like_each_other(k, v, view, queue)
        _checks.require_writable("k", k)
        _checks.require_writable("v", v)
        each, indptr = split_tokens("k", k, table.num_sequences, tokens, queue)
        _checks.require_device(self.device, view=view.k, table=table.lengths, k=k, v=v, tokens=indptr)
        home = Device.of(self.device)
        ops.gather(self.entry, home, view._packed, table._packed, k, v, indptr, each, self._faults.buffer, queue)
        self._faults.last_queue = queue


def rows_like_each_other(k: Any, v: Any, view: CacheView, queue: Stream) -> tuple[Tensor, Tensor]:
    """k and v as rows that kernels can copy to or from the pages of `view`."""
    k = _rows("k", k, view, queue, None)
    return k, _rows("v", v, view, queue, k.shape[0])


def _rows(name: str, source: Any, view: CacheView, queue: Stream, tokens: int | None) -> Tensor:
    found = _checks.tensor(name, source, view.dtype, queue)
    _checks.require_shape(name, found, tokens=tokens, kv_heads=view.kv_heads, head_dim=view.head_dim)
    _checks.require_rows(name, found)
    _checks.require_device(view.device, **{name: found})
    return found
