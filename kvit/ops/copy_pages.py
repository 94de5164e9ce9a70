"""Operations on the pages of one cache: whole pages copied, and sequences flattened into dense memory."""

from __future__ import annotations

from typing import Any

from . import _checks, codecs, registry
from ._faults import FaultRecord
from ._native import page_ops
from ._native.context import Device
from ._native.stream import Stream
from ._native.tensor import Tensor
from ._operation import Operation
from ._page_lists import belongs_to_rows, page_list, require_writable
from .transfer import Gather
from .views import CacheView, Layout, PageTable


class CopyPages(Operation):
    """Copies whole pages within one cache, K and V with their parameters. A call is one launch, or two with parameters.

    view  CacheView of the caches to come: their codecs, KV heads and head_dim count, not their memory

    Raises NoGpuError. Defined by kvit.reference.copy_pages.
    """

    def __init__(self, view: CacheView, *, _faults: FaultRecord | None = None):
        super().__init__(view, _faults)
        self._data = registry.find("copy_pages", access=_checks.VECTOR_BYTES)
        self._params = registry.find("copy_pages", access=codecs.PARAM_BYTES)

    def __call__(self, view: CacheView, source: Any, target: Any, *, chains: Any = None, stream: Any = None) -> None:
        """Copy page source[i] to page target[i]. Returns before the work is done.

        source, target  int32 [count] page ids on the device. Without chains, no page is in both, or twice in target
        chains          int32 [chains + 1] on the device, where each chain of pairs begins. Pairs of a chain are copied
                        in order, so it may shift pages along; if its last source is its first target, it turns them
                        round. No page that a chain writes is in another chain
        stream          Stream, int handle, or an object with __cuda_stream__; the device's default stream if absent

        A page id that the cache does not have is reported by check(); its chain is not copied.
        Raises ShapeError, DtypeError, DeviceError, LayoutError; nothing is launched then.
        """
        queue = Stream.wrap(stream, self.device)
        self._check_view(view)
        require_writable("view", view)
        source, target = page_list("source", source, queue), page_list("target", target, queue)
        assert source is not None and target is not None, "CopyPages takes lists of pages"
        _checks.require_shape("target (like source)", target, count=source.shape[0])
        if chains is not None:
            chains = page_list("chains", chains, queue)
        _checks.require_device(self.device, view=view.k, source=source, target=target, chains=chains)
        data = tuple(codec.dtype.bytes_for(view.head_dim) for codec in view.codecs)
        params = tuple(codecs.PARAM_BYTES if belongs_to_rows(pool) else 0 for pool in (view.k_params, view.v_params))
        home = Device.of(self.device)
        for entry, row_bytes in ((self._data, (*data, 0, 0)), (self._params, (0, 0, *params))):
            if any(row_bytes):
                page_ops.copy_pages(
                    entry, home, view._packed, source, target, chains, row_bytes, self._faults.buffer, queue
                )
        self._faults.last_queue = queue


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
        queue = Stream.wrap(stream, self.device)
        rows = [
            tokens_first(name, _checks.tensor(name, x, view.dtype, queue), layout) for name, x in (("k", k), ("v", v))
        ]
        super().__call__(view, table, *rows, tokens=tokens, stream=queue)


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
