"""Attention over paged KV caches on NVIDIA GPUs, and on the host: precompiled kernels, raw buffers, no framework.

Names are loaded when they are first used, so that `import kvit` costs next to nothing and needs no driver.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from .errors import (
    BuildError,
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
    from ._native.stream import Stream
    from ._native.tensor import Tensor
    from .attention import Attention, attention, merge_states
    from .cache import PagedCache
    from .sequence import Sequence
    from .views import CacheView, PageTable

_HOME = {
    "Attention": ".attention",
    "Buffer": "._native.buffer",
    "CacheView": ".views",
    "Device": "._native.context",
    "Event": "._native.event",
    "PageTable": ".views",
    "PagedCache": ".cache",
    "Sequence": ".sequence",
    "Stream": "._native.stream",
    "Tensor": "._native.tensor",
    "attention": ".attention",
    "merge_states": ".attention",
}

__all__ = [
    "Attention",
    "Buffer",
    "BuildError",
    "CacheFull",
    "CacheView",
    "Device",
    "DeviceError",
    "DriverError",
    "DtypeError",
    "Event",
    "HostBackendError",
    "KernelMissing",
    "KvitError",
    "LayoutError",
    "NoGpuError",
    "PageTable",
    "PageTableError",
    "PagedCache",
    "Sequence",
    "SequenceFreed",
    "ShapeError",
    "Stream",
    "Tensor",
    "attention",
    "merge_states",
]


def __getattr__(name: str) -> object:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'kvit' has no attribute {name!r}")
    value = getattr(importlib.import_module(home, __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
