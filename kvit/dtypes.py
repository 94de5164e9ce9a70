"""Element types: the codes of kernels/abi/dtype.h, their names, and how numpy's and others' types map onto them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from kvit.errors import DtypeError

if TYPE_CHECKING:
    import numpy


# No dataclass here, in codecs and in registry: `import dataclasses` takes as long as all of kvit's own modules.
class Dtype:
    """An element type: its code in every ABI, its numpy name, the short name used in kernel symbols, its size."""

    __slots__ = ("bits", "code", "name", "short")

    def __init__(self, code: int, name: str, short: str, bits: int) -> None:
        self.code, self.name, self.short, self.bits = code, name, short, bits

    def __eq__(self, other: Any) -> bool:
        """Whether `other` names this dtype: numpy's, ml_dtypes' and torch's own, and names, too."""
        if isinstance(other, Dtype):
            return self is other
        try:
            return dtype_of(other) is self
        except DtypeError:
            return False

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def dtype(self) -> numpy.dtype[Any]:
        """The numpy dtype of the same elements, which numpy.dtype(this) gives; ml_dtypes' where numpy has none."""
        return numpy_dtype(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return dtype_of, (self.name,)  # there is one of each, in a copy too

    def __repr__(self) -> str:
        return f"Dtype({self.name!r})"

    def __str__(self) -> str:
        return self.name

    def bytes_for(self, elements: int) -> int:
        """Bytes that hold `elements` of them, packed."""
        return (elements * self.bits + 7) // 8


float32 = Dtype(1, "float32", "f32", 32)
float16 = Dtype(2, "float16", "f16", 16)
bfloat16 = Dtype(3, "bfloat16", "bf16", 16)
uint8 = Dtype(4, "uint8", "u8", 8)
uint4 = Dtype(5, "uint4", "u4", 4)  # packed two per byte, element 0 in the low half
float8_e4m3fn = Dtype(6, "float8_e4m3fn", "f8e4m3", 8)
float8_e5m2 = Dtype(7, "float8_e5m2", "f8e5m2", 8)
int32 = Dtype(8, "int32", "i32", 32)
int64 = Dtype(9, "int64", "i64", 64)
uint16 = Dtype(10, "uint16", "u16", 16)
uint32 = Dtype(11, "uint32", "u32", 32)
float64 = Dtype(12, "float64", "f64", 64)
int8 = Dtype(13, "int8", "i8", 8)

DTYPES: tuple[Dtype, ...] = (
    float32, float16, bfloat16, uint8, uint4, float8_e4m3fn, float8_e5m2,
    int32, int64, uint16, uint32, float64, int8,
)  # fmt: skip

BY_CODE: dict[int, Dtype] = {dtype.code: dtype for dtype in DTYPES}

_BY_NAME: dict[str, Dtype] = {
    **{dtype.name: dtype for dtype in DTYPES},
    **{dtype.short: dtype for dtype in DTYPES},
}
# A string only: ml_dtypes has a float8_e4m3 of its own, with other bits.
_ALIASES: dict[str, Dtype] = {"half": float16, "float8_e4m3": float8_e4m3fn}
_ML_DTYPES = frozenset({"bfloat16", "uint4", "float8_e4m3fn", "float8_e5m2"})


def dtype_of(x: Any) -> Dtype:
    """The Dtype that `x` names.

    x  a Dtype; a name ("bfloat16") or a short one ("bf16"); a numpy, ml_dtypes or torch dtype, or a numpy scalar type

    Raises DtypeError for a type that kvit has no code for, and for numpy types in the other byte order.
    Imports neither numpy nor ml_dtypes: whoever holds one of their types has imported them.
    """
    if isinstance(x, Dtype):
        return x
    found = None
    if isinstance(x, str):
        found = _BY_NAME.get(x) or _ALIASES.get(x)
    elif isinstance(x, type):
        # numpy's scalar types have .dtype; Python's float, whose name is nothing to go by, has not.
        found = _BY_NAME.get(x.__name__) if hasattr(x, "dtype") else None
    else:
        name = getattr(x, "name", None) or str(x).rpartition(".")[2]  # str(torch.bfloat16) is "torch.bfloat16"
        if not getattr(x, "isnative", True):
            raise DtypeError(f"dtype {x} has its bytes in the other order; kvit reads {sys.byteorder}-endian only")
        found = _BY_NAME.get(name) if isinstance(name, str) else None
    if found is None:
        raise DtypeError(f"unknown dtype {x!r}; known are {', '.join(dtype.name for dtype in DTYPES)}")
    return found


def numpy_dtype(dtype: Dtype) -> numpy.dtype[Any]:
    """The numpy dtype whose elements are those of `dtype`; for uint4, ml_dtypes' one per byte."""
    import numpy

    if dtype.name in _ML_DTYPES:
        import ml_dtypes

        return numpy.dtype(getattr(ml_dtypes, dtype.name))
    return numpy.dtype(dtype.name)
