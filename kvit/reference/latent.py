"""Latent rows (MLA) in 8 bits, as engines store them: bytes out of rows, and rows out of bytes.

A row has channels in float8 (e4m3), a scale for each block of them, and 64 rotary channels in bfloat16 as they are.
Every step that decides a stored bit is one float32 operation, rounded to nearest even.
"""

from __future__ import annotations

from typing import NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike, NDArray

ROTARY = 64
"""Channels that turn with the position, the last ones of a row."""

_LARGEST = np.float32(448)  # of e4m3
_LEAST_AMAX = np.float32(1e-4)  # what vLLM takes for the largest channel of a block that has none larger
_NAN = 0x7F
_EIGHT_BITS, _POWERS = np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.float8_e8m0fnu)
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class LatentRow(NamedTuple):
    """How a token is stored.

    codes         channels in float8
    block         channels that share a scale
    scale_bytes   of a token's scales, those of no block included
    behind_page   whether the scales of all tokens of a page lie behind their rows; else each row has its own, between
                  its codes and its rotary channels
    """

    codes: int
    block: int
    scale_bytes: int
    behind_page: bool

    @property
    def channels(self) -> int:
        """Of K."""
        return self.codes + ROTARY

    @property
    def row_bytes(self) -> int:
        """From one row of a page to the next."""
        return self.codes + 2 * ROTARY + (0 if self.behind_page else self.scale_bytes)

    @property
    def token_bytes(self) -> int:
        """Of a token, wherever they lie."""
        return self.codes + 2 * ROTARY + self.scale_bytes


LATENT_ROWS = {656: LatentRow(512, 128, 16, False), 584: LatentRow(448, 64, 8, True)}
"""By bytes of a token: DeepSeek V3.2 and V4."""


def encode_latent(rows: NDArray, kind: LatentRow) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Bytes of rows [..., channels] in bfloat16, as vLLM writes them: what `row_bytes` counts without scales
    [..., codes + 128], and scales [..., scale_bytes].

        656 bytes   scale  = max(amax / 448, 2**-126)                     amax: of the 128 channels of a block
        584 bytes   scale  = the least power of two >= max(amax, 1e-4) / 448, at most 2**127
        code_i      = round to nearest even(clamp(x_i / scale, -448, 448)); NaN gives 0x7f

    NaN counts for no amax, and infinity makes the scale of 656 bytes infinite, with which all of the block is NaN.
    """
    if rows.dtype != _BFLOAT16 or rows.shape[-1] != kind.channels:
        raise ValueError(f"rows are {rows.dtype} with {rows.shape[-1]} channels; give bfloat16 with {kind.channels}")
    x = rows[..., : kind.codes].astype(np.float32).reshape(*rows.shape[:-1], -1, kind.block)
    amax = np.fmax.reduce(np.abs(x), axis=-1, initial=np.float32(0))
    stored = np.zeros((*rows.shape[:-1], kind.scale_bytes), np.uint8)
    with np.errstate(all="ignore"):
        if kind.behind_page:
            mantissa, exponent = np.frexp(np.fmax(amax, _LEAST_AMAX) / _LARGEST)
            power = np.where(np.isinf(mantissa), 127, exponent - (mantissa == 0.5))
            stored[..., : power.shape[-1]] = np.minimum(power, 127) + 127
        else:
            scales = np.fmax(amax / _LARGEST, np.finfo(np.float32).smallest_normal)
            stored[...] = scales.astype(np.float32).view(np.uint8)
        scaled = x / scales_of(stored, kind)[..., None]
        codes = np.clip(scaled, -_LARGEST, _LARGEST).astype(_EIGHT_BITS)
    codes.view(np.uint8)[np.isnan(scaled)] = _NAN
    rotary = np.ascontiguousarray(rows[..., kind.codes :]).view(np.uint8)
    return np.concatenate([codes.view(np.uint8).reshape(*rows.shape[:-1], kind.codes), rotary], -1), stored


def scales_of(scales: NDArray[np.uint8], kind: LatentRow) -> NDArray[np.float32]:
    """The scale of each block [..., codes / block], out of [..., scale_bytes]."""
    blocks = kind.codes // kind.block
    if not kind.behind_page:
        return np.ascontiguousarray(scales).view(np.float32)
    return np.ascontiguousarray(scales[..., :blocks]).view(_POWERS).astype(np.float32)


def decode_latent(
    data: NDArray[np.uint8], scales: NDArray[np.uint8], kind: LatentRow, dtype: DTypeLike = ml_dtypes.bfloat16
) -> NDArray:
    """Rows [..., channels] in `dtype`, through bfloat16, as attention takes them: code * scale in float32, rounded
    once."""
    codes = np.ascontiguousarray(data[..., : kind.codes]).view(_EIGHT_BITS).astype(np.float32)
    of_blocks = codes.reshape(*codes.shape[:-1], -1, kind.block)
    with np.errstate(all="ignore"):
        numbers = (of_blocks * scales_of(scales, kind)[..., None]).astype(_BFLOAT16).reshape(codes.shape)
        rotary = np.ascontiguousarray(data[..., kind.codes :]).view(_BFLOAT16)
        return np.concatenate([numbers, rotary], -1).astype(dtype)


def latent_parts(pages: NDArray[np.uint8], page_size: int, kind: LatentRow) -> tuple[NDArray, NDArray, NDArray]:
    """Codes, rotary bytes and scales of every token, [pages, page_size, bytes], views of pages [pages, bytes].

    656 bytes   codes | scales | rotary channels              of one token after the other
    584 bytes   codes | rotary channels                       of all tokens; behind them the scales of all
    """
    rows = pages[:, : page_size * kind.row_bytes].reshape(len(pages), page_size, kind.row_bytes)
    codes, rotary = rows[..., : kind.codes], rows[..., -2 * ROTARY :]
    if not kind.behind_page:
        return codes, rotary, rows[..., kind.codes : kind.codes + kind.scale_bytes]
    begin = page_size * kind.row_bytes
    behind = pages[:, begin : begin + page_size * kind.scale_bytes]
    return codes, rotary, behind.reshape(len(pages), page_size, kind.scale_bytes)


def write_latent(
    pages: NDArray[np.uint8], page_size: int, kind: LatentRow, places: tuple[NDArray, NDArray], rows: NDArray
) -> None:
    """Store rows [tokens, channels] at places (page, token in the page)."""
    data, scales = encode_latent(rows, kind)
    codes, rotary, of_tokens = latent_parts(pages, page_size, kind)
    codes[places], rotary[places], of_tokens[places] = data[:, : kind.codes], data[:, kind.codes :], scales


def read_latent(pages: NDArray[np.uint8], page_size: int, kind: LatentRow) -> NDArray:
    """The rows [pages, page_size, 1, channels] in bfloat16 that pages [pages, bytes] hold: a cache whose K these are,
    and whose V are their first 512 channels."""
    codes, rotary, scales = latent_parts(pages, page_size, kind)
    return decode_latent(np.concatenate([codes, rotary], -1), scales, kind)[:, :, None]
