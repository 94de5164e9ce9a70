"""What a codec is, the codec that stores rows as they are, and what all codecs share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

COMPUTE_DTYPES = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
"""What T may be."""


class Encoded(NamedTuple):
    """Rows as a cache stores them."""

    data: NDArray  # [..., elements] in the codec's data_dtype
    # integers: [..., 2] (scale, zero) in T; float8: [...] scale in float32; nvfp4, mxfp4: [..., blocks] scales
    params: NDArray | None


class Codec(ABC):
    """A way to store rows."""

    name: str
    bits: int  # of a channel
    keeps_values = False  # stored data are the values, in whatever dtype
    is_scaled = False  # by a scale that the user gives, and that encode reads instead of writing it

    @abstractmethod
    def encode(self, x: NDArray, scale: ArrayLike | None = None) -> Encoded:
        """Store rows x [..., head_dim] in T. `scale`, float32, broadcasts to [...]; float8 and nvfp4 have one."""

    @abstractmethod
    def decode(self, data: NDArray, params: NDArray | None, dtype: DTypeLike = np.float64) -> NDArray:
        """The rows [..., head_dim] that are stored.

        dtype  float64: what attention is defined over. T: what gather and requantise write, which is the float32 result
               rounded to T, two roundings, as kernels do it.
        """

    @abstractmethod
    def data_dtype(self, dtype: DTypeLike) -> np.dtype:
        """Of stored data, for rows in T = `dtype`."""

    @abstractmethod
    def error_bound(self, x: NDArray, params: NDArray | None) -> NDArray[np.float64]:
        """What |x - decode(encode(x))| does not exceed where x is finite; broadcasts to x's shape.

        params  as encode(x) gave them
        """

    def row_elements(self, head_dim: int) -> int:
        """Elements of data_dtype in a row."""
        return head_dim

    def channels(self, elements: int) -> int:
        """head_dim of a row of so many elements: the inverse of row_elements."""
        return elements

    def row_bytes(self, head_dim: int) -> int:
        """Bytes of a row's data, parameters apart."""
        return head_dim * self.bits // 8

    def param_bytes(self, head_dim: int) -> int:
        """Bytes of a row's parameters. One scale per tensor or head, which the user gives, counts none."""
        return 0

    def __repr__(self) -> str:
        return f"codec {self.name}"


class Identity(Codec):
    """Stores rows as they are: of `dtype` or, where that is None, of any."""

    bits = 16
    keeps_values = True

    def __init__(self, name: str, dtype: DTypeLike | None = None):
        self.name, self.dtype = name, None if dtype is None else np.dtype(dtype)

    def encode(self, x: NDArray, scale: ArrayLike | None = None) -> Encoded:
        refuse_scale(self, scale)
        self.data_dtype(x.dtype)
        return Encoded(x, None)

    def decode(self, data: NDArray, params: NDArray | None = None, dtype: DTypeLike = np.float64) -> NDArray:
        with np.errstate(invalid="ignore"):  # a signalling NaN, as stale bytes may be, is no concern of who copies it
            return data.astype(dtype)

    def data_dtype(self, dtype: DTypeLike) -> np.dtype:
        if self.dtype not in (None, np.dtype(dtype)):
            raise ValueError(f"rows are {np.dtype(dtype)}; {self.name} stores them as they are, and only its own")
        return np.dtype(dtype)

    def error_bound(self, x: NDArray, params: NDArray | None = None) -> NDArray[np.float64]:
        return np.zeros(1)


def compute_dtype(x: Any) -> np.dtype:
    """T of rows. Raises ValueError for another dtype."""
    if x.dtype not in COMPUTE_DTYPES:
        raise ValueError(f"rows are {x.dtype}; codecs encode float16 or bfloat16")
    return x.dtype


def precision_of(dtype: DTypeLike) -> type:
    """What a value of `dtype` is computed in before it is rounded to it."""
    return np.float64 if np.dtype(dtype) == np.float64 else np.float32


def refuse_scale(codec: Codec, scale: ArrayLike | None) -> None:
    """Raise ValueError where a codec that finds its own scales is given some."""
    if scale is not None:
        raise ValueError(f"{codec.name} takes no scale; only float8 and nvfp4 are scaled by their user")
