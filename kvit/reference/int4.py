"""How 4-bit codes lie in memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_NIBBLES = (0, 2, 4, 6, 1, 3, 5, 7)
"""Channel, of eight, in each nibble of a 32-bit word, least significant first: TurboMind's order. `word & 0x000f000f`
is the pair (0, 1), and each shift by four bits brings the next pair, ready for two 16-bit lanes."""


def pack_int4(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Codes [..., channels], each below 16, to bytes [..., channels / 2]: eight channels to a little-endian word."""
    *rows, channels = codes.shape
    nibbles = codes.reshape(*rows, channels // 8, 8)[..., _NIBBLES]
    return (nibbles[..., 0::2] | nibbles[..., 1::2] << 4).reshape(*rows, channels // 2)


def unpack_int4(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Bytes [..., channels / 2] to codes [..., channels]: the inverse of pack_int4."""
    *rows, num_bytes = data.shape
    words = data.reshape(*rows, num_bytes // 4, 4)
    codes = np.empty((*rows, num_bytes // 4, 8), np.uint8)
    codes[..., _NIBBLES[0::2]], codes[..., _NIBBLES[1::2]] = words & 15, words >> 4
    return codes.reshape(*rows, 2 * num_bytes)
