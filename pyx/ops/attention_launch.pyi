# Launches of attention: constants packed once, a call's arguments by every launch.
from typing import Any

from kvit._native.context import Device
from kvit._native.module import Kernel
from kvit._native.tensor import Tensor
from kvit.selection.registry import KernelInfo

class AttentionLaunch:
    """An attention kernel with its grid, its workspace and its constants."""

    kernel: Kernel
    workspace: Tensor
    fault: Tensor
    def __init__(
        self,
        entry: KernelInfo,
        device: Device,
        grid: int,
        partitions: int,
        workspace: Tensor,
        fault: Tensor,
        num_query_heads: int,
        group: int,
        scale: float,
        is_causal: bool,
        split_tiles: int = 0,
        reads_ahead: bool = False,
        by_graph: bool = False,
        modifiers: Any = None,
    ) -> None: ...
