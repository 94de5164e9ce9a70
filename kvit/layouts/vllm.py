"""Pages as vLLM lays them out, rows of K split and V transposed, which ConvertPages moves to a CacheView and back."""

from __future__ import annotations

from typing import Any, NoReturn, TypeAlias

from kvit import _checks, codecs, dtypes
from kvit._native.packed_cache import PackedCache
from kvit._native.tensor import Tensor
from kvit.codecs import Codec
from kvit.errors import ShapeError, refuse_copy
from kvit.layouts.parameters import compute_dtype, parameters
from kvit.layouts.views import CacheView

_SPLIT_BYTES = 16
"""Of a chunk of a row of K in vLLM's layout: x elements."""


class VllmPages(_checks.Made):
    """K and V as vLLM's first paged kernels keep them. ConvertPages moves such pages to and from a CacheView.

    k           [pages, kv_heads, head_dim / x, page_size, x], with x elements in 16 bytes
    v           [pages, kv_heads, head_dim, page_size]
                int4, as uint8: head_dim / 2 bytes in place of head_dim, x = 16
    kv          how they are stored, as in CacheView; what the memory's dtype says if absent
    k_params, v_params  of int8 and int4: [pages, kv_heads, page_size, 2]
    k_scale, v_scale    of float8: float32 [] or [kv_heads]; 1 if absent
    dtype       of (scale, zero) and of queries, as in CacheView

    Attention does not read this layout: no 16 bytes of V belong to one token. Raises as CacheView does.
    Source: vLLM's reshape_and_cache.
    """

    smoothing = None
    """Other engines store keys as they come."""

    def __init__(
        self,
        k: Any,
        v: Any,
        *,
        kv: Any = None,
        k_params: Any = None,
        v_params: Any = None,
        k_scale: Any = None,
        v_scale: Any = None,
        dtype: Any = None,
    ):
        wanted = (None, None) if kv is None else codecs.pair_of(kv)
        sides = [_stored(name, source, codec) for name, source, codec in (("k", k, wanted[0]), ("v", v, wanted[1]))]
        (k_raw, k_codec), (v_raw, v_codec) = sides
        x = _SPLIT_BYTES * 8 // max(8, k_codec.dtype.bits)
        _checks.require_shape("k", k_raw, pages=None, kv_heads=None, chunks=None, page_size=None, x=x)
        pages, kv_heads, chunks, page_size, _ = k_raw.shape
        row_bytes = chunks * _SPLIT_BYTES
        head_dim = row_bytes * 8 // k_codec.dtype.bits
        units = v_codec.dtype.bytes_for(head_dim) // _unit(v_codec)
        _checks.require_shape("v", v_raw, pages=pages, kv_heads=kv_heads, units=units, page_size=page_size)
        _checks.require_device(k_raw.device, v=v_raw)
        if 0 in (page_size, kv_heads, head_dim):
            raise ShapeError(f"k has shape {list(k_raw.shape)}; only the number of pages may be 0")
        _checks.require_rows("k", k_raw)
        rows = {"pages": pages, "kv_heads": kv_heads, "page_size": page_size}
        for name, scale in (("k_scale", k_scale), ("v_scale", v_scale)):
            if scale is not None and len(_checks.tensor(name, scale).shape) > 1:
                raise ShapeError(f"{name} is one number, or [kv_heads], in vLLM's layout")
        self.device: str = k_raw.device
        self.k, self.v = k_raw, v_raw
        self.codecs = k_codec, v_codec
        self.k_params = parameters("k", k_codec, k_params, k_scale, rows, self.device)
        self.v_params = parameters("v", v_codec, v_params, v_scale, rows, self.device)
        self.has_unit_scale: tuple[bool, bool] = (k_scale is None, v_scale is None)
        self.dtype: dtypes.Dtype = compute_dtype(
            None if dtype is None else dtypes.dtype_of(dtype),
            k=k_raw, v=v_raw, k_params=self.k_params, v_params=self.v_params,
        )  # fmt: skip
        self.num_pages, self.kv_heads, self.page_size, self.head_dim = pages, kv_heads, page_size, head_dim
        self.k_dim = self.v_dim = head_dim
        self.layout = "vLLM"
        # (bytes, stride) of the pieces that rows of K and of V are cut into
        self.chunks = ((_SPLIT_BYTES, k_raw.strides[2]), (_unit(v_codec), v_raw.strides[2]))
        params = self.k_params, self.v_params
        self.packed = PackedCache(
            k_raw, v_raw, *(_row_strides(raw, 3) for raw in (k_raw, v_raw)),
            pages, page_size, kv_heads, head_dim, head_dim, self.dtype.code,
            *params, *(None if pool is None else _row_strides(pool, 2) for pool in params),
        )  # fmt: skip

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        refuse_copy(self, "it stands for memory of its owner; make another of the same arrays")

    @property
    def holds(self) -> str:
        """How K and V are stored, in words."""
        return codecs.describe(*self.codecs, self.dtype)

    @_checks.words_of_made
    def __repr__(self) -> str:
        return (
            f"VllmPages({self.num_pages} pages of {self.page_size} tokens, {self.kv_heads} KV heads, "
            f"head_dim {self.head_dim}, {self.holds}, {self.device})"
        )


Pages: TypeAlias = CacheView | VllmPages
"""What ConvertPages reads and writes."""


def _unit(codec: Codec) -> int:
    """Bytes that a layout across tokens keeps together: an element, or a byte of smaller ones."""
    return max(1, codec.dtype.bits // 8)


def _row_strides(pool: Tensor, token_axis: int) -> tuple[int, int, int]:
    """Bytes from one page, token and head to the next; of scales, which have no tokens, 0 and that of heads."""
    if len(pool.shape) <= 1:
        return 0, 0, pool.strides[0] if pool.shape else 0
    return pool.strides[0], pool.strides[token_axis], pool.strides[1]


def _stored(name: str, source: Any, codec: Codec | None) -> tuple[Tensor, Codec]:
    """The tensor as it lies, in whole bytes, and its codec."""
    if (
        codec is not None and codec.plain is codecs.INT4
    ):  # pairs of channels lie in a byte, but bytes of a row do not lie side by side
        return _checks.tensor(name, source, dtypes.uint8), codec
    found = _checks.tensor(name, source, None if codec is None else codec.dtype)
    return found, codec or codecs.codec_of(found.dtype)
