"""Pages of one cache converted into pages of another: other layouts, other codecs."""

from __future__ import annotations

from typing import Any, NoReturn

from kvit import _checks, codecs
from kvit._native import page_ops
from kvit._native.context import Device
from kvit._native.stream import Stream
from kvit._native.tensor import Tensor
from kvit.errors import DtypeError, ShapeError, refuse_copy
from kvit.layouts import overlap
from kvit.layouts.key_smoothing import same_smoothing
from kvit.layouts.views import CacheView, dims_key
from kvit.layouts.vllm import Pages, VllmPages
from kvit.ops import aliases
from kvit.ops.convert_side import Side, places_of
from kvit.ops.faults import FaultRecord
from kvit.ops.page_lists import page_list, require_writable
from kvit.selection import registry


class ConvertPages(_checks.Made):
    """Pages of one cache into pages of another that lays them out or stores them otherwise.

    source, target  CacheView (NHD, HND, any strides, TurboMindBlocks) or VllmPages of the caches to come: layout,
                    codecs, KV heads and head_dim count, not their memory

    K and V are looked at apart. Where the codec stays, the bytes of rows and of their parameters are moved as they are,
    between any two layouts. Where it changes, rows are decoded to the 16-bit dtype and encoded again: 16-bit to int8,
    int4 or float8_e4m3; int8 to int4; float8_e4m3 to int8 or int4; all of these back to 16-bit. A call is one launch,
    or two where a codec changes.

    Raises ShapeError, DtypeError (16-bit types differ), LayoutError (codec and vLLM's layout at once), KernelMissing
    (no such change of codec is built), NoGpuError. Defined by kvit.reference.convert_pages.
    """

    def __init__(self, source: Pages, target: Pages, *, faults: FaultRecord | None = None):
        _require_pages(source, target)
        self.kv_heads, self.k_dim, self.v_dim = source.kv_heads, source.k_dim, source.v_dim
        self.device = source.device
        self.dtype = source.dtype
        _require_same_shape("target", target, source)
        if target.dtype is not self.dtype:
            raise DtypeError(f"source is for {self.dtype} and target for {target.dtype}; both must be the same")
        self._sides = tuple(
            Side(side, source, target, *pair)
            for side, pair in enumerate(zip(source.codecs, target.codecs, strict=True))
        )
        self.faults = FaultRecord(self.device) if faults is None else faults
        self._codecs = source.codecs, target.codecs
        self._layouts = isinstance(source, VllmPages), isinstance(target, VllmPages)
        self._relayout = registry.find("relayout", tokens=32)
        self._checked: tuple[Any, Any, bool] | None = None
        self._in_place: tuple[bool, bool] = (False, False)

    @property
    def head_dim(self) -> int:
        """Channels of a row of K; of V too, unless v_dim says otherwise."""
        return self.k_dim

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        refuse_copy(self, "make another for the same pages")

    def __call__(
        self,
        source: Pages,
        target: Pages,
        *,
        source_pages: Any = None,
        target_pages: Any = None,
        stream: Any = None,
    ) -> None:
        """Convert page source_pages[i] of source into page target_pages[i] of target. Returns before the work is done.

        source_pages  int32 [count] page ids on the device, none twice; 0, 1, ... if absent
        target_pages  the same, of target. Both lists lie apart from the target
        stream        Stream, int handle, or an object with __cuda_stream__; the device's default stream if absent

        With neither list, all pages, of which both have as many. Of a page that is converted every row is, whether it
        holds a token or not. A page id that a cache does not have is reported by check(); its pair is left alone.

        In place: target may lie over source where a codec changes to one of fewer bytes, page by page, K and V each
        within their own rows: a page's new rows begin where its old ones did, with the same page stride, and token and
        head strides that are not larger; its new parameters lie in what were its own rows or parameters, or elsewhere.
        Both lists are the same, or both absent. Any other overlap is refused.

        Raises ShapeError, DtypeError, DeviceError, LayoutError (overlap, memory that is read-only); nothing is launched
        then.
        """
        stream = Stream.wrap(stream, self.device)
        _require_pages(source, target)
        self._check_shapes(source, target)
        pages = page_list("source_pages", source_pages, stream), page_list("target_pages", target_pages, stream)
        if None not in pages:
            _checks.require_shape("target_pages (like source_pages)", pages[1], count=pages[0].shape[0])
        elif pages == (None, None) and source.num_pages != target.num_pages:
            raise ShapeError(
                f"source has {source.num_pages} pages and target {target.num_pages}; say which in source_pages and "
                "target_pages"
            )
        require_writable("target", target)
        _checks.require_device(
            self.device, source=source.k, target=target.k, source_pages=pages[0], target_pages=pages[1]
        )
        self._check_overlap(source, target, _same_list(*pages))
        aliases.require_unwritten("target", target.packed, *zip(("source_pages", "target_pages"), pages, strict=True))
        device, faults = Device.of(self.device), self.faults.buffer
        moved = [side for side in self._sides if side.kernel is None]
        for side in self._sides:
            if side.kernel is not None:
                page_ops.requantise(
                    side.kernel, device, source.packed, target.packed, *pages, side.index, self._in_place[side.index],
                    faults, stream,
                )  # fmt: skip
        if moved:
            row_bytes, chunks = [0, 0, 0, 0], [[(1, 0)] * 4, [(1, 0)] * 4]
            for side in moved:
                row_bytes[side.index], row_bytes[side.index + 2] = side.row_bytes, side.param_bytes
                for into, view in zip(chunks, (source, target), strict=True):
                    into[side.index] = (side.row_bytes, 0) if view.chunks is None else view.chunks[side.index]
                    into[side.index + 2] = codecs.PARAM_BYTES, 0
            page_ops.relayout(
                self._relayout, device, source.packed, target.packed, *pages, tuple(row_bytes), tuple(chunks[0]),
                tuple(chunks[1]), faults, stream,
            )  # fmt: skip
        self.faults.last_stream = stream

    def check(self, stream: Any = None) -> None:
        """Wait for the work of `stream`, by default of the last call; raise PageTableError if a kernel met a fault."""
        self.faults.check(stream)

    def explain(self) -> str:
        """Which kernels move K and V, and how."""
        moved = f"{self._relayout.symbol}, bytes as they are"
        kernels = [side.kernel for side in self._sides]
        k, v = (moved if kernel is None else f"{kernel.symbol}, decoded and encoded" for kernel in kernels)
        return f"K: {k}\nV: {v}"

    def _check_shapes(self, source: Pages, target: Pages) -> None:
        for name, view, sides, is_vllm in zip(
            ("source", "target"), (source, target), self._codecs, self._layouts, strict=True
        ):
            if view.codecs != sides or view.dtype is not self.dtype or isinstance(view, VllmPages) != is_vllm:
                raise DtypeError(
                    f"{name} is {view!r}; the operation was made for {codecs.describe(*sides, self.dtype)}"
                    f"{' in the layout of vLLM' if is_vllm else ''}; make another ConvertPages for it"
                )
            if (view.kv_heads, view.k_dim, view.v_dim) != (self.kv_heads, self.k_dim, self.v_dim):
                raise ShapeError(
                    f"{name} has {view.kv_heads} KV heads and head_dim {dims_key(view.k_dim, view.v_dim)}; the "
                    f"operation was made for {self.kv_heads} and {dims_key(self.k_dim, self.v_dim)}; make another "
                    "ConvertPages for it"
                )
        if source.page_size != target.page_size:
            raise ShapeError(
                f"source has pages of {source.page_size} tokens and target of {target.page_size}; pages are converted "
                "as they are; gather and append change their size"
            )
        if not same_smoothing(source.smoothing, target.smoothing):
            raise DtypeError(
                "source and target smooth keys in different ways, and pages are converted as they are stored; gather "
                "from the one and append to the other"
            )
        for side in self._sides:
            side.check_scales(source, target)

    def _check_overlap(self, source: Pages, target: Pages, same_pages: bool) -> None:
        """Decide what is done in place, or raise LayoutError. The last answer is kept: views do not change."""
        key = (source.packed, target.packed, same_pages)
        if self._checked is not None and all(old is new for old, new in zip(self._checked, key, strict=True)):
            return
        old = overlap.rows_of("source", source.packed, source.codecs, source.chunks)
        new = overlap.rows_of("target", target.packed, target.codecs, target.chunks)
        self._in_place = places_of(self._sides, old, new, same_pages)
        self._checked = key

    @_checks.words_of_made
    def __repr__(self) -> str:
        old, new = (codecs.describe(*sides, self.dtype) for sides in self._codecs)
        dims = dims_key(self.k_dim, self.v_dim)
        return f"ConvertPages({old} to {new}, {self.kv_heads} KV heads, head_dim {dims}, {self.device})"


def _same_list(source_pages: Tensor | None, target_pages: Tensor | None) -> bool:
    if source_pages is None or target_pages is None:
        return source_pages is target_pages
    return source_pages.span() == target_pages.span()


def _require_pages(source: Any, target: Any) -> None:
    for name, view in (("source", source), ("target", target)):
        kind = VllmPages if isinstance(view, VllmPages) else CacheView
        _checks.made(name, view, kind, "a kvit.CacheView or kvit.VllmPages")


def _require_same_shape(name: str, view: Pages, like: Pages) -> None:
    if (view.kv_heads, view.k_dim, view.v_dim) != (like.kv_heads, like.k_dim, like.v_dim):
        raise ShapeError(
            f"{name} has {view.kv_heads} KV heads and head_dim {dims_key(view.k_dim, view.v_dim)}, source "
            f"{like.kv_heads} and {dims_key(like.k_dim, like.v_dim)}; they must be the same"
        )
    _checks.require_device(like.device, **{name: view.k})
