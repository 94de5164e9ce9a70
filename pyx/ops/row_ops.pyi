"""Packs the launch structs of what moves rows, append, gather and shift, and launches. The caller checked all."""

from kvit._native.context import Device
from kvit._native.kernel_graph import KernelGraph
from kvit._native.packed_cache import PackedCache
from kvit._native.packed_table import PackedTable
from kvit._native.prepared import PreparedLaunch
from kvit._native.stream import Stream
from kvit._native.tensor import Tensor
from kvit.selection.registry import KernelInfo

class PackedRope:
    """How positions turn pairs of channels, as kernels take it."""

    steps: Tensor
    axes: Tensor | None
    def __init__(
        self, steps: Tensor, is_interleaved: bool, attention_factor: float, axes: Tensor | None = None
    ) -> None: ...

def append(
    entry: KernelInfo,
    device: Device,
    cache: PackedCache,
    table: PackedTable,
    k: Tensor,
    v: Tensor,
    query_indptr: Tensor | None,
    each: int,
    fault: Tensor,
    stream: Stream | None,
    *,
    k_bias: Tensor | None = None,
    v_bias: Tensor | None = None,
    prefix_lengths: Tensor | None = None,
    rope: PackedRope | None = None,
    positions: Tensor | None = None,
    q: Tensor | None = None,
    q_out: Tensor | None = None,
    q_bias: Tensor | None = None,
    k_norm: Tensor | None = None,
    q_norm: Tensor | None = None,
    norm_epsilon: float = 0,
    norm_offset: float = 0,
    graph: KernelGraph | None = None,
) -> None: ...
def gather(
    entry: KernelInfo,
    device: Device,
    cache: PackedCache,
    table: PackedTable,
    k: Tensor,
    v: Tensor,
    query_indptr: Tensor | None,
    each: int,
    fault: Tensor,
    stream: Stream | None,
    *,
    graph: KernelGraph | None = None,
) -> None: ...
def prepare_shift(
    entry: KernelInfo,
    device: Device,
    cache: PackedCache,
    table: PackedTable,
    source: PackedTable | None,
    by: Tensor | None,
    by_each: int,
    first: Tensor | None,
    first_each: int,
    rope: PackedRope | None,
    fault: Tensor,
    stream: Stream,
) -> list[PreparedLaunch]: ...
