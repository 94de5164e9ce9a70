"""Layers of a PagedCache that are alike: one piece of memory, and the operations on it."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from kvit import _checks
from kvit._native.context import Device
from kvit._native.prepared import launch_all
from kvit._native.stream import Stream
from kvit._native.tensor import Tensor
from kvit.cache.layers import LayerKind
from kvit.cache.operations import CachedOperations
from kvit.cache.storage import channels_of, new_pools, upload, whole_rows
from kvit.dtypes import Dtype
from kvit.errors import ShapeError
from kvit.layouts.key_smoothing import KeySmoothing
from kvit.layouts.views import CacheView, Layout
from kvit.ops.append import Append
from kvit.ops.copy_pages import CopyPages
from kvit.ops.faults import FaultRecord
from kvit.ops.gather import Gather
from kvit.ops.modifiers import Window

if TYPE_CHECKING:
    from kvit.ops.shift import Shift


Storage = Literal["layers", "pages"]
"""Which lie side by side in memory: the pages of each layer, or the layers of each page."""


class Part(NamedTuple):
    """A view of some layers of a group at once: page p of layer i of them is page i * num_pages + p."""

    view: CacheView
    layers: int
    num_pages: int

    def ids(self, pages: Iterable[int]) -> list[int]:
        """These pages of every layer, layer after layer."""
        pages = list(pages)
        return [layer * self.num_pages + page for layer in range(self.layers) for page in pages]


class LayerGroup:
    """`count` layers of one kind, in one piece of memory.

    storage  "layers": the layers' pools lie one behind the other. "pages": a page is one piece of all layers

    views    CacheView of each layer, as attention reads it
    rows     CacheView of each layer, as rows are written and moved: the same, except where K and V share rows
    parts    all layers, in as few views as operations on rows can do with
    bytes    the same for copies of whole pages, which ask for no scales
    """

    def __init__(
        self,
        kind: LayerKind,
        count: int,
        pages: int,
        page_size: int,
        layout: Layout,
        compute: Dtype,
        storage: Storage,
        faults: FaultRecord,
        smoothings: list[KeySmoothing | None],
        like: LayerGroup | None = None,
    ):
        """With memory of any content. Raises what new_pools raises, ShapeError (too many pages, heads or tokens).

        smoothings  of each layer: all have one, or none
        like        a group of the same kind and storage, whose operations serve this one too
        """
        shape, in_pages = [pages, page_size, kind.kv_heads], storage == "pages" and count > 1
        axis = 0 if not in_pages else 1 if layout == "NHD" else 2
        shape[axis] *= count
        if shape[axis] > _checks.MOST:
            what = ("pages", "tokens of a page", "KV heads")[axis]
            raise ShapeError(f"{count} layers alike have {shape[axis]} {what}; kernels count at most {_checks.MOST}")
        device = Device.of(faults.buffer.device)
        scales = (None, None) if in_pages else kind.scales
        merged = new_pools(
            tuple(shape), kind.written_dims, layout, compute, kind.sides, scales, device, in_one=kind.shares_kv
        )
        self.kind, self.count, self.storage, self.faults, self.rope = kind, count, storage, faults, kind.rope
        self.smoothings, smooths = smoothings, kind.smoothing is not None
        if count == 1 and not smooths:
            self.rows = [merged]
        else:
            self.rows = [_cut(merged, kind, int(in_pages), i, count, own) for i, own in enumerate(smoothings)]
        self.views = [whole_rows(view, kind.v_dim) for view in self.rows] if kind.shares_kv else self.rows
        self.bytes = Part(merged, 1 if in_pages else count, pages)
        self.parts = [Part(view, 1, pages) for view in self.rows] if in_pages or smooths else [self.bytes]
        first, self.copy = self.rows[0], CopyPages(merged, faults=faults)
        if like is not None:
            self.append, self.append_as_it_is, self.gather = like.append, like.append_as_it_is, like.gather
            self.operations, self._shifts = like.operations, like._shifts
            return
        self.append = Append(first, rope=kind.rope, faults=faults)
        self.append_as_it_is = self.append if kind.rope is None else Append(first, faults=faults)
        self.gather = Gather(first, faults=faults)
        self.operations = CachedOperations(self.views[0], faults)
        self._shifts: dict[bool, Shift] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of all layers, used or not."""
        return self.bytes.view.nbytes

    def written(self, k: Tensor, v: Any, stream: Stream) -> tuple[Tensor, Any]:
        """Rows of K and V as append writes them, of those that a call gives: parts of whole rows, where K and V share
        them and v is None. Raises ShapeError.
        """
        kind = self.kind
        if not kind.shares_kv:
            if v is None:
                raise ShapeError("v is None, and K and V do not share rows here (shares_kv); give v as well")
            return k, _checks.tensor("v", v, None, stream)
        (last, first), heads = kind.written_dims, kind.kv_heads
        wanted = f"whole rows [tokens, {heads}, {kind.head_dim}] as k, without v"
        if v is None:
            if len(k.shape) != 3 or k.shape[-1] != kind.head_dim:
                raise ShapeError(f"k has shape {list(k.shape)} and v is None; the layer takes {wanted}")
            _checks.require_rows("k", k)
            return channels_of(k, first, kind.head_dim), channels_of(k, 0, first)
        v = _checks.tensor("v", v, None, stream)
        if k.shape[-1:] != (last,) or v.shape[-1:] != (first,):
            raise ShapeError(
                f"k has shape {list(k.shape)} and v {list(v.shape)}, and K and V share rows of {kind.head_dim} "
                f"channels; give {wanted}, or the first {first} channels as v and the last {last} as k"
            )
        return k, v

    def shift(self, rotate: bool) -> Shift:
        """The operation that moves cached tokens. Raises ValueError (no rope), KernelMissing."""
        if rotate and self.rope is None:
            raise ValueError(
                "the cache has no rope, which would say how keys turn; make it with rope=, use kvit.Shift with the "
                "rope that turned them, or say rotate=False if they hold no position"
            )
        found = self._shifts.get(rotate)
        if found is None:
            from kvit.ops.shift import Shift  # which most caches never need

            found = self._shifts[rotate] = Shift(self.parts[0].view, self.rope if rotate else None, faults=self.faults)
        return found


class Members(NamedTuple):
    """Layers of a cache that are alike: their memory, and which layers they are."""

    group: LayerGroup
    indices: list[int]


def new_members(
    kinds: list[tuple[LayerKind, Window]], begin: int, known: list[Members], *how_and_where: Any
) -> list[Members]:
    """Layers in groups of those that are alike, with memory of any content.

    begin          index of the first layer
    known          groups of the cache so far: one of the same kind lends its operations
    how_and_where  pages, page_size, layout, compute, storage and faults of a LayerGroup

    Raises what LayerGroup raises.
    """
    found: dict[Any, tuple[LayerKind, list[int], list[KeySmoothing | None]]] = {}
    for i, (kind, _) in enumerate(kinds, begin):
        _, indices, smoothings = found.setdefault(kind.key, (kind, [], []))
        indices.append(i)
        smoothings.append(kind.smoothing)
    lenders = {group.kind.key: group for group, _ in known if group.storage == "layers"}
    return [
        Members(LayerGroup(kind, len(indices), *how_and_where, smoothings, like=lenders.get(key)), indices)
        for key, (kind, indices, smoothings) in found.items()
    ]


class Place(NamedTuple):
    """Where a layer lies."""

    group: LayerGroup
    view: CacheView
    window: Window
    rows: CacheView  # the view, unless K and V share rows: then as they are written


def _cut(
    merged: CacheView, kind: LayerKind, axis: int, layer: int, count: int, smoothing: KeySmoothing | None
) -> CacheView:
    """One layer of `count`, which lie one behind the other along this axis of the pools."""

    def cut(pool: Tensor | None) -> Tensor | None:
        if pool is None:
            return None
        shape = list(pool.shape)
        shape[axis] //= count
        begin = pool.pointer + layer * shape[axis] * pool.strides[axis]
        return Tensor.from_pointer(begin, shape, pool.dtype, pool.device, strides=pool.strides, owner=pool)

    has_pairs = [codec.params == "pair" for codec in kind.sides]
    return CacheView(
        cut(merged.k),
        cut(merged.v),
        layout=merged.layout,
        kv=kind.sides,
        k_params=cut(merged.k_params) if has_pairs[0] else None,
        v_params=cut(merged.v_params) if has_pairs[1] else None,
        k_scale=kind.scales[0],
        v_scale=kind.scales[1],
        dtype=merged.dtype,
        smoothing=smoothing,
    )


def send_lists(groups: list[LayerGroup], pages: Iterable[int], stream: Stream) -> dict[int, Tensor]:
    """Lists of these pages in all layers, on the device: one for every number of layers that a part has."""
    pages, parts = list(pages), {group.bytes.layers: group.bytes for group in groups}
    return {layers: upload(part.ids(pages), stream) for layers, part in parts.items()}


def copy_pages(groups: list[LayerGroup], copies: list[tuple[int, int]], stream: Stream) -> None:
    """Copy pages (source, target) in all layers, to targets that nobody has yet."""
    sources, targets = (send_lists(groups, pages, stream) for pages in zip(*copies, strict=True))
    launches = [
        group.copy.prepare(group.bytes.view, sources[group.bytes.layers], targets[group.bytes.layers], None, stream)
        for group in groups
    ]
    launch_all([*chain.from_iterable(launches)], stream)
    groups[0].faults.last_stream = stream
