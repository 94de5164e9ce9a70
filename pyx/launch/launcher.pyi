# One launch: parameters packed by the caller, no allocation, no GIL during the driver call.
from collections.abc import Sequence
from typing import Any

from kvit._native.kernel_graph import KernelGraph
from kvit._native.module import Kernel

def launch_bytes(
    kernel: Kernel,
    params: bytes,
    grid: int | tuple[int, int, int],
    stream: Any = None,
    spans: Sequence[tuple[int, int, bool]] = (),
    graph: KernelGraph | None = None,
    *,
    cluster: int | tuple[int, int, int] | None = None,
) -> None: ...
