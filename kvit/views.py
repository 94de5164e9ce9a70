"""Memory that the caller owns, as kvit reads it in place: K and V in pages, and the tables that say whose they are."""

from __future__ import annotations

from typing import Any, Literal

from . import _checks, dtypes
from ._native.ops import PackedCache, PackedTable
from ._native.tensor import Tensor
from .errors import LayoutError, ShapeError

Layout = Literal["NHD", "HND"]

_AXES = {
    "NHD": ("pages", "page_size", "kv_heads", "head_dim"),
    "HND": ("pages", "kv_heads", "page_size", "head_dim"),
}
_AXES_WITHOUT_PAGES = {"NHD": ("tokens", "kv_heads", "head_dim"), "HND": ("kv_heads", "tokens", "head_dim")}


class CacheView:
    """K and V in pages, in memory that somebody else owns.

    k, v       NHD: [pages, page_size, kv_heads, head_dim]
               HND: [pages, kv_heads, page_size, head_dim]
               Objects with DLPack, __cuda_array_interface__ or the buffer protocol, numpy arrays, kvit.Buffer. Any
               strides, as long as channels lie side by side and rows begin at multiples of 16 bytes: K and V may be
               halves of one tensor.
    layout     the order of the axes
    page_size  tokens of a page. Needed for k and v without an axis of pages, NHD [tokens, kv_heads, head_dim] or
               HND [kv_heads, tokens, head_dim], which it cuts into pages; else it may be left out
    kv         dtype of the elements where the memory can only say "16 bits"; theirs if absent

    Raises ShapeError, DtypeError (K and V differ), DeviceError (on two devices), LayoutError (strides, alignment).
    """

    def __init__(self, k: Any, v: Any, *, layout: Layout = "NHD", page_size: int | None = None, kv: Any = None):
        if layout not in _AXES:
            raise LayoutError(
                f"layout is {layout!r}; it must be 'NHD' (tokens before heads) or 'HND' (heads before tokens)"
            )
        if page_size is not None and page_size < 1:
            raise ShapeError(f"page_size is {page_size}; a page holds at least 1 token")
        dtype = None if kv is None else dtypes.dtype_of(kv)
        k = _checks.tensor("k", k, dtype)
        v = _checks.tensor("v", v, k.dtype)
        cuts_pages = page_size is not None and len(k.shape) == 3
        names = _AXES_WITHOUT_PAGES[layout] if cuts_pages else _AXES[layout]
        _checks.require_shape("k", k, **dict.fromkeys(names))
        lengths = dict(zip(names, k.shape, strict=True))
        _checks.require_shape("v (like k)", v, **lengths)
        _checks.require_device(k.device, v=v)
        _checks.require_rows("k", k)
        _checks.require_rows("v", v)
        if cuts_pages:
            num_pages, rest = divmod(lengths["tokens"], page_size)
            if rest:
                raise ShapeError(f"k has {lengths['tokens']} tokens, which are no whole number of pages of {page_size}")
        else:
            num_pages = lengths["pages"]
            if page_size not in (None, lengths["page_size"]):
                raise ShapeError(
                    f"page_size is {page_size}, but in layout {layout} the pages of k hold {lengths['page_size']}"
                )
            page_size = lengths["page_size"]
        if 0 in (page_size, lengths["kv_heads"], lengths["head_dim"]):
            raise ShapeError(f"k has shape {list(k.shape)}; only the number of pages may be 0")

        self.k: Tensor = k
        self.v: Tensor = v
        self.layout: Layout = layout
        self.num_pages: int = num_pages
        self.page_size: int = page_size
        self.kv_heads: int = lengths["kv_heads"]
        self.head_dim: int = lengths["head_dim"]
        self._packed = PackedCache(
            k, v, self._strides(names, k), self._strides(names, v), num_pages, page_size, self.kv_heads, self.head_dim
        )

    def _strides(self, names: tuple[str, ...], pool: Tensor) -> tuple[int, int, int]:
        """Bytes from one page, token and head to the next."""
        step = dict(zip(names, pool.strides, strict=True))
        token = step.get("tokens", step.get("page_size"))
        return step.get("pages", token * self.page_size), token, step["kv_heads"]

    @property
    def dtype(self) -> dtypes.Dtype:
        """Of the stored elements."""
        return self.k.dtype

    @property
    def device(self) -> str:
        """ "cuda:N" or "host"."""
        return self.k.device

    def __repr__(self) -> str:
        return (
            f"CacheView({self.num_pages} pages of {self.page_size} tokens, {self.kv_heads} KV heads, "
            f"head_dim {self.head_dim}, {self.dtype}, {self.layout}, {self.device})"
        )


class PageTable:
    """Which pages hold which sequence, and how many tokens each has. Lives where the cache lives; kernels read it
    there.

    lengths  [sequences] tokens of each sequence, those that the call adds or asks about included
    pages    [sequences, slots] page ids, in the order of the tokens; entries past a sequence's last page are never
             read. Or:
    indices  [entries] page ids of all sequences, end to end, and
    indptr   [sequences + 1] where each sequence's begin

    All int32. The contents may change between calls, in a captured graph too: kernels check them as they read, and what
    they find wrong is reported by check() of the Attention or PagedCache.
    Raises ShapeError, DtypeError, DeviceError (not all on one device), LayoutError (entries not side by side).
    """

    def __init__(self, pages: Any = None, *, lengths: Any, indptr: Any = None, indices: Any = None):
        is_ragged = indptr is not None and indices is not None
        if (pages is None) != is_ragged or (indptr is None) != (indices is None):
            raise ShapeError("give pages [sequences, slots], or both indptr [sequences + 1] and indices [entries]")
        lengths = _checks.tensor("lengths", lengths, dtypes.int32)
        _checks.require_shape("lengths", lengths, sequences=None)
        _checks.require_dense("lengths", lengths)
        self.num_sequences: int = lengths.shape[0]
        if is_ragged:
            name, pages = "indices", _checks.tensor("indices", indices, dtypes.int32)
            _checks.require_shape("indices", pages, entries=None)
            indptr = _checks.tensor("indptr", indptr, dtypes.int32)
            _checks.require_shape("indptr", indptr, **{"sequences + 1": self.num_sequences + 1})
            _checks.require_dense("indptr", indptr)
            _checks.require_device(lengths.device, indptr=indptr)
        else:
            name, pages = "pages", _checks.tensor("pages", pages, dtypes.int32)
            _checks.require_shape("pages", pages, sequences=self.num_sequences, slots=None)
        _checks.require_dense(name, pages)
        _checks.require_device(lengths.device, **{name: pages})
        self.pages: Tensor = pages
        self.indptr: Tensor | None = indptr
        self.lengths: Tensor = lengths
        self._packed = PackedTable(pages, indptr, lengths)

    @property
    def device(self) -> str:
        """ "cuda:N" or "host"."""
        return self.lengths.device

    def __repr__(self) -> str:
        form = f"{list(self.pages.shape)} pages" if self.indptr is None else f"{self.pages.shape[0]} pages, ragged"
        return f"PageTable({self.num_sequences} sequences, {form}, {self.device})"
