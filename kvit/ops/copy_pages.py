"""Whole pages copied within one cache, K and V with their parameters."""

from __future__ import annotations

from typing import Any

from kvit import _checks, codecs
from kvit._native import page_ops
from kvit._native.context import Device
from kvit._native.prepared import PreparedLaunch, launch_all
from kvit._native.stream import Stream
from kvit._native.tensor import Tensor
from kvit.layouts.views import CacheView
from kvit.ops import aliases
from kvit.ops.faults import FaultRecord
from kvit.ops.operation import Operation
from kvit.ops.page_lists import belongs_to_rows, page_list, require_writable
from kvit.selection import registry


class CopyPages(Operation):
    """Copies whole pages within one cache, K and V with their parameters. A call is one launch, or two with parameters.

    view    CacheView of the caches to come: their codecs, KV heads and head_dim count, not their memory
    faults  record of faults to share with other operations; its own if absent

    Raises NoGpuError. Defined by kvit.reference.copy_pages.
    """

    def __init__(self, view: CacheView, *, faults: FaultRecord | None = None):
        super().__init__(view, faults)
        self._row_bytes = tuple(
            codec.dtype.bytes_for(dim) for codec, dim in zip(view.codecs, (view.k_dim, view.v_dim), strict=True)
        )
        is_short = any(row_bytes % _checks.VECTOR_BYTES for row_bytes in self._row_bytes)
        self._data = registry.find("copy_pages", access=codecs.PARAM_BYTES if is_short else _checks.VECTOR_BYTES)
        self._params = registry.find("copy_pages", access=codecs.PARAM_BYTES)

    def __call__(self, view: CacheView, source: Any, target: Any, *, chains: Any = None, stream: Any = None) -> None:
        """Copy page source[i] to page target[i]. Returns before the work is done.

        source, target  int32 [count] page ids on the device. Without chains, no page is in both, or twice in target
                        All lists lie apart from the cache
        chains          int32 [chains + 1] on the device, where each chain of pairs begins. Pairs of a chain are copied
                        in order, so it may shift pages along; if its last source is its first target, it turns them
                        round. No page that a chain writes is in another chain
        stream          Stream, int handle, or an object with __cuda_stream__; the device's default stream if absent

        A page id that the cache does not have is reported by check(); its chain is not copied.
        Raises ShapeError, DtypeError, DeviceError, LayoutError; nothing is launched then.
        """
        stream = Stream.wrap(stream, self.device)
        source, target = page_list("source", source, stream), page_list("target", target, stream)
        if source is None or target is None:
            missing = "source" if source is None else "target"
            raise TypeError(f"{missing} is None; give int32 [count] page ids")
        launch_all(self.prepare(view, source, target, page_list("chains", chains, stream), stream), stream)
        self.faults.last_stream = stream

    def explain(self) -> str:
        """Which kernels copy rows, and the parameters of rows that have some."""
        return f"rows: {self._data.symbol}\nparameters of rows: {self._params.symbol}"

    def prepare(
        self,
        view: CacheView,
        source: Tensor,
        target: Tensor,
        chains: Tensor | None,
        stream: Stream,
    ) -> list[PreparedLaunch]:
        """The call, checked, for launch_all; the lists are the caller's to keep until then."""
        self._check_view(view)
        require_writable("view", view)
        _checks.require_shape("target (like source)", target, count=source.shape[0])
        _checks.require_device(self.device, view=view.k, source=source, target=target, chains=chains)
        lists = ("source", source), ("target", target), ("chains", chains)
        aliases.require_unwritten("view", view.packed, *lists)
        params = tuple(codecs.PARAM_BYTES if belongs_to_rows(pool) else 0 for pool in (view.k_params, view.v_params))
        launches = ((self._data, (*self._row_bytes, 0, 0)), (self._params, (0, 0, *params)))
        return page_ops.prepare_copies(
            tuple((kernel, row_bytes) for kernel, row_bytes in launches if any(row_bytes)),
            Device.of(self.device),
            view.packed,
            source,
            target,
            chains,
            self.faults.buffer,
            stream,
        )
