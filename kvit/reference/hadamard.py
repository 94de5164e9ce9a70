"""The Hadamard transform of rows, by blocks of channels: spreads what a few channels have over all of a block."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

MOST_CHANNELS = 128
"""Of a block."""

_T = TypeVar("_T", bound=np.floating)


def block_of(head_dim: int) -> int:
    """Channels of a block: the largest power of two that divides head_dim, at most MOST_CHANNELS.

    Raises ValueError for a head_dim that is no multiple of 8.
    """
    if head_dim % 8:
        raise ValueError(f"rows of {head_dim} channels have no blocks; a multiple of 8 has")
    return min(head_dim & -head_dim, MOST_CHANNELS)


def hadamard(x: NDArray[_T], dtype: DTypeLike | None = None) -> NDArray:
    """The transform of each block of rows x [..., head_dim], which is its own inverse:

        y_i = sum_j (-1)^(number of ones in the bits of i & j) x_j / sqrt(block)

    dtype  None: what x is, in which it is computed. Else x, of any type, is brought to float32, each stage is rounded
           to it, and the result to `dtype`: the bits that kernels make. The stages go from neighbours to the halves of
           a block, a stage replaces (a, b) by (a + b, a - b), and the root comes last.
    """
    block = block_of(x.shape[-1])
    y = (x if dtype is None else x.astype(np.float32)).reshape(*x.shape[:-1], x.shape[-1] // block, block)
    with np.errstate(all="ignore"):  # what is not finite stays so
        step = 1
        while step < block:
            pairs = y.reshape(*y.shape[:-1], block // (2 * step), 2, step)
            first, second = pairs[..., 0, :], pairs[..., 1, :]
            y = np.stack([first + second, first - second], axis=-2).reshape(y.shape)
            step *= 2
        y = y * _unit(block, y.dtype)
        return y.reshape(x.shape).astype(y.dtype if dtype is None else dtype)


def _unit(block: int, dtype: np.dtype) -> np.floating:
    """1 / sqrt(block), in float32 a power of two times the root of 1/2 as float32 has it."""
    log2 = block.bit_length() - 1
    root = dtype.type(np.sqrt(0.5)) if log2 % 2 else dtype.type(1)
    return root * dtype.type(2.0 ** -(log2 // 2))
