"""Rows of K and V out of their pages into dense memory, decoded on the way."""

from __future__ import annotations

from typing import Any

from kvit import _checks
from kvit._native import row_ops
from kvit._native.context import Device
from kvit._native.stream import Stream
from kvit._native.tensor import Tensor
from kvit.dtypes import Dtype
from kvit.layouts.views import CacheView, Layout, PageTable
from kvit.ops import aliases
from kvit.ops.faults import FaultRecord
from kvit.ops.operation import Launch, rows_per_sequence
from kvit.ops.transfer import Transfer, rows_like_each_other


class Gather(Transfer):
    """Copies tokens out of their pages into 16-bit rows, decoded, for one shape of cache. A call is one launch.

    view    CacheView of the caches to come: their dtype, KV heads and head_dim count, not their memory
    launch  "direct", or "graph" for calls that cost the host less and take turns, as Attention has it
    faults  record of faults to share with other operations; its own if absent

    Raises KernelMissing (nothing built covers the shape), NoGpuError, ValueError (an unknown launch).
    Defined by kvit.reference.gather.
    """

    family = "gather"

    def __init__(self, view: CacheView, *, launch: Launch = "direct", faults: FaultRecord | None = None):
        super().__init__(view, launch=launch, faults=faults)

    def __call__(
        self,
        view: CacheView,
        table: PageTable,
        *,
        query_indptr: Any = None,
        out: tuple[Any, Any],
        layout: Layout = "NHD",
        stream: Any = None,
    ) -> None:
        """Fill the rows of k and v with the last tokens of the sequences. Returns before the work is done.

        table         PageTable: token j of a sequence's n rows comes from position length - n + j
        query_indptr  int32 [sequences + 1] on the device: where each sequence's rows begin; absent: all have as many
        out           (k, v), sequence after sequence, in the view's dtype; written; any strides, dense channels. They
                      lie apart from each other, as slices of one tensor do, from the cache and from the table; overlap
                      is refused
        layout        of k and v. "NHD": [tokens, kv_heads, head_dim]; "HND": [kv_heads, tokens, head_dim]
        stream        Stream, int handle, or an object with __cuda_stream__; the device's default stream if absent

        A token that the table gives no place comes out as NaN, and check() says why. Rows that no sequence has, before
        the first one's or behind the last one's, are left as they are.
        Raises ShapeError, DtypeError, DeviceError, LayoutError, TypeError (out is no pair); nothing is launched then.
        """
        k, v = pair_of(out)
        if type(layout) is not str or layout != "NHD":
            _checks.require_layout(layout)
            stream = Stream.wrap(stream, self.device)
            k, v = (tokens_first(name, x, self.dtype, stream) for name, x in (("k", k), ("v", v)))
        if self._launched(k, v, view, table, query_indptr, stream):
            return
        stream = Stream.wrap(stream, self.device)
        self._check_view(view)
        _checks.made("table", table, PageTable, "a kvit.PageTable")
        k, v = rows_like_each_other(k, v, view, stream)
        _checks.require_writable("k", k)
        _checks.require_writable("v", v)
        each, indptr = rows_per_sequence("k", k, table.num_sequences, query_indptr, stream)
        _checks.require_device(self.device, view=view.k, table=table.lengths, k=k, v=v, query_indptr=indptr)
        read = (("query_indptr", indptr), *aliases.numbers_of(table), *aliases.pools_of("view", view.packed))
        aliases.require_apart("k", k, ("v", v), *read)
        aliases.require_apart("v", v, *read)
        device = Device.of(self.device)
        fault = self.faults.buffer
        row_ops.gather(
            self.kernel, device, view.packed, table.packed, k, v, indptr, each, fault, stream, graph=self._graph
        )
        self.faults.last_stream = stream


def pair_of(out: Any) -> tuple[Any, Any]:
    """The arrays of K and of V that `out` names. Raises TypeError."""
    if not isinstance(out, (tuple, list)) or len(out) != 2:
        what = f"{len(out)} arrays" if isinstance(out, (tuple, list)) else f"a {type(out).__name__}"
        raise TypeError(f"out is {what}; give (k, v), the memory for K and for V")
    k, v = out
    return k, v


def tokens_first(name: str, source: Any, dtype: Dtype, stream: Stream) -> Tensor:
    """[tokens, kv_heads, head_dim], a view of [kv_heads, tokens, head_dim]. Raises ShapeError, DtypeError."""
    rows = _checks.tensor(name, source, dtype, stream)
    _checks.require_shape(name, rows, kv_heads=None, tokens=None, head_dim=None)
    (heads, tokens, channels), (head, token, channel) = rows.shape, rows.strides
    return Tensor.from_pointer(
        rows.pointer, (tokens, heads, channels), rows.dtype, rows.device,
        strides=(token, head, channel), readonly=rows.readonly, owner=rows,
    )  # fmt: skip
