"""Which probe kernels there are: a spec is a point of a family's axes, and knows the iterators of its kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from kvit.errors import KernelMissing, ShapeError
from kvit.iterators.box_iterator import BoxIterator
from kvit.iterators.gmem_iterator import GmemIterator
from kvit.iterators.kv_layout import kv_layout, kv_thread_map, param_layout, param_thread_map
from kvit.iterators.raked_thread_map import WARP
from kvit.iterators.tensor_layout import TensorLayout
from kvit.selection import registry

_WARPS = 4
_BITS = {"f16": 16, "bf16": 16, "u8": 8, "u4": 4}
_BARRIER_BYTES = 8


class _Spec:
    # What both families have in common.
    family: ClassVar[str]
    names: ClassVar[Mapping[str, Sequence[str]]]
    element: str
    head_dim: int
    tile: int
    stages: int

    def __post_init__(self) -> None:
        for name, known in self.names.items():
            given = getattr(self, name)
            if not isinstance(given, str) or given not in known:
                raise ShapeError(f"{name} is {getattr(self, name)!r}; it must be {' or '.join(known)}")
        for name in ("head_dim", "tile", "stages"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ShapeError(f"{name} is {value!r}; it must be a whole number of at least 1")
        _ = self.iterators  # makes their maps and layouts, which refuse a tile that they cannot deal out

    @property
    def bits(self) -> int:
        """Of an element."""
        return _BITS[self.element]

    @property
    def row_bytes(self) -> int:
        """Of a token's channels, one head."""
        return self.head_dim * self.bits // 8

    @property
    def iterators(self) -> Sequence[GmemIterator | BoxIterator]:
        raise NotImplementedError

    @property
    def image_bytes(self) -> int:
        """Of the shared memory that a probe hands out: all stages of all iterators."""
        return sum(iterator.tile_bytes * self.stages for iterator in self.iterators)

    @property
    def fragment_bytes(self) -> int:
        """Of a thread."""
        return sum(iterator.fragment_bytes for iterator in self.iterators)


@dataclass(frozen=True)
class ProbeSpec(_Spec):
    """One kernel of family `probe`: a point of its axes in kernels/manifest.toml.

    Raises ShapeError (a name or a count that no kernel can have), LayoutError (a tile that its iterator cannot deal
    out). Whether the kernel is built is asked by probe.
    """

    family: ClassVar[str] = "probe"
    names: ClassVar[Mapping[str, Sequence[str]]] = {
        "loader": ("sm70", "sm80"),
        "element": tuple(_BITS),
        "source": ("paged", "linear"),
    }

    loader: str  # "sm70": through registers; "sm80": asynchronous copies
    element: str  # "f16", "bf16", "u8", "u4"; below 16 bits with (scale, zero) pairs in f16
    head_dim: int
    tile: int  # tokens
    stages: int
    source: str  # "paged", "linear"

    @property
    def has_params(self) -> bool:
        return self.bits < 16

    @property
    def data(self) -> GmemIterator:
        """How K and V move."""
        thread_map = kv_thread_map(self.bits, self.head_dim, self.tile, _WARPS)
        return GmemIterator(thread_map, kv_layout(self.bits, self.head_dim, self.tile), self.bits)

    @property
    def params(self) -> GmemIterator:
        """How their parameters move."""
        return GmemIterator(param_thread_map(self.data.thread_map), param_layout(self.tile), 16)

    @property
    def iterators(self) -> tuple[GmemIterator, ...]:
        """Of K, V, and where there are any, K parameters and V parameters."""
        return (self.data, self.data, self.params, self.params) if self.has_params else (self.data, self.data)

    @property
    def threads(self) -> int:
        return self.data.thread_map.threads

    @property
    def shared_bytes(self) -> int:
        return self.image_bytes


@dataclass(frozen=True)
class BoxProbeSpec(_Spec):
    """One kernel of family `probe_boxes`, Sm90GmemIterator: a point of its axes in kernels/manifest.toml.

    Raises as ProbeSpec.
    """

    names: ClassVar[Mapping[str, Sequence[str]]] = {"element": ("f16", "u8", "u4")}
    family: ClassVar[str] = "probe_boxes"
    source: ClassVar[str] = "paged"
    threads: ClassVar[int] = WARP

    element: str  # "f16", "u8", "u4": codes alone, since parameters do not come by tensor copies
    head_dim: int
    tile: int  # tokens of the warp's tile
    stages: int

    @property
    def data(self) -> BoxIterator:
        """How K and V move."""
        return BoxIterator(TensorLayout(self.row_bytes, self.tile))

    @property
    def iterators(self) -> tuple[BoxIterator, ...]:
        """Of K and V."""
        return (self.data, self.data)

    @property
    def shared_bytes(self) -> int:
        """The image, and behind it a barrier per stage."""
        return self.image_bytes + self.stages * _BARRIER_BYTES


def spec_of(symbol: str) -> ProbeSpec | BoxProbeSpec:
    """The spec of a built kernel. Raises KernelMissing: there is none of that name."""
    built = []
    for kind in (ProbeSpec, BoxProbeSpec):
        for entry in registry.candidates(kind.family):
            if entry.symbol == symbol:
                return kind(**entry.axes)
            built.append(entry.symbol)
    raise KernelMissing(f"{symbol} is no probe kernel; built are {', '.join(built) or 'none'}")
