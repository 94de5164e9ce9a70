"""Packs and launches what moves whole pages. Shapes, dtypes, devices and overlaps were checked by the caller."""

from kvit._native.context import Device
from kvit._native.packed_cache import PackedCache
from kvit._native.prepared import PreparedLaunch
from kvit._native.stream import Stream
from kvit._native.tensor import Tensor
from kvit.selection.registry import KernelInfo

def prepare_copies(
    launches: tuple[tuple[KernelInfo, tuple[int, int, int, int]], ...],
    device: Device,
    cache: PackedCache,
    source: Tensor,
    target: Tensor,
    chains: Tensor | None,
    fault: Tensor,
    stream: Stream,
) -> list[PreparedLaunch]: ...
def relayout(
    entry: KernelInfo,
    device: Device,
    source: PackedCache,
    target: PackedCache,
    source_pages: Tensor | None,
    target_pages: Tensor | None,
    row_bytes: tuple[int, int, int, int],
    source_chunks: tuple[tuple[int, int], ...],
    target_chunks: tuple[tuple[int, int], ...],
    fault: Tensor,
    stream: Stream | None,
) -> None: ...
def requantise(
    entry: KernelInfo,
    device: Device,
    source: PackedCache,
    target: PackedCache,
    source_pages: Tensor | None,
    target_pages: Tensor | None,
    side: int,
    is_in_order: bool,
    fault: Tensor,
    stream: Stream | None,
) -> None: ...
