"""Packs the launch struct of a selection of entries, and launches. The caller checked all."""

from kvit._native.context import Device
from kvit._native.packed_table import PackedTable
from kvit._native.stream import Stream
from kvit._native.tensor import Tensor
from kvit.selection.registry import KernelInfo

def select(
    entry: KernelInfo,
    device: Device,
    table: PackedTable,
    query_indptr: Tensor | None,
    each: int,
    rows: int,
    indices: Tensor,
    pages: Tensor,
    lengths: Tensor,
    num_pages: int,
    page_size: int,
    entry_tokens: int,
    pages_per_entry: int,
    steps: tuple[int, int, int],
    is_causal: bool,
    fault: Tensor,
    stream: Stream | None,
) -> None: ...
