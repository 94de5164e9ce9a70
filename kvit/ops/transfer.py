"""What append and gather share: a kernel that moves rows of K and V one way or the other, and the checks of rows."""

from __future__ import annotations

from typing import Any

from kvit import _checks, codecs, dtypes
from kvit._native.stream import Stream
from kvit._native.tensor import Tensor
from kvit._native.transfer_call import TransferCall
from kvit.layouts.views import CacheView
from kvit.ops.faults import FaultRecord
from kvit.ops.operation import Launch, Operation
from kvit.selection import registry


class Transfer(Operation, TransferCall):
    """What moves rows one way or the other: a kernel of `family`, chosen once.

    axes  of the kernel, that the view does not tell
    """

    family: str

    def __init__(self, view: CacheView, *, launch: Launch = "direct", faults: FaultRecord | None = None, **axes: str):
        Operation.__init__(self, view, faults, launch)
        key = {"dtype": view.dtype.short, "kv": codecs.key_of(*view.codecs)}
        self.kernel = registry.serves(self.family, room_for(view), **axes, **key)
        TransferCall.__init__(
            self, self.kernel, self.device, self.faults, view.packed, self.family == "append", launch == "graph"
        )


def room_for(view: CacheView) -> int:
    """Channels that a kernel needs room for which moves rows of K and of V alike."""
    return max(view.k_dim, view.v_dim)


def rows_like_each_other(k: Any, v: Any, view: CacheView, stream: Stream) -> tuple[Tensor, Tensor]:
    """k and v as rows that kernels can copy to or from the pages of `view`."""
    heads, on = view.kv_heads, (view.dtype, view.device, stream)
    k = checked_rows("k", k, *on, tokens=None, kv_heads=heads, head_dim=view.k_dim)
    return k, checked_rows("v", v, *on, tokens=k.shape[0], kv_heads=heads, head_dim=view.v_dim)


def checked_rows(
    name: str, source: Any, dtype: dtypes.Dtype, device: str, stream: Stream, **axes: int | None
) -> Tensor:
    """`source` as rows of this dtype, on this device, with these axes, that kernels can read in vectors."""
    found = _checks.tensor(name, source, dtype, stream)
    _checks.require_shape(name, found, **axes)
    _checks.require_rows(name, found)
    _checks.require_device(device, **{name: found})
    return found
