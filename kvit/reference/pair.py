"""The codecs of K and of V as a word: how command lines and tables name them."""

from __future__ import annotations

from dataclasses import dataclass

from .codec import Codec
from .codecs import codec_of


@dataclass(frozen=True)
class Pair:
    """Codecs of K and V, by name; "16" stands for the 16-bit dtype of whoever asks, kept as it is."""

    k: str
    v: str

    def __str__(self) -> str:
        return f"{self.k}:{self.v}"

    @classmethod
    def parse(cls, text: str) -> Pair:
        """The pair that K:V names. Raises ValueError."""
        k, colon, v = text.partition(":")
        if not colon:
            raise ValueError(f"{text!r} is no pair; pairs look like int8:int4 or 16:int8")
        for name in (k, v):
            if name != "16":
                codec_of(name)
        return cls(k, v)

    @classmethod
    def argument(cls, text: str) -> Pair:
        """`parse` as a type of argparse, which shows the words of its own errors alone."""
        from argparse import ArgumentTypeError

        try:
            return cls.parse(text)
        except ValueError as error:
            raise ArgumentTypeError(str(error)) from None

    def codecs(self, dtype: str) -> tuple[Codec, Codec]:
        """Of K and of V, over rows of a 16-bit dtype."""
        k, v = (codec_of(dtype if name == "16" else name) for name in (self.k, self.v))
        return k, v

    def row_bytes(self, dtype: str, head_dim: int) -> int:
        """K and V of a token and KV head, parameters included."""
        return sum(codec.row_bytes(head_dim) + codec.param_bytes(head_dim) for codec in self.codecs(dtype))


_NAMES = (
    "16:16", "16:int8", "16:int4",
    "int8:16", "int8:int8", "int8:int4",
    "int4:int8", "int4:int4",
    "int8_hadamard:int4_hadamard", "int4_hadamard:int4_hadamard",
    "float8_e4m3:float8_e4m3", "float8_e4m3:int8", "float8_e4m3:int4",
    "float8_e5m2:float8_e5m2",
    "int8:nvfp4", "nvfp4:nvfp4", "mxfp4:mxfp4",
)  # fmt: skip
PAIRS = tuple(map(Pair.parse, _NAMES))
"""Those that tables of errors compare, built or not; the first loses nothing."""
