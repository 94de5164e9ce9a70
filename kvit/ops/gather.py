"""Rows of K and V out of their pages into dense memory, decoded on the way."""

from __future__ import annotations

from typing import Any

from kvit import _checks
from kvit._native import row_ops
from kvit._native.context import Device
from kvit._native.stream import Stream
from kvit._native.tensor import Tensor
from kvit.layouts.views import CacheView, Layout, PageTable
from kvit.ops.operation import rows_per_sequence
from kvit.ops.transfer import Transfer, rows_like_each_other


class Gather(Transfer):
    """Copies tokens out of their pages into contiguous memory, for one shape of cache. A call is one launch.

    view    CacheView of the caches to come: their dtype, KV heads and head_dim count, not their memory
    launch  "direct", or "graph" for calls that cost the host less and take turns, as Attention has it
    faults  record of faults to share with other operations; its own if absent

    Raises KernelMissing (nothing built covers the shape), NoGpuError, ValueError (an unknown launch).
    Defined by kvit.reference.gather.
    """

    family = "gather"

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
        if self._launched(k, v, view, table, tokens, stream):
            return
        stream = Stream.wrap(stream, self.device)
        self._check_view(view)
        k, v = rows_like_each_other(k, v, view, stream)
        _checks.require_writable("k", k)
        _checks.require_writable("v", v)
        each, indptr = rows_per_sequence("k", k, table.num_sequences, tokens, stream)
        _checks.require_device(self.device, view=view.k, table=table.lengths, k=k, v=v, tokens=indptr)
        device = Device.of(self.device)
        fault = self.faults.buffer
        row_ops.gather(
            self.kernel, device, view.packed, table.packed, k, v, indptr, each, fault, stream, graph=self._graph
        )
        self.faults.last_stream = stream


class Flatten(Gather):
    """Copies whole sequences out of their pages into dense 16-bit memory, decoded: a Gather with a choice of axes.

    view  CacheView of the caches to come: their dtype, KV heads and head_dim count, not their memory

    Raises KernelMissing (nothing built covers the shape), NoGpuError. Defined by kvit.reference.gather.
    """

    def __call__(  # type: ignore[override]
        self,
        view: CacheView,
        table: PageTable,
        k: Any,
        v: Any,
        *,
        layout: Layout = "NHD",
        tokens: Any = None,
        stream: Any = None,
    ) -> None:
        """Fill k and v with the tokens of the sequences, one sequence after another. Returns before the work is done.

        k, v    NHD: [tokens, kv_heads, head_dim]; HND: [kv_heads, tokens, head_dim]; in the view's dtype; written
        tokens  int32 [sequences + 1] on the device: where each sequence's tokens begin; absent: all have as many

        The rest is as Gather says.
        """
        _checks.require_layout(layout)
        stream = Stream.wrap(stream, self.device)
        rows = [
            tokens_first(name, _checks.tensor(name, x, view.dtype, stream), layout) for name, x in (("k", k), ("v", v))
        ]
        super().__call__(view, table, *rows, tokens=tokens, stream=stream)


def tokens_first(name: str, rows: Tensor, layout: Layout) -> Tensor:
    """[tokens, kv_heads, head_dim], a view of rows in `layout`."""
    if layout == "NHD":
        return rows
    _checks.require_shape(name, rows, kv_heads=None, tokens=None, head_dim=None)
    (heads, tokens, channels), (head, token, channel) = rows.shape, rows.strides
    return Tensor.from_pointer(
        rows.pointer, (tokens, heads, channels), rows.dtype, rows.device,
        strides=(token, head, channel), readonly=rows.readonly, owner=rows,
    )  # fmt: skip
