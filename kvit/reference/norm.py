"""RMSNorm of rows of K and Q before they turn, bit for bit as kernels do it: float32, each operation by itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_VEC8 = 8  # neighbouring channels


@dataclass(frozen=True)
class RowNorm:
    """How rows are normalised: x / sqrt(mean(x^2) + epsilon) * (offset + weight). Zhang and Sennrich, 2019.

    weight   [head_dim] in the rows' dtype
    epsilon  added to the mean square
    offset   1 where weights are kept less 1, as Gemma keeps them
    """

    weight: NDArray
    epsilon: float = 1e-6
    offset: float = 0.0


def normalise(rows: NDArray[np.float32], norm: RowNorm, rotary_dim: int = 0) -> NDArray[np.float32]:
    """Rows [..., head_dim], normalised in float32.

    rotary_dim  channels that turn afterwards. They decide nothing but the order in which squares are added: kernels
                hold rows so that the channels of a pair meet, where halves are whole vectors of 8, and have room for
                64, 128, 256 or 512 channels
    """
    channels = rows.shape[-1]
    with np.errstate(over="ignore", invalid="ignore"):  # infinity times 0 is NaN, as on a GPU
        sums = (rows * rows).reshape(*rows.shape[:-1], channels // _VEC8, _VEC8)
        while sums.shape[-1] > 1:
            sums = sums[..., 0::2] + sums[..., 1::2]
        room = max(64, 1 << (channels - 1).bit_length()) // 16  # lanes, with two vec8s each
        sums = np.concatenate(
            [sums[..., 0], np.zeros((*rows.shape[:-1], 2 * room - channels // _VEC8), np.float32)], -1
        )
        first, second = _vec8s_of_lanes(room, 0 if rotary_dim % 16 else rotary_dim // 16)
        lanes = sums[..., first] + sums[..., second]
        while lanes.shape[-1] > 1:
            lanes = lanes[..., 0::2] + lanes[..., 1::2]
        mean = lanes * (np.float32(1) / np.float32(channels))
        inverse = np.float32(1) / np.sqrt(mean + np.float32(norm.epsilon))
        return rows * inverse * (np.float32(norm.offset) + norm.weight.astype(np.float32))


def _vec8s_of_lanes(lanes: int, rotary: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The two vec8s of each lane of a row, of which `rotary` have the two halves of what turns."""
    lane = np.arange(lanes)
    turns = lane < rotary
    return np.where(turns, lane, rotary + lane), np.where(turns, rotary + lane, lanes + lane)
