"""Rows as 4-bit floats (e2m1), each block of channels with a scale of its own: NVFP4 and MXFP4."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from .codec import Codec, Encoded, compute_dtype, precision_of, refuse_scale

E2M1, E4M3, E8M0 = (np.dtype(t) for t in (ml_dtypes.float4_e2m1fn, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e8m0fnu))
_LARGEST, _LARGEST_SCALE = np.float32(6), np.float32(448)  # of e2m1 and of e4m3
_SIXTH = np.float32(1 / 6)
_E8M0_NAN = 0xFF
_SLACK = 1 + 2.0**-20  # for float32's roundings, in error bounds


class Float4(Codec):
    """e2m1 in blocks of `block` channels: x = scale * block scale * code, of codes 0, 0.5, 1, 1.5, 2, 3, 4, 6 and less.

    Two codes to a byte, the channel with the even number in the low bits. A row's block scales lie in the order of its
    blocks, one byte each; Encoded.params has them, [..., head_dim / block] in `scale_dtype`.
    """

    bits = 4
    block: int
    scale_dtype: np.dtype

    def data_dtype(self, dtype: DTypeLike) -> np.dtype:
        return np.dtype(np.uint8)

    def row_elements(self, head_dim: int) -> int:
        if head_dim % self.block:
            raise ValueError(
                f"{self.name} has a scale for every {self.block} channels; head_dim {head_dim} is no multiple of them"
            )
        return head_dim // 2

    def channels(self, elements: int) -> int:
        return elements * 2

    def param_bytes(self, head_dim: int) -> int:
        self.row_elements(head_dim)
        return head_dim // self.block

    def _blocks(self, x: NDArray) -> NDArray:
        """Rows [..., head_dim] as [..., blocks, block]."""
        self.row_elements(x.shape[-1])
        return x.reshape(*x.shape[:-1], x.shape[-1] // self.block, self.block)

    def _codes(self, data: NDArray) -> NDArray[np.float32]:
        """What stored codes stand for, by blocks."""
        return self._blocks(unpack_e2m1(data))

    def _bound(self, x: NDArray, steps: NDArray) -> NDArray[np.float64]:
        """Of each channel: half the distance of the codes around it, or what lies beyond the largest; in `steps` of its
        block. A block whose step is 0 has lost all of it."""
        magnitude = np.abs(self._blocks(x.astype(np.float64)))
        with np.errstate(divide="ignore", invalid="ignore"):
            codes = magnitude / steps[..., None]
            half = np.select([codes <= 2 * _SLACK, codes <= 4 * _SLACK], [0.25, 0.5], 1.0)
            bound = np.maximum(half, codes - 6) * steps[..., None] + magnitude * 2.0**-20
        return np.where(steps[..., None] == 0, magnitude, bound).reshape(x.shape) * _SLACK


class NvFp4(Float4):
    """NVFP4: blocks of 16 channels, scales in e4m3fn, and a float32 scale over all that the user chooses.

        y_i     = x_i * (1 / scale)
        block   = nearest e4m3 of min(max |y_i| * float32(1/6), 448)    of the block's 16; NaN if one is
        code_i  = nearest e2m1 of clamp(y_i * (1 / block), -6, 6)       0 where block is 0 or NaN

    Every product, quotient and reciprocal is one float32 operation, and what is halfway goes to the even code. The
    scale is as float8's: positive and normal. Saturates: a block whose largest number is above 2688 * scale, infinity
    included, has the scale 448. A block with a NaN is NaN, and no other block of the row is touched. A block whose
    largest number is at most 3 * 2**-9 * scale (0.0059 of it) has the scale 0: all of it becomes 0.
    """

    name = "nvfp4"
    block, scale_dtype = 16, E4M3

    def encode(self, x: NDArray, scale: ArrayLike | None = None) -> Encoded:
        compute_dtype(x)
        scales = np.broadcast_to(np.asarray(1 if scale is None else scale, np.float32), x.shape[:-1])
        with np.errstate(all="ignore"):
            y = self._blocks(x.astype(np.float32) * (np.float32(1) / scales)[..., None])
            blocks = np.minimum(np.abs(y).max(-1) * _SIXTH, _LARGEST_SCALE).astype(E4M3)
            steps = blocks.astype(np.float32)[..., None]
            codes = np.where(steps > 0, y * (np.float32(1) / steps), np.float32(0))
        return Encoded(pack_e2m1(codes.reshape(x.shape)), blocks)

    def decode(
        self,
        data: NDArray,
        params: NDArray | None,
        dtype: DTypeLike = np.float64,
        scale: ArrayLike | None = None,
    ) -> NDArray:
        """The product of block scale and code is exact; its product with `scale` is rounded once, then to dtype."""
        assert params is not None, f"{self} keeps a scale of every block"
        precision = precision_of(dtype)
        whole = np.asarray(1 if scale is None else scale, np.float32).astype(precision)
        with np.errstate(all="ignore"):
            values = self._codes(data) * params.astype(np.float32)[..., None]
            rows = values.reshape(*data.shape[:-1], 2 * data.shape[-1]).astype(precision)
            return (whole[..., None] * rows).astype(dtype)

    def error_bound(self, x: NDArray, params: NDArray | None, scale: ArrayLike | None = None) -> NDArray[np.float64]:
        assert params is not None, f"{self} keeps a scale of every block"
        whole = np.asarray(1 if scale is None else scale, np.float64)[..., None]
        return self._bound(x, params.astype(np.float64) * whole)


class MxFp4(Float4):
    """MXFP4, as the OCP Microscaling Formats specification 1.0 has it: blocks of 32 channels, scales in e8m0.

        block   = 2**clamp(floor(log2(max |x_i|)) - 2, -127, 127)    of the block's 32; 2**-127 where all are 0
        code_i  = nearest e2m1 of clamp(x_i / block, -6, 6)

    The quotient is exact, and what is halfway goes to the even code. The largest numbers of a block are between 4 and 8
    of its scale: what is above 6 saturates. A block with a NaN or an infinity is NaN (its scale is 0xff, its codes are
    0), and no other block of the row is touched.
    """

    name = "mxfp4"
    block, scale_dtype = 32, E8M0

    def encode(self, x: NDArray, scale: ArrayLike | None = None) -> Encoded:
        refuse_scale(self, scale)
        compute_dtype(x)
        rows = self._blocks(x.astype(np.float32))
        # Exponents of float32 have e8m0's bias. Of a number that is not finite it is 255, which means NaN there too.
        exponents = (np.abs(rows).view(np.int32) >> 23).max(-1)
        blocks = np.where(exponents == _E8M0_NAN, _E8M0_NAN, np.maximum(exponents - 2, 0)).astype(np.uint8)
        is_nan = (blocks == _E8M0_NAN)[..., None]
        inverse = np.ldexp(np.float32(1), 127 - blocks.astype(np.int32))[..., None]
        with np.errstate(invalid="ignore"):
            codes = np.where(is_nan, np.float32(0), rows * inverse)
        return Encoded(pack_e2m1(codes.reshape(x.shape)), blocks.view(E8M0))

    def decode(self, data: NDArray, params: NDArray | None, dtype: DTypeLike = np.float64) -> NDArray:
        assert params is not None, f"{self} keeps a scale of every block"
        precision = precision_of(dtype)
        with np.errstate(all="ignore"):
            values = self._codes(data).astype(precision) * _powers(params).astype(precision)[..., None]
            return values.reshape(*data.shape[:-1], 2 * data.shape[-1]).astype(dtype)

    def error_bound(self, x: NDArray, params: NDArray | None) -> NDArray[np.float64]:
        assert params is not None, f"{self} keeps a scale of every block"
        return self._bound(x, _powers(params))


def pack_e2m1(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Nearest e2m1 of values [..., channels], beyond 6 the largest, as bytes [..., channels / 2]: even channels lie in
    the low bits. The sign of 0 stays."""
    nibbles = np.clip(values, -_LARGEST, _LARGEST).astype(E2M1).view(np.uint8)
    return nibbles[..., 0::2] | nibbles[..., 1::2] << 4


def unpack_e2m1(data: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Bytes [..., channels / 2] to the numbers [..., channels] that they stand for."""
    nibbles = np.empty((*data.shape[:-1], 2 * data.shape[-1]), np.uint8)
    nibbles[..., 0::2], nibbles[..., 1::2] = data & 15, data >> 4
    return nibbles.view(E2M1).astype(np.float32)


def _powers(scales: NDArray) -> NDArray[np.float64]:
    """What scales in e8m0 stand for, in float64, where none is subnormal."""
    exponents = scales.view(np.uint8).astype(np.int32)
    return np.where(exponents == _E8M0_NAN, np.nan, np.ldexp(1.0, exponents - 127))


NVFP4, MXFP4 = NvFp4(), MxFp4()
