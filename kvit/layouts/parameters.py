"""What rows of a cache need besides themselves: (scale, zero) or scales, and the one 16-bit type of a cache."""

from __future__ import annotations

import math
from ctypes import c_float
from typing import Any

from kvit import _checks, codecs, dtypes
from kvit._native.buffer import Buffer
from kvit._native.tensor import Tensor
from kvit.codecs import Codec
from kvit.errors import DtypeError, ShapeError

COMPUTE_DTYPES = (dtypes.float16, dtypes.bfloat16)
_COMPUTE_CODES = tuple(dtype.code for dtype in COMPUTE_DTYPES)  # numbers are compared in C

_LEAST_SCALE = 2.0**-120  # below it, weights times the scale lose digits in float16: attention would give noise


def parameters(side: str, codec: Codec, params: Any, scale: Any, rows: dict[str, int], device: str) -> Tensor | None:
    """What the rows of K or V (`side`) are decoded with, checked; None where they are numbers already.

    rows  the axes of the pool without channels, in order; kv_heads is one of them

    Scales of float8, one or one per head, are looked at where the host can read them. Those of a GPU are not, for that
    would wait for it; nor are those of rows, which may be written later.
    """
    if params is not None and codec.params != "pair":
        raise DtypeError(f"{side}_params are of int8 and int4, and {side} is {codec}; leave them out")
    if scale is not None and codec.params != "scale":
        raise DtypeError(f"{side}_scale is of float8, and {side} is {codec}; leave it out")
    if codec.params == "":
        return None
    if codec.params == "pair":
        if params is None:
            raise ShapeError(f"{side} is {codec} and needs {side}_params, (scale, zero) of every row")
        found = _checks.tensor(f"{side}_params", params)
        if found.dtype not in COMPUTE_DTYPES:
            raise DtypeError(f"{side}_params are {found.dtype}; they must be float16 or bfloat16, as the queries are")
        _checks.require_shape(f"{side}_params", found, **rows, **{"scale and zero": 2})
        _checks.require_rows(f"{side}_params", found, codecs.PARAM_BYTES)
    else:
        found = _ones(rows["kv_heads"], device) if scale is None else scale
        found = _checks.tensor(f"{side}_scale", found, dtypes.float32)
        if len(found.shape) == 1:
            _checks.require_shape(f"{side}_scale", found, kv_heads=rows["kv_heads"])
        elif len(found.shape) != 0:
            _checks.require_shape(f"{side}_scale", found, **rows)
        if scale is not None and len(found.shape) <= 1 and found.device == "host":
            _require_scales(f"{side}_scale", found)
    _checks.require_device(device, **{f"{side}'s parameters": found})
    return found


def _require_scales(name: str, found: Tensor) -> None:
    """Raise DtypeError unless these are positive, finite and not too small."""
    count, stride = (found.shape[0], found.strides[0]) if found.shape else (1, 0)
    for i in range(count):
        value = c_float.from_address(found.pointer + i * stride).value
        if not _LEAST_SCALE <= value < math.inf:
            raise DtypeError(
                f"{name}{f'[{i}]' if found.shape else ''} is {value}; a scale of float8 must be finite and 2^-120 "
                "(7.5e-37) at least"
            )


def compute_dtype(dtype: dtypes.Dtype | None, **memory: Tensor | None) -> dtypes.Dtype:
    """The 16-bit type of queries, 16-bit rows and (scale, zero): `dtype`, or what the memory says, or bfloat16."""
    for name, found in memory.items():
        own = None if found is None else found.dtype
        if own is None or own.code not in _COMPUTE_CODES:
            continue
        if dtype is None:
            dtype = own
        elif dtype is not own:
            raise DtypeError(f"{name} is {own}; it must be {dtype} like the rest, and like the queries")
    if dtype is None:
        dtype = dtypes.bfloat16
    if dtype.code not in _COMPUTE_CODES:
        raise DtypeError(f"dtype is {dtype}; queries are float16 or bfloat16")
    return dtype


def _ones(count: int, device: str) -> Buffer:
    import numpy

    return Buffer.from_numpy(numpy.ones(count, numpy.float32), device)
