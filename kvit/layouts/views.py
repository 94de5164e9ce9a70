"""Memory that the caller owns, as kvit reads it in place: K and V in pages, and the tables that say whose they are."""

from __future__ import annotations

from typing import Any, Literal, NoReturn

from kvit import _checks, codecs, dtypes
from kvit._native.packed_cache import HoldsCache, PackedCache
from kvit._native.packed_table import HoldsTable, PackedTable
from kvit._native.tensor import Tensor
from kvit.errors import LayoutError, ShapeError
from kvit.layouts.key_smoothing import KeySmoothing, pack_smoothing
from kvit.layouts.parameters import compute_dtype, parameters

Layout = Literal["NHD", "HND"]

_AXES = {
    "NHD": ("pages", "page_size", "kv_heads", "head_dim"),
    "HND": ("pages", "kv_heads", "page_size", "head_dim"),
}
_AXES_WITHOUT_PAGES = {"NHD": ("tokens", "kv_heads", "head_dim"), "HND": ("kv_heads", "tokens", "head_dim")}


def dims_key(k_dim: int, v_dim: int) -> int | str:
    """A value of the kernels' axis `head_dim`: the channels of rows of K and V, or "192x128" where they differ."""
    return k_dim if k_dim == v_dim else f"{k_dim}x{v_dim}"


class CacheView(_checks.Made, HoldsCache):
    """K and V in pages, in memory that somebody else owns.

    k, v                NHD: [pages, page_size, kv_heads, head_dim]
                        HND: [pages, kv_heads, page_size, head_dim]
                        Objects with DLPack, __cuda_array_interface__ or the buffer protocol, numpy arrays, kvit.Buffer.
                        Any strides, as long as channels lie side by side and rows begin at multiples of 16 bytes: K and
                        V may be halves of one tensor. int4 is uint8 [..., head_dim / 2].
    layout              the order of the axes
    page_size           tokens of a page. Needed for k and v without an axis of pages, NHD [tokens, kv_heads, head_dim]
                        or HND [kv_heads, tokens, head_dim], which it cuts into pages; else it may be left out
    kv                  how they are stored: "float16", "bfloat16", "int8", "int4", "float8_e4m3", "float8_e5m2",
                        "int8_hadamard", "int4_hadamard", or a pair (of K, of V); what the memory's dtype says if absent
    k_params, v_params  of int8 and int4: (scale, zero) of every row, like k and v with 2 in place of head_dim, in the
                        dtype of the queries; a row is scale * code + zero
    k_scale, v_scale    of float8: float32, [] for all rows, [kv_heads], or like k and v without channels; 1 if absent.
                        Finite, and 2^-120 at least; the first two are checked where they are in host memory
    dtype               of the queries; the 16-bit one among those above if absent, bfloat16 if there is none
    smoothing           KeySmoothing of as many KV heads and channels: keys are stored less a mean, and divided by a
                        width. Append, Gather and Shift see to it; queries are those that append gives back

    Raises ShapeError, DtypeError (a scale that is none, too), DeviceError (on two devices), LayoutError (strides,
    alignment).
    """

    chunks: tuple[tuple[int, int], tuple[int, int]] | None = None
    """Rows are not cut into pieces, as those of VllmPages are."""
    smoothing: KeySmoothing | None = None
    """What keys pass through on their way into pages, and back on their way out."""

    def __init__(
        self,
        k: Any,
        v: Any,
        *,
        layout: Layout = "NHD",
        page_size: int | None = None,
        kv: Any = None,
        k_params: Any = None,
        v_params: Any = None,
        k_scale: Any = None,
        v_scale: Any = None,
        dtype: Any = None,
        smoothing: KeySmoothing | None = None,
    ):
        _checks.require_layout(layout)
        if page_size is not None:
            page_size = _checks.whole("page_size", page_size)
            if page_size < 1:
                raise ShapeError(f"page_size is {page_size}; a page holds at least 1 token")
            if page_size > _checks.MOST:
                raise ShapeError(f"page_size is {page_size}; a page holds at most {_checks.MOST} tokens")
        wanted = (None, None) if kv is None else codecs.pair_of(kv)
        k, k_codec = _stored("k", k, wanted[0])
        v, v_codec = _stored("v", v, wanted[1])
        places = PackedCache.places(k, v, layout, page_size)
        if places is None:
            _refuse(k, v, layout, page_size)
        num_pages, page_size, kv_heads, k_dim, v_dim, k_strides, v_strides = places

        self.k: Tensor = k
        self.v: Tensor = v
        self.codecs: tuple[codecs.Codec, codecs.Codec] = (k_codec, v_codec)
        self.layout: Layout = layout
        self.num_pages: int = num_pages
        self.page_size: int = page_size
        self.kv_heads: int = kv_heads
        self.k_dim: int = k_dim
        self.v_dim: int = v_dim
        device = k.device
        rows = self._rows() if k_codec.params or v_codec.params else {}
        self.k_params = parameters("k", k_codec, k_params, k_scale, rows, device)
        self.v_params = parameters("v", v_codec, v_params, v_scale, rows, device)
        self.has_unit_scale: tuple[bool, bool] = (k_scale is None, v_scale is None)
        self.dtype: dtypes.Dtype = compute_dtype(
            None if dtype is None else dtypes.dtype_of(dtype), k=k, v=v, k_params=self.k_params, v_params=self.v_params
        )
        self.smoothing = smoothing
        self.packed = PackedCache(
            k,
            v,
            k_strides,
            v_strides,
            num_pages,
            page_size,
            kv_heads,
            k_dim,
            v_dim,
            self.dtype.code,
            self.k_params,
            self.v_params,
            self._parameter_strides(self.k_params),
            self._parameter_strides(self.v_params),
            hadamard=(k_codec.hadamard_block(k_dim), v_codec.hadamard_block(v_dim)),
            smoothing=None if smoothing is None else pack_smoothing(smoothing, kv_heads, k_dim, device),
            has_mean=smoothing is not None and smoothing.has_mean,
        )

    def _rows(self) -> dict[str, int]:
        """The axes of the pools without channels, in order."""
        names = (_AXES if len(self.k.shape) == 4 else _AXES_WITHOUT_PAGES)[self.layout]
        return dict(zip(names[:-1], self.k.shape, strict=False))

    def _parameter_strides(self, params: Tensor | None) -> tuple[int, int, int] | None:
        """Bytes from one page, token and head to the next."""
        if params is None:
            return None
        if len(params.shape) <= 1:  # one for all rows, or one for each head
            return 0, 0, params.strides[0] if params.shape else 0
        step = dict(zip(self._rows(), params.strides, strict=False))
        token = step.get("tokens", step.get("page_size"))
        return step.get("pages", token * self.page_size), token, step["kv_heads"]

    @property
    def device(self) -> str:
        """ "cuda:N" or "host"."""
        return self.k.device

    @property
    def head_dim(self) -> int:
        """Channels of a row of K, and of a query; of V too, unless v_dim says otherwise."""
        return self.k_dim

    @property
    def dims(self) -> int | str:
        """Channels of rows as the kernels' axis `head_dim` has them: 128, or "192x128" where V has others than K."""
        return dims_key(self.k_dim, self.v_dim)

    @property
    def shares_kv(self) -> bool:
        """Whether rows of V are the first v_dim channels of the rows of K, in the same memory."""
        (k_base, *k_strides), (v_base, *v_strides) = self.packed.pools[:2]
        return self.num_pages > 0 and self.v_dim <= self.k_dim and (k_base, k_strides) == (v_base, v_strides)

    @property
    def nbytes(self) -> int:
        """Bytes of K, V and their parameters, used or not."""
        values = None if self.shares_kv else self.v
        return sum(pool.nbytes for pool in (self.k, values, self.k_params, self.v_params) if pool is not None)

    @property
    def holds(self) -> str:
        """How K and V are stored, in words."""
        return codecs.describe(*self.codecs, self.dtype)

    @_checks.words_of_made
    def __repr__(self) -> str:
        return (
            f"CacheView({self.num_pages} pages of {self.page_size} tokens, {self.kv_heads} KV heads, "
            f"head_dim {self.dims}, {self.holds}, {self.layout}, {self.device})"
        )


def _stored(name: str, source: Any, wanted: codecs.Codec | None) -> tuple[Tensor, codecs.Codec]:
    """The pool as its codec has it, and the codec."""
    pool = _checks.tensor(name, source, None if wanted is None else wanted.dtype)
    dtype = pool.dtype
    codec = wanted or codecs.codec_of(dtype)
    return (pool if codec.dtype is dtype else _checks.tensor(name, pool, codec.dtype)), codec


def _refuse(k: Tensor, v: Tensor, layout: Layout, page_size: int | None) -> NoReturn:
    """Say why PackedCache.places does not take these pools."""
    cuts_pages = page_size is not None and len(k.shape) == 3
    names = (_AXES_WITHOUT_PAGES if cuts_pages else _AXES)[layout]
    _checks.require_shape("k", k, **dict.fromkeys(names))
    lengths = dict(zip(names, k.shape, strict=True))
    _checks.require_shape("v (like k)", v, **{**lengths, "head_dim": None})
    _checks.require_device(k.device, v=v)
    _checks.require_rows("k", k)
    _checks.require_rows("v", v)
    if cuts_pages and lengths["tokens"] % page_size:
        raise ShapeError(f"k has {lengths['tokens']} tokens, which are no whole number of pages of {page_size}")
    if not cuts_pages and page_size not in (None, lengths["page_size"]):
        raise ShapeError(f"page_size is {page_size}, but in layout {layout} the pages of k hold {lengths['page_size']}")
    if 0 in (page_size or lengths["page_size"], lengths["kv_heads"], lengths["head_dim"], v.shape[-1]):
        raise ShapeError(f"k has shape {list(k.shape)}; only the number of pages may be 0")
    raise LayoutError(f"k has strides {list(k.strides)} bytes, v {list(v.strides)}; no address space is that large")


class PageTable(_checks.Made, HoldsTable):
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
        packed = PackedTable.fitting(indices if is_ragged else pages, indptr, lengths)
        if packed is None:
            packed = _checked_table(indices if is_ragged else pages, indptr, lengths)
        self.num_sequences: int = packed.lengths.shape[0]
        self.pages: Tensor = packed.pages
        self.indptr: Tensor | None = packed.indptr
        self.lengths: Tensor = packed.lengths
        self.packed = packed

    @property
    def device(self) -> str:
        """ "cuda:N" or "host"."""
        return self.lengths.device

    @_checks.words_of_made
    def __repr__(self) -> str:
        form = f"{list(self.pages.shape)} pages" if self.indptr is None else f"{self.pages.shape[0]} pages, ragged"
        return f"PageTable({self.num_sequences} sequences, {form}, {self.device})"


def _checked_table(pages: Any, indptr: Any, lengths: Any) -> PackedTable:
    """For arrays that do not fit as they are: what fits as int32 does, or why not."""
    lengths = _checks.tensor("lengths", lengths, dtypes.int32)
    _checks.require_shape("lengths", lengths, sequences=None)
    _checks.require_dense("lengths", lengths)
    num_sequences = lengths.shape[0]
    if indptr is not None:
        name, pages = "indices", _checks.tensor("indices", pages, dtypes.int32)
        _checks.require_shape("indices", pages, entries=None)
        indptr = _checks.tensor("indptr", indptr, dtypes.int32)
        _checks.require_shape("indptr", indptr, **{"sequences + 1": num_sequences + 1})
        _checks.require_dense("indptr", indptr)
        _checks.require_device(lengths.device, indptr=indptr)
    else:
        name, pages = "pages", _checks.tensor("pages", pages, dtypes.int32)
        _checks.require_shape("pages", pages, sequences=num_sequences, slots=None)
    _checks.require_dense(name, pages)
    _checks.require_device(lengths.device, **{name: pages})
    return PackedTable(pages, indptr, lengths)
