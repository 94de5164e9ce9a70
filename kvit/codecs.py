"""How K and V may be stored: names for users, the dtype in memory, and the word for it in kernel names."""

from __future__ import annotations

from typing import Any

from . import dtypes
from .dtypes import Dtype
from .errors import DtypeError


class Codec:
    """One way to store rows of K or of V. Defined by kvit.reference.codecs.

    name    as users say it
    dtype   of the stored elements
    short   in kernel names
    params  "" for none, "pair" for (scale, zero) in the compute dtype, "scale" for a float32 factor
    """

    __slots__ = ("dtype", "name", "params", "short")

    def __init__(self, name: str, dtype: Dtype, short: str, params: str) -> None:
        self.name, self.dtype, self.short, self.params = name, dtype, short, params

    def __reduce__(self) -> tuple[Any, ...]:
        return codec_of, (self.name,)  # there is one of each, in a copy too

    def __repr__(self) -> str:
        return f"Codec({self.name!r})"

    def __str__(self) -> str:
        return self.name


FLOAT16 = Codec("float16", dtypes.float16, "b16", "")
BFLOAT16 = Codec("bfloat16", dtypes.bfloat16, "b16", "")
INT8 = Codec("int8", dtypes.uint8, "i8", "pair")
INT4 = Codec("int4", dtypes.uint4, "i4", "pair")
FLOAT8_E4M3 = Codec("float8_e4m3", dtypes.float8_e4m3fn, "e4m3", "scale")
FLOAT8_E5M2 = Codec("float8_e5m2", dtypes.float8_e5m2, "e5m2", "scale")

CODECS = (FLOAT16, BFLOAT16, INT8, INT4, FLOAT8_E4M3, FLOAT8_E5M2)
_BY_NAME = {codec.name: codec for codec in CODECS}
_BY_DTYPE = {codec.dtype: codec for codec in CODECS}

PARAM_BYTES = 4
"""Of a row's parameters, of either kind."""


def codec_of(x: Any) -> Codec:
    """The codec that `x` names: a Codec, its name, or a dtype of the memory that it fills. Raises DtypeError."""
    if isinstance(x, Codec):
        return x
    found = _BY_NAME.get(x) if isinstance(x, str) else None
    if found is None:
        found = _BY_DTYPE.get(dtypes.dtype_of(x))
    if found is None:
        raise DtypeError(f"{x} is no way to store K or V; known are {', '.join(codec.name for codec in CODECS)}")
    return found


def pair_of(kv: Any) -> tuple[Codec, Codec]:
    """(codec of K, codec of V) from a name for both, or a pair of names."""
    if isinstance(kv, tuple | list):
        if len(kv) != 2:
            raise DtypeError(f"kv is {kv!r}; give one name for K and V, or a pair")
        return codec_of(kv[0]), codec_of(kv[1])
    return (codec_of(kv),) * 2


def key_of(k: Codec, v: Codec) -> str:
    """The value of the kernels' axis `kv`."""
    return k.short if k.short == v.short else f"{k.short}_{v.short}"


def describe(k: Codec, v: Codec, dtype: Dtype) -> str:
    """What a cache holds, in words."""
    stored = str(k) if k is v else f"K in {k} and V in {v}"
    return stored if k.dtype is v.dtype is dtype else f"{stored} for {dtype}"
