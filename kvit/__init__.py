"""Attention over paged KV caches on NVIDIA GPUs, and on the host: precompiled kernels, raw buffers, no framework.

Importing it needs no driver and starts no CUDA. A name is loaded when it is first asked for; numpy and the kernels,
when a call first needs them.
"""

import os
from typing import TYPE_CHECKING, Any

from . import _native  # noqa: F401  says in words where nothing is compiled for this Python
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

if TYPE_CHECKING:
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
    from .cache.mixed_batch import MixedBatch
    from .cache.mixed_cache import MixedCache
    from .cache.mixed_sequence import MixedSequence
    from .cache.mixed_step import MixedStep
    from .cache.page_pool import PagePool
    from .cache.paged_cache import PagedCache
    from .cache.sequence import Sequence
    from .cache.step import Step
    from .layouts.key_smoothing import KeySmoothing
    from .layouts.latent_rows import LatentRows
    from .layouts.turbomind import TurboMindBlocks
    from .layouts.views import CacheView, PageTable
    from .layouts.vllm import VllmPages
    from .ops.append import Append
    from .ops.attention import Attention
    from .ops.convert import ConvertPages
    from .ops.copy_pages import CopyPages
    from .ops.gather import Gather
    from .ops.merge import merge_state, merge_states
    from .ops.rope import Rope
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
    "KeySmoothing",
    "KvitError",
    "LatentRows",
    "LayerSpec",
    "LayoutError",
    "MixedBatch",
    "MixedCache",
    "MixedSequence",
    "MixedStep",
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


# Where the names lie that TYPE_CHECKING has above: a program loads what it uses, and `import kvit` is quick.
_MODULES = {
    "Append": "ops.append",
    "Attention": "ops.attention",
    "Batch": "cache.batch",
    "Buffer": "_native.buffer",
    "CacheLayer": "cache.layer",
    "CacheView": "layouts.views",
    "ConvertPages": "ops.convert",
    "CopyPages": "ops.copy_pages",
    "Device": "_native.context",
    "Event": "_native.event",
    "Gather": "ops.gather",
    "Graph": "_native.graph",
    "KeySmoothing": "layouts.key_smoothing",
    "LatentRows": "layouts.latent_rows",
    "LayerSpec": "cache.layers",
    "MixedBatch": "cache.mixed_batch",
    "MixedCache": "cache.mixed_cache",
    "MixedSequence": "cache.mixed_sequence",
    "MixedStep": "cache.mixed_step",
    "PagePool": "cache.page_pool",
    "PageTable": "layouts.views",
    "PagedCache": "cache.paged_cache",
    "Rope": "ops.rope",
    "Sequence": "cache.sequence",
    "Shift": "ops.shift",
    "SparseAttention": "ops.sparse",
    "Step": "cache.step",
    "Stream": "_native.stream",
    "Tensor": "_native.tensor",
    "TurboMindBlocks": "layouts.turbomind",
    "VllmPages": "layouts.vllm",
    "attention": "cache.attention",
    "merge_state": "ops.merge",
    "merge_states": "ops.merge",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found = globals()[name] = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def get_include() -> str:
    """The folder of kvit.h, for the include_dirs of an extension module that is compiled against it."""
    return os.path.join(os.path.dirname(__file__), "include")
