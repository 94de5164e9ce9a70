"""What a call is to the choice of its kernel."""

from __future__ import annotations

from typing import NamedTuple

from kvit.selection.axes import AxisValue


class Call(NamedTuple):
    """What the choice depends on. No length and no address is among it."""

    dtype: str  # axis values of the family
    kv: str
    head_dim: AxisValue  # of K and V, or "192x128"
    rows: int  # query rows of each KV head of a sequence: new tokens x group
    page_size: int
    stride_multiple: int = 16  # of which all strides of K and V are multiples, in bytes
    by_pointer: bool = False  # pages are found by a pointer each, not by their number and a stride
    is_packed: bool = True  # rows of fewer than 128 bytes, and integers' parameters, lie one after the other
    shares_kv: bool = False  # rows of V are the first channels of the rows of K
    variant: str = "plain"  # or "general", of a call with a window, a softcap or another change of the scores

    def __str__(self) -> str:
        return f"dtype={self.dtype} kv={self.kv} head_dim={self.head_dim}"
