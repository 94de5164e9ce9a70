"""The model of kernels/layout/kv_layout.cuh: the maps and layouts of K and V tiles that kernels use."""

from __future__ import annotations

from kvit.errors import LayoutError
from kvit.iterators.raked_thread_map import WARP, RakedThreadMap, low_bit
from kvit.iterators.smem_layout import SmemLayout
from kvit.iterators.swizzle import Swizzle


def kv_layout(bits: int, head_dim: int, tokens: int) -> SmemLayout:
    """Layout of a [tokens, head_dim] tile of `bits`-bit elements: no bank conflicts, every 16-byte vector aligned.

    Raises LayoutError where a power-of-two part of head_dim is less than two 16-byte vectors.
    """
    vector = 128 // bits
    c0 = min(low_bit(head_dim), 8 * vector)
    if c0 < 2 * vector:
        raise LayoutError(f"head_dim {head_dim} in {bits} bits has no layout; it must be a multiple of {2 * vector}")
    return SmemLayout(tokens, head_dim, 32 if c0 == 2 * vector else 16, c0, Swizzle(3, vector.bit_length() - 1, 3))


def kv_thread_map(bits: int, head_dim: int, tokens: int, warps: int) -> RakedThreadMap:
    """Deals a [tokens, head_dim] tile of `bits`-bit elements to `warps` warps, 16 bytes per access."""
    return RakedThreadMap(head_dim, tokens, 128 // bits, warps, min(WARP, low_bit(head_dim) * bits // 128))


def param_layout(tokens: int) -> SmemLayout:
    """Layout of a tile's parameters: a (scale, zero) pair per token, densely."""
    return SmemLayout(tokens, 2, tokens, 2)


def param_thread_map(data: RakedThreadMap) -> RakedThreadMap:
    """Deals the parameters of `data`'s tile, one pair per access: each warp those of its own tokens."""
    lanes = 1 if data.footprint_s >= WARP else WARP // data.footprint_s
    return RakedThreadMap(2, data.dim_s, 2, data.warp_count, lanes, data.warp_c)
