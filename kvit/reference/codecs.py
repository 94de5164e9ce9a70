"""How a row of K or V is stored in fewer bits: encode and decode of every codec, bit for bit what kernels do.

A row is the head_dim channels of one token and one KV head. T is its dtype before encoding, float16 or bfloat16. Every
step that decides a stored bit is one float32 operation, rounded to nearest even, so that numpy, C++ and a GPU agree.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from .codec import Codec, Encoded, Identity, compute_dtype, precision_of, refuse_scale
from .float4 import MXFP4, NVFP4
from .hadamard import block_of, hadamard
from .int4 import pack_int4, unpack_int4

_LEAST_FLOAT32 = np.finfo(np.float32).smallest_normal  # 2**-126
_FLOAT8_NAN = 0x7F  # the canonical NaN of both 8-bit formats, whatever the sign and payload of the one that came in


class Integer(Codec):
    """`bits`-bit codes between the least and the greatest channel of a row: x = scale * code + zero.

        lo, hi  = least, greatest channel          NaN if any channel is
        zero    = lo + 0                           in T, exact; + 0 turns -0 into 0, for which lanes may disagree on lo
        scale   = T((hi - lo) / (2**bits - 1))     where that is below 2**-126, T's smallest normal number
        code_i  = clamp(rint((x_i - zero) * (1 / scale)), 0, 2**bits - 1)          NaN gives 0

    Below 2**-126, which is 0 in float16, and 0 or subnormal in bfloat16, the reciprocal would overflow. The least
    channel is exact, and so are constant rows; others are off by at most error_bound. A row that holds NaN or infinity,
    or spans more than float32's largest number (in bfloat16), decodes to NaN in every channel: its scale is NaN or
    infinity and its codes are 0.
    """

    def __init__(self, name: str, bits: int):
        self.name, self.bits = name, bits

    @property
    def top(self) -> int:
        """The largest code."""
        return 2**self.bits - 1

    def param_bytes(self, head_dim: int) -> int:
        return 4

    def encode(self, x: NDArray, scale: ArrayLike | None = None) -> Encoded:
        refuse_scale(self, scale)
        dtype = compute_dtype(x)
        self.row_elements(x.shape[-1])
        rows = x.astype(np.float32)
        lo, hi = rows.min(-1, keepdims=True), rows.max(-1, keepdims=True)
        with np.errstate(all="ignore"):  # what is not finite ends as the class says
            zero = lo + np.float32(0)
            step = ((hi - lo) / np.float32(self.top)).astype(dtype)
            least = ml_dtypes.finfo(dtype).smallest_normal.astype(dtype)
            step = np.where(step.astype(np.float32) < _LEAST_FLOAT32, least, step)
            inverse = np.float32(1) / step.astype(np.float32)
            nearest = np.rint((rows - zero) * inverse)
        codes = np.fmin(np.fmax(nearest, 0), self.top).astype(np.uint8)  # fmax takes 0 over NaN
        params = np.concatenate([step, zero.astype(dtype)], axis=-1)
        return Encoded(pack_int4(codes) if self.bits == 4 else codes, params)

    def decode(self, data: NDArray, params: NDArray | None, dtype: DTypeLike = np.float64) -> NDArray:
        assert params is not None, f"{self} keeps (scale, zero) of every row"
        codes = unpack_int4(data) if self.bits == 4 else data
        precision = precision_of(dtype)
        scale, zero = (params[..., i : i + 1].astype(precision) for i in (0, 1))
        with np.errstate(all="ignore"):
            # The product is exact in float32 (11 + 8 bits), so a fused multiply-add rounds to the same.
            return (scale * codes.astype(precision) + zero).astype(dtype)

    def data_dtype(self, dtype: DTypeLike) -> np.dtype:
        return np.dtype(np.uint8)

    def row_elements(self, head_dim: int) -> int:
        if head_dim * self.bits % 32:
            raise ValueError(
                f"{self.name} packs whole 32-bit words; head_dim {head_dim} is no multiple of {32 // self.bits}"
            )
        return head_dim * self.bits // 8

    def channels(self, elements: int) -> int:
        return elements * 8 // self.bits

    def error_bound(self, x: NDArray, params: NDArray | None) -> NDArray[np.float64]:
        """Of each row, for all its channels.

        Within reach of the codes: half a step, and three float32 roundings on the way to the code, of the difference,
        the reciprocal and the product. Beyond them, where T rounded the scale down: what scale * (2**bits - 1) leaves
        short of hi - lo. In bfloat16 that is up to (2**bits - 1) / 2**8 of a step, almost a whole one of int8. In
        float16 it is up to (2**bits - 1) / 2**11 and never the larger, but for scales below 2**-14: those are
        subnormal, off by up to 2**-25, and the shortfall is up to (2**bits - 1) * 2**-25.
        """
        assert params is not None, f"{self} keeps (scale, zero) of every row"
        scale, zero = (params[..., i : i + 1].astype(np.float64) for i in (0, 1))
        reached = scale * (0.5 + self.top * 3.01 * 2.0**-24)
        short = x.astype(np.float64).max(-1, keepdims=True) - zero - scale * self.top
        return np.maximum(reached, short + scale * 2.0**-30)  # with room for float64's roundings, here and in decode


class Float8(Codec):
    """8-bit floats times a float32 scale that the user chooses: x = scale * data.

        data_i = round to nearest even(clamp(x_i * (1 / scale), -largest, largest))

    Saturates: what is beyond the largest finite number, infinity included, becomes it. NaN becomes 0x7f, the canonical
    one. The scale is a normal positive float32, so that its reciprocal is finite.
    """

    bits = 8
    is_scaled = True

    def __init__(self, name: str, dtype: DTypeLike):
        self.name, self.dtype = name, np.dtype(dtype)

    @property
    def largest(self) -> float:
        """The largest finite number: 448 of e4m3fn, 57344 of e5m2."""
        return float(ml_dtypes.finfo(self.dtype).max)

    def encode(self, x: NDArray, scale: ArrayLike | None = None) -> Encoded:
        compute_dtype(x)
        scales = np.broadcast_to(np.asarray(1 if scale is None else scale, np.float32), x.shape[:-1])
        with np.errstate(all="ignore"):
            scaled = x.astype(np.float32) * (np.float32(1) / scales)[..., None]
            data = np.clip(scaled, -self.largest, self.largest).astype(self.dtype)
        data.view(np.uint8)[np.isnan(scaled)] = _FLOAT8_NAN
        return Encoded(data, scales)

    def decode(self, data: NDArray, params: NDArray | None, dtype: DTypeLike = np.float64) -> NDArray:
        precision = precision_of(dtype)
        scale = np.asarray(1 if params is None else params).astype(precision)
        with np.errstate(all="ignore"):
            return (scale[..., None] * data.astype(precision)).astype(dtype)

    def data_dtype(self, dtype: DTypeLike) -> np.dtype:
        return self.dtype

    def error_bound(self, x: NDArray, params: NDArray | None) -> NDArray[np.float64]:
        """Of each channel: half a unit in its last place, two float32 roundings, and what saturation cuts off."""
        facts = ml_dtypes.finfo(self.dtype)
        scale = np.asarray(1 if params is None else params).astype(np.float64)[..., None]
        magnitude = np.abs(x.astype(np.float64))
        relative = float(facts.eps) / 2 + 2.01 * 2.0**-24
        least = float(facts.smallest_subnormal) / 2 * scale
        cut = magnitude - self.largest * scale
        return np.maximum(np.maximum(magnitude * relative, least * (1 + 2.0**-20)), cut)


class Hadamard(Codec):
    """Stores the Hadamard transform of rows, rounded to T, as another codec stores rows.

    Products of rows are what they were where both are transformed, and no channel of the transform stands out as a
    few channels of keys do. `decode` gives rows as they came: to T, decoded to T, transformed, and rounded to it again.
    """

    def __init__(self, plain: Codec):
        self.plain, self.name, self.bits = plain, f"{plain.name}_hadamard", plain.bits

    def param_bytes(self, head_dim: int) -> int:
        return self.plain.param_bytes(head_dim)

    def encode(self, x: NDArray, scale: ArrayLike | None = None) -> Encoded:
        return self.plain.encode(hadamard(x, compute_dtype(x)), scale)

    def decode(self, data: NDArray, params: NDArray | None, dtype: DTypeLike = np.float64) -> NDArray:
        rows = self.plain.decode(data, params, dtype)
        return hadamard(rows) if np.dtype(dtype) == np.float64 else hadamard(rows, dtype)

    def data_dtype(self, dtype: DTypeLike) -> np.dtype:
        return self.plain.data_dtype(dtype)

    def row_elements(self, head_dim: int) -> int:
        return self.plain.row_elements(head_dim)

    def channels(self, elements: int) -> int:
        return self.plain.channels(elements)

    def error_bound(self, x: NDArray, params: NDArray | None) -> NDArray[np.float64]:
        """Of each row, for all its channels: the sum over a block of the plain codec's bound, of rounding to T, and of
        float32's roundings, over the root of its channels."""
        block = block_of(x.shape[-1])
        transform = hadamard(x, compute_dtype(x))
        largest = np.abs(x.astype(np.float64)).max(-1, keepdims=True) * np.sqrt(block)
        rounding = largest * (float(ml_dtypes.finfo(x.dtype).eps) / 2 + block.bit_length() * 2.0**-23)
        return np.sqrt(block) * (self.plain.error_bound(transform, params) + rounding)


UNCODED = Identity("uncoded")  # of whatever dtype the array has
FLOAT16 = Identity("float16", np.float16)
BFLOAT16 = Identity("bfloat16", ml_dtypes.bfloat16)
INT8 = Integer("int8", 8)
INT4 = Integer("int4", 4)
FLOAT8_E4M3 = Float8("float8_e4m3", ml_dtypes.float8_e4m3fn)
FLOAT8_E5M2 = Float8("float8_e5m2", ml_dtypes.float8_e5m2)

INT8_HADAMARD = Hadamard(INT8)
INT4_HADAMARD = Hadamard(INT4)

_ALL = (FLOAT16, BFLOAT16, INT8, INT4, FLOAT8_E4M3, FLOAT8_E5M2, INT8_HADAMARD, INT4_HADAMARD, NVFP4, MXFP4)
CODECS: dict[str, Codec] = {codec.name: codec for codec in _ALL}
_ALIASES = {"float8_e4m3fn": FLOAT8_E4M3}


def codec_of(x: str | Codec) -> Codec:
    """The codec of a name, or the codec itself. Raises ValueError for another name."""
    if isinstance(x, Codec):
        return x
    found = CODECS.get(x) or _ALIASES.get(x)
    if found is None:
        raise ValueError(f"unknown codec {x!r}; known are {', '.join(CODECS)}")
    return found
