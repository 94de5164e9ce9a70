# The union of two attention results over different keys: packed and launched.
from kvit._native.context import Device
from kvit._native.stream import Stream
from kvit._native.tensor import Tensor
from kvit.selection.registry import KernelInfo

def merge(
    entry: KernelInfo,
    device: Device,
    a: Tensor,
    lse_a: Tensor,
    b: Tensor,
    lse_b: Tensor,
    out: Tensor,
    lse: Tensor | None,
    stream: Stream | None,
) -> None: ...
