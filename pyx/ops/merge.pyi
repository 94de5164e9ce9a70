# The union of attention results over different keys: packed and launched.
from kvit._native.context import Device
from kvit._native.stream import Stream
from kvit._native.tensor import Tensor
from kvit.selection.registry import KernelInfo

MOST_PARTS: int

def merge_list(
    entry: KernelInfo,
    device: Device,
    outs: list[Tensor],
    lses: list[Tensor],
    out: Tensor,
    lse: Tensor,
    stream: Stream | None,
) -> None: ...
def merge_stacked(
    entry: KernelInfo, device: Device, outs: Tensor, lses: Tensor, out: Tensor, lse: Tensor, stream: Stream | None
) -> None: ...
