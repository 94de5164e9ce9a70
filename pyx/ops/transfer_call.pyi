"""A call of kvit.Append or kvit.Gather: what fits as it is goes straight to the kernel, all else through Python."""

from typing import Any

from kvit._native.faults import HoldsFaults
from kvit._native.kernel_graph import KernelGraph
from kvit._native.packed_cache import PackedCache
from kvit.selection.registry import KernelInfo

class TransferCall:
    """What kvit.Append and kvit.Gather derive from."""

    _graph: KernelGraph | None
    def __init__(
        self,
        entry: KernelInfo,
        device: str,
        faults: HoldsFaults,
        cache: PackedCache,
        into_pages: bool,
        by_graph: bool = False,
    ) -> None: ...
    def _launched(self, k: Any, v: Any, view: Any, table: Any, query_indptr: Any = None, stream: Any = None) -> bool:
        """Launch the call if it fits as it is. False: nothing was launched, and Python's checks know why."""
