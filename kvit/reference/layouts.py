"""Where other engines keep the bytes of a row: TurboMind's blocks and vLLM's split K, in numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


def turbomind_rows(
    block: Bytes, *, page_size: int, kv_heads: int, row_bytes: int, param_bytes: int = 4, offset: int = 0
) -> tuple[Bytes, Bytes, Bytes, Bytes]:
    """Views [page_size, kv_heads, bytes] of one layer of a block: K, V, K parameters, V parameters.

    block        all bytes of a block, of all layers
    row_bytes    of a row of K, and of V
    param_bytes  of a row's parameters; 0 where there are none
    offset       where the layer begins

    The layer is [head 0 K][head 0 V][head 1 K] ... and then the same of parameters, each page_size rows side by side.
    """
    data = 2 * kv_heads * page_size * row_bytes
    params = 2 * kv_heads * page_size * param_bytes
    rows = block[offset : offset + data].reshape(kv_heads, 2, page_size, row_bytes)
    pairs = block[offset + data : offset + data + params].reshape(kv_heads, 2, page_size, param_bytes)
    k, v, k_params, v_params = (part[:, i].swapaxes(0, 1) for part in (rows, pairs) for i in (0, 1))
    return k, v, k_params, v_params


def to_vllm(k: Bytes, v: Bytes, unit: int) -> tuple[Bytes, Bytes]:
    """Rows [pages, page_size, kv_heads, bytes] of K and V, as bytes of vLLM's arrays.

    unit  bytes of an element of V; 1 where elements are smaller

    Returns k [pages, kv_heads, bytes / 16, page_size, 16] and v [pages, kv_heads, bytes / unit, page_size, unit].
    """
    pages, page_size, kv_heads, _ = k.shape
    split = k.reshape(pages, page_size, kv_heads, -1, 16).transpose(0, 2, 3, 1, 4)
    turned = v.reshape(pages, page_size, kv_heads, -1, unit).transpose(0, 2, 3, 1, 4)
    return np.ascontiguousarray(split), np.ascontiguousarray(turned)


def from_vllm(k: Bytes, v: Bytes) -> tuple[Bytes, Bytes]:
    """The inverse of to_vllm."""
    rows = (x.transpose(0, 3, 1, 2, 4) for x in (k, v))
    split, turned = (np.ascontiguousarray(x).reshape(*x.shape[:3], -1) for x in rows)
    return split, turned
