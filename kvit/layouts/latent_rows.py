"""Latent rows (MLA) in 8 bits in pages, as vLLM, SGLang and FlashMLA store them, which attention reads in place."""

from __future__ import annotations

from typing import Any, NamedTuple

from kvit import _checks, codecs, dtypes
from kvit._native.packed_cache import HoldsCache, PackedCache
from kvit._native.tensor import Tensor
from kvit.errors import DtypeError, LayoutError, ShapeError
from kvit.layouts.views import dims_key

V_DIM = 512
"""Channels of V, the first ones of a row."""


class _Kind(NamedTuple):
    """Where a token's bytes lie."""

    codec: codecs.Codec
    k_dim: int
    row_bytes: int  # from one row to the next; the scales of 584 bytes lie behind the rows of a page
    scale_bytes: int
    scales_at: int | None  # in the row; None: behind the rows


_KINDS = {656: _Kind(codecs.LATENT_656, 576, 656, 16, 512), 584: _Kind(codecs.LATENT_584, 512, 576, 8, None)}
_MULTIPLE = 16  # bytes: what one load brings must not cross it


class LatentRows(_checks.Made, HoldsCache):
    """Latent rows of multi-head latent attention (MLA) in 8 bits, in memory that an engine owns. Attention reads them.

    rows  [pages, page_size, 656] or [pages, page_size, 584], or the same with an axis of one KV head before the last,
          of any type of one byte (uint8, float8_e4m3fn), and on a multiple of 16 bytes; so are pages apart, by as many
          bytes as their stride says. The last axis says how a token is stored:

          656   DeepSeek V3.2, "fp8_ds_mla" of vLLM: 512 channels in float8 (e4m3), 4 float32 scales, one for each 128
                of them, and 64 rotary channels in bfloat16. K has 576 channels
          584   DeepSeek V4: the rows of a page, each 448 channels in float8 and 64 rotary ones in bfloat16, and behind
                all of them 8 bytes for each token: 7 powers of two (e8m0), one for each 64 channels, and one that is
                not read. The axes of tokens and bytes are then those of the page as a whole. K has 512 channels

    V is the first 512 channels of K. Queries and outputs are bfloat16.
    Raises ShapeError, DtypeError (elements of more bytes than one), LayoutError (strides, alignment).
    Defined by kvit.reference.decode_latent. Source: FlashMLA's tests/quant.py; vLLM's concat_and_cache_ds_mla_kernel
    and quantize_and_insert_k_kernel.
    """

    kv_heads = 1
    v_dim = V_DIM
    dtype = dtypes.bfloat16
    layout = "latent"
    smoothing = None
    shares_kv = True

    def __init__(self, rows: Any):
        found = _checks.tensor("rows", rows)
        if found.dtype.bits != 8:
            raise DtypeError(
                f"rows are {found.dtype}; give the bytes of the cache, as uint8 or another type of one byte"
            )
        shape, strides = _without_heads(found)
        kind = _KINDS.get(shape[-1])
        if kind is None:
            raise ShapeError(
                f"rows has shape {list(found.shape)}; its last axis, the bytes of a token, must be 656 (DeepSeek V3.2) "
                "or 584 (V4). Rows in 16 bits make a kvit.CacheView"
            )
        pages, page_size, token_bytes = shape
        if page_size == 0 or max(shape) > _checks.MOST:
            raise ShapeError(
                f"rows has shape {list(found.shape)}; a page holds at least 1 token, and at most {_checks.MOST}"
            )
        _require_places(found, pages, page_size, (strides[0], strides[1], strides[2]))

        self.num_pages, self.page_size, self.token_bytes = pages, page_size, token_bytes
        self.k_dim: int = kind.k_dim
        self.codecs = (kind.codec, kind.codec)
        page, row, scale = strides[0], kind.row_bytes, kind.scale_bytes
        begin, apart = (page_size * row, scale) if kind.scales_at is None else (kind.scales_at, row)
        self.k: Tensor = _part(found, 0, (pages, page_size, 1, row), (page, row))
        self.v: Tensor = self.k
        self.k_params: Tensor = _part(found, begin, (pages, page_size, 1, scale), (page, apart))
        self.v_params: Tensor | None = None
        self.packed = PackedCache(
            self.k, self.v, (page, row, row), (page, row, row), pages, page_size, 1, self.k_dim, V_DIM,
            self.dtype.code, self.k_params, None, (page, apart, apart), None,
        )  # fmt: skip

    @property
    def device(self) -> str:
        """ "cuda:N" or "host"."""
        return self.k.device

    @property
    def head_dim(self) -> int:
        """Channels of a row of K, and of a query: 576 or 512."""
        return self.k_dim

    @property
    def dims(self) -> int | str:
        """Channels of rows as the kernels' axis `head_dim` has them: "576x512" or 512."""
        return dims_key(self.k_dim, self.v_dim)

    @property
    def nbytes(self) -> int:
        """Bytes of all tokens, used or not; those that pad pages are not among them."""
        return self.num_pages * self.page_size * self.token_bytes

    @property
    def holds(self) -> str:
        """How K and V are stored, in words."""
        return f"{self.codecs[0]} rows of {self.token_bytes} bytes"

    @_checks.words_of_made
    def __repr__(self) -> str:
        return f"LatentRows({self.num_pages} pages of {self.page_size} tokens, {self.holds}, {self.device})"


def _without_heads(found: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and strides as [pages, page_size, bytes]. Raises ShapeError."""
    shape, strides = found.shape, found.strides
    if len(shape) == 4 and shape[2] == 1:
        return (*shape[:2], shape[3]), (*strides[:2], strides[3])
    if len(shape) != 3:
        raise ShapeError(
            f"rows has shape {list(shape)}; give [pages, page_size, bytes of a token], or the same with one KV head "
            "before the last axis"
        )
    return shape, strides


def _require_places(found: Tensor, pages: int, page_size: int, strides: tuple[int, int, int]) -> None:
    """Raise LayoutError unless a page is one piece of memory, and what is read lies where loads may be."""
    token_bytes = found.shape[-1]
    if strides[2] != 1 or (page_size > 1 and strides[1] != token_bytes):
        raise LayoutError(
            f"rows has strides {list(found.strides)} bytes; the tokens of a page must lie side by side, {token_bytes} "
            "bytes each: only pages may be further apart"
        )
    if pages > 1 and (strides[0] % _MULTIPLE or strides[0] < page_size * token_bytes):
        raise LayoutError(
            f"pages of rows are {strides[0]} bytes apart; pages of {page_size} tokens of {token_bytes} bytes must be "
            f"apart by a multiple of {_MULTIPLE} bytes, {page_size * token_bytes} at least. vLLM pads those of 584 to "
            "a multiple of 576"
        )
    if found.pointer % _MULTIPLE:
        raise LayoutError(f"rows begins at address {found.pointer:#x}; it must be a multiple of {_MULTIPLE} bytes")


def _part(found: Tensor, begin: int, shape: tuple[int, ...], steps: tuple[int, int]) -> Tensor:
    """Bytes of every token, from `begin` of a page on; pages and tokens are `steps` bytes apart."""
    return Tensor.from_pointer(
        found.pointer + begin, shape, "uint8", found.device, strides=(*steps, steps[1], 1), readonly=found.readonly,
        owner=found,
    )  # fmt: skip
