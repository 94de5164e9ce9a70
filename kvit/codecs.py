"""How K and V may be stored: names for users, the dtype in memory, and the word for it in kernel names."""

from __future__ import annotations

from collections.abc import Iterable
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
    plain   the codec that stores rows as they are, where this one stores their Hadamard transform; itself otherwise
    """

    __slots__ = ("dtype", "name", "params", "plain", "short")

    def __init__(self, name: str, dtype: Dtype, short: str, params: str) -> None:
        self.name, self.dtype, self.short, self.params = name, dtype, short, params
        self.plain = self

    def with_hadamard(self) -> Codec:
        """Another that stores the Hadamard transform of rows, as this one stores rows: the same kernels serve it."""
        found = Codec(f"{self.name}_hadamard", self.dtype, self.short, self.params)
        found.plain = self
        return found

    def hadamard_block(self, head_dim: int) -> int:
        """Channels of a block of the transform: the largest power of two up to 128 that divides head_dim; 0: none."""
        return 0 if self.plain is self else min(head_dim & -head_dim, MOST_HADAMARD)

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

INT8_HADAMARD = INT8.with_hadamard()
INT4_HADAMARD = INT4.with_hadamard()


class LatentCodec(Codec):
    """A codec of whole latent rows (MLA), scales and rotary channels within. Defined by kvit.reference.latent."""

    __slots__ = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return latent_codec, (self.short,)


LATENT_656 = LatentCodec("fp8_ds_mla", dtypes.uint8, "ds656", "")
LATENT_584 = LatentCodec("fp8_ds_mla", dtypes.uint8, "ds584", "")
LATENT = (LATENT_656, LATENT_584)


def latent_codec(short: str) -> LatentCodec:
    """The one with this word in kernel names."""
    return next(codec for codec in LATENT if codec.short == short)


PLAIN = (FLOAT16, BFLOAT16, INT8, INT4, FLOAT8_E4M3, FLOAT8_E5M2)
CODECS = (*PLAIN, INT8_HADAMARD, INT4_HADAMARD)
_WITHOUT_KERNELS = ("nvfp4", "mxfp4")  # what kvit.reference has besides
_BY_NAME = {codec.name: codec for codec in CODECS}
# By the codes of dtypes, which hash in C: every new view asks twice.
_BY_CODE = {**{codec.dtype.code: codec for codec in PLAIN}, dtypes.int8.code: INT8}

PARAM_BYTES = 4
"""Of a row's parameters, of either kind."""

MOST_HADAMARD = 128
"""Channels of the largest block of a Hadamard transform: what a warp holds of a row, four channels a lane."""


def codec_of(x: Any) -> Codec:
    """The codec that `x` names: a Codec, its name, or a dtype of the memory that it fills; memory of int8 too,
    whose bits are codes from 0 to 255. Raises DtypeError."""
    if isinstance(x, Codec):
        return x
    found = _BY_NAME.get(x) if isinstance(x, str) else None
    if found is None:
        try:
            found = _BY_CODE.get(dtypes.dtype_of(x).code)
        except DtypeError:
            if not isinstance(x, str):
                raise
    if found is None:
        names = ", ".join(codec.name for codec in CODECS)
        if isinstance(x, str) and x in _WITHOUT_KERNELS:
            raise DtypeError(f"{x} has no kernels yet, kvit.reference alone encodes it; caches store {names}")
        raise DtypeError(f"{x!s} is no way to store K or V{_did_you_mean(x)}; known are {names}")
    return found


def _did_you_mean(x: Any) -> str:
    import difflib

    words = {codec.short: codec.name for codec in PLAIN} | {codec.name: codec.name for codec in CODECS}
    close = difflib.get_close_matches(x.lower(), words, n=2) if isinstance(x, str) else []
    names = dict.fromkeys(words[word] for word in close)
    return f"; did you mean {' or '.join(names)}?" if names else ""


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


def pair_of_key(key: str, dtype: Dtype) -> tuple[Codec, Codec]:
    """(codec of K, codec of V) from a value of the kernels' axis `kv`; `dtype` says which 16 bits b16 are.

    Raises DtypeError for what key_of never gives.
    """
    by_short = {codec.short: codec for codec in (*PLAIN, *LATENT) if codec.short != "b16" or codec.dtype is dtype}
    k, _, v = key.partition("_")
    if k not in by_short or (v or k) not in by_short:
        raise DtypeError(f"{key!r} is no pair of codecs; the words for one are {', '.join(by_short)}")
    return by_short[k], by_short[v or k]


def nearest_pair(
    wanted: tuple[Codec, Codec], built: Iterable[tuple[Codec, Codec]], head_dim: int
) -> tuple[Codec, Codec] | None:
    """Of the pairs that are built, the one to take instead of a pair that is not; None where all of them lose bits.

    Neither side gets fewer bits than were wanted; of those pairs, the one with the fewest sides stored otherwise; of
    those, the one with the fewest bytes per token; of those, the first.
    """
    k, v = wanted
    enough = [pair for pair in built if pair[0].dtype.bits >= k.dtype.bits and pair[1].dtype.bits >= v.dtype.bits]

    def distance(pair: tuple[Codec, Codec]) -> tuple[int, int]:
        return (pair[0] is not k) + (pair[1] is not v), pair_bytes(*pair, head_dim)

    return min(enough, key=distance, default=None)


def row_bytes(codec: Codec, head_dim: int) -> int:
    """Of one row of K or V in a cache, its (scale, zero) included. A float8's scale serves many rows and is not."""
    return codec.dtype.bytes_for(head_dim) + PARAM_BYTES * (codec.params == "pair")


def pair_bytes(k: Codec, v: Codec, head_dim: int) -> int:
    """Of one token of one KV head: its row of K and its row of V."""
    return row_bytes(k, head_dim) + row_bytes(v, head_dim)


def describe(k: Codec, v: Codec, dtype: Dtype) -> str:
    """What a cache holds, in words."""
    stored = str(k) if k is v else f"K in {k} and V in {v}"
    return stored if k.dtype is v.dtype is dtype else f"{stored} for {dtype}"
