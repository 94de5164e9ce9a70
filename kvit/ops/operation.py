"""What operations on a cache share: the shape that they were made for, and the record of what their kernels met."""

from __future__ import annotations

from typing import Any, Literal, NoReturn

from kvit import _checks, codecs, dtypes
from kvit._native.stream import Stream
from kvit._native.tensor import Tensor
from kvit.errors import DtypeError, ShapeError, refuse_copy
from kvit.layouts.latent_rows import LatentRows
from kvit.layouts.views import CacheView, dims_key
from kvit.ops.faults import FaultRecord

Launch = Literal["direct", "graph"]
"""How an operation gives its kernel to the driver."""

_LAUNCHES = {
    "direct": "the kernel itself, by every call",
    "graph": "a graph of the kernel, with the parameters of every call: the calls of this operation take turns",
}


class Operation(_checks.Made):
    """Made for one shape of cache, called with any cache of that shape. Choosing and allocating is done by then.

    view    CacheView of the caches to come; attention takes LatentRows too
    faults  record of the faults that kernels meet, to share with other operations; its own if absent
    """

    _views: Any = CacheView  # that it takes

    def __init__(self, view: CacheView | LatentRows, faults: FaultRecord | None, launch: Launch = "direct"):
        _checks.choice("launch", launch, *_LAUNCHES)
        _checks.made("view", view, self._views, "a kvit.CacheView (ConvertPages makes its pages)")
        if faults is not None:
            _checks.instance("faults", faults, FaultRecord, "the faults of another operation")
        self.launch = launch
        self.kv_heads = view.kv_heads
        self.k_dim, self.v_dim = view.k_dim, view.v_dim
        self.codecs = view.codecs
        self.dtype = view.dtype
        self._smoothed = smoothed_as(view)
        self.device = view.device
        self.faults = FaultRecord(self.device) if faults is None else faults

    @property
    def head_dim(self) -> int:
        """Channels of a row of K, and of a query; of V and of outputs too, unless v_dim says otherwise."""
        return self.k_dim

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        refuse_copy(self, "make another for the same view; operations can share a record of faults and a workspace")

    def check(self, stream: Any = None) -> None:
        """Wait for the work of `stream`, by default of the last call, and raise PageTableError if a kernel met a fault.

        The error names the sequence, the slot and the value that it met first; it is told once.
        """
        self.faults.check(stream)

    def explain_launch(self) -> str:
        """A line on how this operation gives its kernel to the driver."""
        return explain_launch(self.launch)

    def _check_view(self, view: CacheView | LatentRows) -> None:
        _checks.made("view", view, self._views, "a kvit.CacheView (ConvertPages makes its pages)")
        if (view.kv_heads, view.k_dim, view.v_dim) != (self.kv_heads, self.k_dim, self.v_dim):
            dims = dims_key(self.k_dim, self.v_dim)
            raise ShapeError(
                f"the view has {view.kv_heads} KV heads and head_dim {view.dims}; the operation was made for "
                f"{self.kv_heads} and {dims}; make another {type(self).__name__} for this view"
            )
        if view.codecs != self.codecs or view.dtype is not self.dtype:
            raise DtypeError(
                f"the view holds {view.holds}; the operation was made for {codecs.describe(*self.codecs, self.dtype)}; "
                f"make another {type(self).__name__} for this view"
            )
        if smoothed_as(view) != self._smoothed:
            raise DtypeError(
                f"keys of the view are stored {smoothed_as(view)}; the operation was made for keys {self._smoothed}; "
                f"make another {type(self).__name__} for this view"
            )


def smoothed_as(view: CacheView | LatentRows) -> str:
    """How keys of a view are stored besides their codec, in words."""
    if view.smoothing is None:
        return "as they come"
    return "less a mean, by a KeySmoothing" if view.smoothing.has_mean else "divided by widths, by a KeySmoothing"


def explain_launch(launch: Launch) -> str:
    """The line of `explain` that says how a kernel is given to the driver."""
    return f"  launch     {launch}: {_LAUNCHES[launch]}"


def rows_per_sequence(
    name: str, rows: Tensor, num_sequences: int, query_indptr: Any, stream: Stream
) -> tuple[int, Tensor | None]:
    """How the rows of a call belong to sequences: (rows of each, None), or (0, where each begins)."""
    if query_indptr is not None:
        indptr = _checks.tensor("query_indptr", query_indptr, dtypes.int32, stream)
        _checks.require_shape("query_indptr", indptr, **{"sequences + 1": num_sequences + 1})
        _checks.require_dense("query_indptr", indptr)
        return 0, indptr
    count = rows.shape[0]
    if count % max(1, num_sequences) or (count and not num_sequences):
        raise ShapeError(
            f"{name} has {count} rows for {num_sequences} sequences; give query_indptr, which says where each one's "
            "rows begin, if they have different numbers of rows"
        )
    return count // max(1, num_sequences), None
