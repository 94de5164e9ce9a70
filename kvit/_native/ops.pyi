"""Packs the launch structs of abi/params.h and launches. Shapes, dtypes and devices were checked by the caller."""

from kvit._native.buffer import Buffer
from kvit._native.context import Device
from kvit._native.module import Kernel
from kvit._native.stream import Stream
from kvit._native.tensor import Tensor
from kvit.selection.registry import KernelInfo

class PackedCache:
    """K and V of a cache as kernels take them."""

    k: Tensor
    v: Tensor
    k_params: Tensor | None
    v_params: Tensor | None
    blocks: Tensor | None
    memory: tuple[Tensor, ...]
    @property
    def shape(self) -> tuple[int, int, int, int]: ...
    @property
    def pools(self) -> tuple[tuple[int, int, int, int], ...]: ...
    @property
    def may_have_lines(self) -> bool: ...
    def __init__(
        self,
        k: Tensor,
        v: Tensor,
        k_strides: tuple[int, int, int],
        v_strides: tuple[int, int, int],
        num_pages: int,
        page_size: int,
        num_kv_heads: int,
        head_dim: int,
        code: int = 0,
        k_params: Tensor | None = None,
        v_params: Tensor | None = None,
        k_params_strides: tuple[int, int, int] | None = None,
        v_params_strides: tuple[int, int, int] | None = None,
        blocks: Tensor | None = None,
        offsets: tuple[int, int, int, int] | None = None,
        memory: tuple[Tensor, ...] = (),
    ) -> None: ...

class PackedTable:
    """A page table as kernels take it: dense where `indptr` is None."""

    pages: Tensor
    indptr: Tensor | None
    lengths: Tensor
    def __init__(self, pages: Tensor, indptr: Tensor | None, lengths: Tensor) -> None: ...

class HoldsCache:
    """Base of kvit.CacheView."""

    _packed: PackedCache

class HoldsTable:
    """Base of kvit.PageTable."""

    _packed: PackedTable

class HoldsFaults:
    """Base of the record of faults that operations share."""

    buffer: Buffer
    last_queue: Stream

class AttentionLaunch:
    """An attention kernel with its grid, its workspace and its constants."""

    kernel: Kernel
    partials: Tensor
    fault: Tensor
    box_tokens: int
    def __init__(
        self,
        entry: KernelInfo,
        device: Device,
        grid: int,
        strands: int,
        partials: Tensor,
        fault: Tensor,
        num_query_heads: int,
        group: int,
        scale: float,
        is_causal: bool,
        split_tiles: int = 0,
        reads_ahead: bool = False,
        by_graph: bool = False,
    ) -> None: ...

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
