"""Attention over paged KV caches on NVIDIA GPUs, and on the host: precompiled kernels, raw buffers, no framework.

Importing it needs no driver and starts no CUDA; numpy and the kernels are loaded when a call first needs them.
"""

import os
from typing import TYPE_CHECKING, Any

from ._native.buffer import Buffer
from ._native.context import Device
from ._native.event import Event
from ._native.graph import Graph
from ._native.stream import Stream
from ._native.tensor import Tensor
from .cache.attention import attention
from .cache.batch import Batch
from .cache.layer import CacheLayer
from .cache.layers import LayerSpec
from .cache.page_pool import PagePool
from .cache.paged_cache import PagedCache
from .cache.sequence import Sequence
from .cache.step import Step
from .errors import (
    CacheFull,
    DeviceError,
    DriverError,
    DtypeError,
    HostBackendError,
    KernelMissing,
    KvitError,
    LayoutError,
    NoGpuError,
    PageTableError,
    SequenceFreed,
    ShapeError,
)
from .layouts.views import CacheView, PageTable
from .ops.append import Append
from .ops.attention import Attention
from .ops.copy_pages import CopyPages
from .ops.gather import Gather
from .ops.merge import merge_state, merge_states
from .ops.rope import Rope

if TYPE_CHECKING:
    from .layouts.turbomind import TurboMindBlocks
    from .layouts.vllm import VllmPages
    from .ops.convert import ConvertPages
    from .ops.shift import Shift
    from .ops.sparse import SparseAttention

__all__ = [
    "Append",
    "Attention",
    "Batch",
    "Buffer",
    "CacheFull",
    "CacheLayer",
    "CacheView",
    "ConvertPages",
    "CopyPages",
    "Device",
    "DeviceError",
    "DriverError",
    "DtypeError",
    "Event",
    "Gather",
    "Graph",
    "HostBackendError",
    "KernelMissing",
    "KvitError",
    "LayerSpec",
    "LayoutError",
    "NoGpuError",
    "PagePool",
    "PageTable",
    "PageTableError",
    "PagedCache",
    "Rope",
    "Sequence",
    "SequenceFreed",
    "ShapeError",
    "Shift",
    "SparseAttention",
    "Step",
    "Stream",
    "Tensor",
    "TurboMindBlocks",
    "VllmPages",
    "attention",
    "get_include",
    "merge_state",
    "merge_states",
]


# Modules that few programs need: imported when a name is first asked for, so that the others start sooner.
_ASKED_FOR = {
    "ConvertPages": "ops.convert",
    "Shift": "ops.shift",
    "SparseAttention": "ops.sparse",
    "TurboMindBlocks": "layouts.turbomind",
    "VllmPages": "layouts.vllm",
}


def __getattr__(name: str) -> Any:
    if name not in _ASKED_FOR:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found = globals()[name] = getattr(import_module(f".{_ASKED_FOR[name]}", __name__), name)
    return found


def get_include() -> str:
    """The folder of kvit.h, for the include_dirs of an extension module that is compiled against it."""
    return os.path.join(os.path.dirname(__file__), "include")
