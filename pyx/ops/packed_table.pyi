# A page table as kernels take it, packed once.
from typing import Any

from kvit._native.tensor import Tensor

class PackedTable:
    """A page table as kernels take it: dense where `indptr` is None."""

    pages: Tensor
    indptr: Tensor | None
    lengths: Tensor
    def __init__(self, pages: Tensor, indptr: Tensor | None, lengths: Tensor) -> None: ...
    @staticmethod
    def fitting(pages: Any, indptr: Any, lengths: Any) -> PackedTable | None: ...

class HoldsTable:
    """Base of kvit.PageTable."""

    packed: PackedTable
