"""The definition of what kvit computes: numpy and the types of ml_dtypes only, float64 inside, written to be read."""

from .attention import State, attention, merge_states, visible_keys
from .codecs import CODECS, Codec, Encoded, codec_of, pack_int4, unpack_int4
from .paged import (
    Cache,
    Fault,
    Pool,
    Table,
    append,
    copy_pages,
    gather,
    paged_attention,
    requantise,
    token_positions,
    token_ranges,
)
from .rope import Rotation, biased, cosine_and_sine, rotate
from .rounding import rounded

__all__ = [
    "CODECS",
    "Cache",
    "Codec",
    "Encoded",
    "Fault",
    "Pool",
    "Rotation",
    "State",
    "Table",
    "append",
    "attention",
    "biased",
    "codec_of",
    "copy_pages",
    "cosine_and_sine",
    "gather",
    "merge_states",
    "pack_int4",
    "paged_attention",
    "requantise",
    "rotate",
    "rounded",
    "token_positions",
    "token_ranges",
    "unpack_int4",
    "visible_keys",
]
